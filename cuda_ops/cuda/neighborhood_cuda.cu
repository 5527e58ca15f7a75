// CUDA implementation: chooses index type, channels per thread and block shape, and launches.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>

#include <cstdlib>

#include "../operators.h"
#include "neighborhood_cuda_kernel.cuh"

namespace mmext {
namespace {

using namespace cuda;

// 64-bit indices where a tensor needs them; the environment variable is for tests, which have no such tensors.
bool wide(const Geometry& g, std::initializer_list<int64_t> sizes) {
  const char* forced = std::getenv("MMEXT_FORCE_64BIT_INDEXING");
  if (forced != nullptr && forced[0] == '1') return true;
  // Products of index and plane stay below the largest tensor, positions below the reach of the axis in its padding; leave room
  // for the overhang of the last tile.
  const int64_t most = (int64_t(1) << 31) - (int64_t(1) << 20);
  for (const int64_t size : sizes)
    if (size >= most) return true;
  for (const Axis* a : {&g.y, &g.x})
    if (a->source + a->padding + a->output * a->stride + a->kernel * a->dilation >= most) return true;
  return false;
}

struct Shape {
  dim3 block;
  int64_t row_tiles, column_tiles;
};

Shape launch_shape(int64_t height, int64_t width) {
  const int64_t lanes = width <= 8 ? 8 : width <= 16 ? 16 : 32;
  const int64_t threads = kThreads / lanes;
  return {dim3(lanes, threads), (height + threads * kRows - 1) / (threads * kRows), (width + lanes - 1) / lanes};
}

template <typename T, typename Index, int R, bool Adjoint, bool Shift>
void launch_aggregate(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out) {
  const Shape shape = launch_shape(out.size(2), out.size(3));
  const int64_t parts = g.per_group() / R, blocks = g.batch * g.groups * parts * shape.row_tiles * shape.column_tiles;
  TORCH_CHECK(blocks < (int64_t(1) << 31), "mmext: ", blocks, " blocks are more than a launch can have");
  aggregate_kernel<T, Index, R, Adjoint, Shift><<<blocks, shape.block, 0, at::cuda::getCurrentCUDAStream()>>>(
      View<Index>(g), source.const_data_ptr<T>(), weight.const_data_ptr<T>(), weight.stride(0), out.mutable_data_ptr<T>(),
      parts, shape.row_tiles, shape.column_tiles);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename Index, bool Adjoint, bool Shift>
void choose_channels(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out) {
  const int64_t r = g.per_group();
  if (r % 8 == 0) return launch_aggregate<T, Index, 8, Adjoint, Shift>(g, source, weight, out);
  if (r % 4 == 0) return launch_aggregate<T, Index, 4, Adjoint, Shift>(g, source, weight, out);
  if (r % 2 == 0) return launch_aggregate<T, Index, 2, Adjoint, Shift>(g, source, weight, out);
  return launch_aggregate<T, Index, 1, Adjoint, Shift>(g, source, weight, out);
}

template <typename T, typename Index>
void choose_rule(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint) {
  if (adjoint) {
    if (g.shift) return choose_channels<T, Index, true, true>(g, source, weight, out);
    return choose_channels<T, Index, true, false>(g, source, weight, out);
  }
  if (g.shift) return choose_channels<T, Index, false, true>(g, source, weight, out);
  return choose_channels<T, Index, false, false>(g, source, weight, out);
}

void aggregate_cuda(const Geometry& g, const at::Tensor& source, const at::Tensor& weight, at::Tensor& out, bool adjoint) {
  const at::cuda::CUDAGuard guard(source.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, source.scalar_type(), "neighborhood_aggregate", [&] {
    if (wide(g, {source.numel(), weight.numel(), out.numel()}))
      choose_rule<scalar_t, int64_t>(g, source, weight, out, adjoint);
    else
      choose_rule<scalar_t, int32_t>(g, source, weight, out, adjoint);
  });
}

template <typename T, typename Index, bool Shift>
void launch_correlate(const Geometry& g, const at::Tensor& query, const at::Tensor& key, at::Tensor& out) {
  const Shape shape = launch_shape(g.y.output, g.x.output);
  const int64_t blocks = g.batch * g.groups * shape.row_tiles * shape.column_tiles;
  TORCH_CHECK(blocks < (int64_t(1) << 31), "mmext: ", blocks, " blocks are more than a launch can have");
  correlate_kernel<T, Index, Shift><<<blocks, shape.block, 0, at::cuda::getCurrentCUDAStream()>>>(
      View<Index>(g), query.const_data_ptr<T>(), key.const_data_ptr<T>(), out.mutable_data_ptr<T>(), shape.row_tiles,
      shape.column_tiles);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void correlate_cuda(const Geometry& g, const at::Tensor& query, const at::Tensor& key, at::Tensor& out) {
  const at::cuda::CUDAGuard guard(query.device());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "neighborhood_correlate", [&] {
    const bool is_wide = wide(g, {query.numel(), key.numel(), out.numel()});
    if (is_wide && g.shift) return launch_correlate<scalar_t, int64_t, true>(g, query, key, out);
    if (is_wide) return launch_correlate<scalar_t, int64_t, false>(g, query, key, out);
    if (g.shift) return launch_correlate<scalar_t, int32_t, true>(g, query, key, out);
    return launch_correlate<scalar_t, int32_t, false>(g, query, key, out);
  });
}

}  // namespace

REGISTER_DEVICE_IMPL(aggregate_impl, CUDA, aggregate_cuda);
REGISTER_DEVICE_IMPL(correlate_impl, CUDA, correlate_cuda);

}  // namespace mmext
