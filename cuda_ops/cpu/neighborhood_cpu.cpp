// CPU implementation: the operators' entry points for tensors.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../neighborhood.h"
#include "../operators.h"
#include "drive.h"
#include "softmax.h"

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

// The schema, the other devices and the derivatives are in mmext/ops/tap_softmax.py.
at::Tensor tap_softmax_cpu(const at::Tensor& logits, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_VALUE(logits.dim() == 5 && logits.is_floating_point(), "mmext: logits must be (B, G, N, Ho, Wo) and floating, got ",
                    logits.sizes(), " of ", logits.scalar_type());
  const at::Tensor from = logits.contiguous();
  at::Tensor out = at::empty_like(from), added;
  if (bias.has_value()) {
    TORCH_CHECK_VALUE(bias->sizes() == logits.sizes().slice(2) && bias->device() == logits.device(),
                      "mmext: the bias must be (N, Ho, Wo) = ", logits.sizes().slice(2), ", got ", bias->sizes());
    added = bias->to(at::toOpMathType(logits.scalar_type())).contiguous();
  }
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from.scalar_type(), "tap_softmax", [&] {
    using Acc = at::opmath_type<scalar_t>;
    cpu::softmax<scalar_t>(from.const_data_ptr<scalar_t>(), added.defined() ? added.const_data_ptr<Acc>() : nullptr,
                           out.mutable_data_ptr<scalar_t>(), from.size(0) * from.size(1), from.size(2),
                           from.size(3) * from.size(4));
  });
  return out;
}

TORCH_LIBRARY_IMPL(mmext, CPU, m) { m.impl("tap_softmax", tap_softmax_cpu); }

}  // namespace

REGISTER_DEVICE_IMPL(aggregate_impl, CPU, aggregate_cpu);
REGISTER_DEVICE_IMPL(correlate_impl, CPU, correlate_cpu);

}  // namespace mmext
