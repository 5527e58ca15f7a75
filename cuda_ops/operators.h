// The two implementations a device provides, dispatched through mmcv's device registry as mmcv's own operators are.
#pragma once

#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"

#include "neighborhood.h"

namespace mmext {

// aggregate, or with `adjoint` its adjoint in the value. Tensors are contiguous; the weight's batch stride may be zero.
void aggregate_impl(const Geometry& geometry, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint);

void correlate_impl(const Geometry& geometry, const at::Tensor& query, const at::Tensor& key, at::Tensor& out);

}  // namespace mmext
