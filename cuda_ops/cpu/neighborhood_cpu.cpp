// CPU implementation: the operators' entry points for tensors.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include "../neighborhood.h"
#include "../operators.h"
#include "drive.h"

namespace mmext {

template <>
constexpr cpu::Bits cpu::bits_of<at::Half> = cpu::Bits::half;
template <>
constexpr cpu::Bits cpu::bits_of<at::BFloat16> = cpu::Bits::bfloat16;

namespace {

void aggregate_cpu(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, source.scalar_type(), "neighborhood_aggregate", [&] {
    cpu::aggregate<scalar_t>(g, source.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), weight.stride(0),
                        out.mutable_data_ptr<scalar_t>(), adjoint);
  });
}

void correlate_cpu(const Geometry& g, const at::Tensor& query, const at::Tensor& key, at::Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "neighborhood_correlate", [&] {
    cpu::correlate<scalar_t>(g, query.const_data_ptr<scalar_t>(), key.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>());
  });
}

}  // namespace

REGISTER_DEVICE_IMPL(aggregate_impl, CPU, aggregate_cpu);
REGISTER_DEVICE_IMPL(correlate_impl, CPU, correlate_cpu);

}  // namespace mmext
