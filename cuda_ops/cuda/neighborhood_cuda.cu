// CUDA implementation: the operators' entry points for tensors.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstdlib>
#include <type_traits>

#include "../operators.h"

namespace mmext::cuda {

template <typename... P>
void launch(void (*kernel)(P...), int64_t blocks, dim3 block, std::decay_t<P>... arguments) {
  kernel<<<static_cast<unsigned>(blocks), block, 0, at::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace mmext::cuda

#include "neighborhood_cuda_launch.cuh"

namespace mmext {
namespace {

// 64-bit indices where they are needed; the environment variable is for tests, which have no such tensors.
bool forced_wide(const Geometry& g) {
  const char* forced = std::getenv("MMEXT_FORCE_64BIT_INDEXING");
  return (forced != nullptr && forced[0] == '1') || cuda::wide(g);
}

void aggregate_cuda(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint) {
  const at::cuda::CUDAGuard guard(source.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, source.scalar_type(), "neighborhood_aggregate", [&] {
    cuda::aggregate<scalar_t>(g, source.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), weight.stride(0),
                              out.mutable_data_ptr<scalar_t>(), adjoint, forced_wide(g));
  });
}

void correlate_cuda(const Geometry& g, const at::Tensor& query, const at::Tensor& key, at::Tensor& out) {
  const at::cuda::CUDAGuard guard(query.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "neighborhood_correlate", [&] {
    cuda::correlate<scalar_t>(g, query.const_data_ptr<scalar_t>(), key.const_data_ptr<scalar_t>(),
                              out.mutable_data_ptr<scalar_t>(), forced_wide(g));
  });
}

}  // namespace

REGISTER_DEVICE_IMPL(aggregate_impl, CUDA, aggregate_cuda);
REGISTER_DEVICE_IMPL(correlate_impl, CUDA, correlate_cuda);

}  // namespace mmext
