// Chooses index type, channels and columns of a thread and the shape of blocks, and launches.
//
// Needs TORCH_CHECK and `launch(kernel, blocks, block, arguments...)`, from the .cu file or from emulate.h.
#pragma once

#include <initializer_list>

#include "neighborhood_cuda_kernel.cuh"

namespace mmext::cuda {

// Whether 32-bit indices do not suffice.
inline bool wide(const Geometry& g) {
  // Products of index and plane stay below the largest tensor, positions below the reach of the axis in its padding; leave room
  // for the overhang of the last tile.
  const int64_t most = (int64_t(1) << 31) - (int64_t(1) << 20), out_plane = g.y.output * g.x.output;
  const int64_t values = g.batch * g.channels * g.y.source * g.x.source, outputs = g.batch * g.channels * out_plane;
  for (const int64_t size : {values, outputs, g.batch * g.groups * g.taps() * out_plane})
    if (size >= most) return true;
  for (const Axis* a : {&g.y, &g.x})
    if (a->source + a->padding + a->output * a->stride + a->kernel * a->dilation >= most) return true;
  return false;
}

// Whether a lane takes two columns: numbers of two bytes, in rows that all begin at whole words of two. 64-bit indices are
// rare, and have no such form.
template <typename T>
bool paired(const Geometry& g, bool is_wide, std::initializer_list<const T*> tensors) {
  if (sizeof(T) != 2 || is_wide || g.x.source % 2 != 0 || g.x.output % 2 != 0) return false;
  for (const T* numbers : tensors)
    if (reinterpret_cast<uintptr_t>(numbers) % (2 * sizeof(T)) != 0) return false;
  return true;
}

struct Shape {
  dim3 block;
  int64_t row_tiles, column_tiles;
};

inline Shape launch_shape(int64_t height, int64_t columns) {
  const unsigned lanes = columns <= 8 ? 8 : columns <= 16 ? 16 : 32, threads = kThreads / lanes;
  return {dim3{lanes, threads}, (height + threads * kRows - 1) / (threads * kRows), (columns + lanes - 1) / lanes};
}

inline int64_t checked(int64_t blocks) {
  TORCH_CHECK(blocks < (int64_t(1) << 31), "mmext: ", blocks, " blocks are more than a launch can have");
  return blocks;
}

template <typename T, typename Index, int R, int L, bool Adjoint, bool Shift>
void launch_aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out) {
  const Shape shape = launch_shape(Adjoint ? g.y.source : g.y.output, (Adjoint ? g.x.source : g.x.output) / L);
  const int64_t parts = g.per_group() / R;
  launch(aggregate_kernel<T, Index, R, L, Adjoint, Shift>,
         checked(g.batch * g.groups * parts * shape.row_tiles * shape.column_tiles), shape.block, View<Index>(g), source, weight,
         weight_batch, out, parts, shape.row_tiles, shape.column_tiles);
}

template <typename T, typename Index, int L, bool Adjoint, bool Shift>
void choose_channels(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out) {
  const int64_t r = g.per_group();
  if (r % 8 == 0) return launch_aggregate<T, Index, 8, L, Adjoint, Shift>(g, source, weight, weight_batch, out);
  if (r % 4 == 0) return launch_aggregate<T, Index, 4, L, Adjoint, Shift>(g, source, weight, weight_batch, out);
  if (r % 2 == 0) return launch_aggregate<T, Index, 2, L, Adjoint, Shift>(g, source, weight, weight_batch, out);
  return launch_aggregate<T, Index, 1, L, Adjoint, Shift>(g, source, weight, weight_batch, out);
}

template <typename T, typename Index, int L>
void choose_rule(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint) {
  if (adjoint && g.shift) return choose_channels<T, Index, L, true, true>(g, source, weight, weight_batch, out);
  if (adjoint) return choose_channels<T, Index, L, true, false>(g, source, weight, weight_batch, out);
  if (g.shift) return choose_channels<T, Index, L, false, true>(g, source, weight, weight_batch, out);
  return choose_channels<T, Index, L, false, false>(g, source, weight, weight_batch, out);
}

// aggregate and its adjoint; tensors are contiguous, and `weight_batch` is zero where one weight serves all images.
template <typename T>
void aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint, bool is_wide) {
  if (is_wide) return choose_rule<T, int64_t, 1>(g, source, weight, weight_batch, out, adjoint);
  if constexpr (sizeof(T) == 2)
    if (paired<T>(g, is_wide, {source, weight, out}))
      return choose_rule<T, int32_t, 2>(g, source, weight, weight_batch, out, adjoint);
  choose_rule<T, int32_t, 1>(g, source, weight, weight_batch, out, adjoint);
}

template <typename T, typename Index, int L, bool Shift>
void launch_correlate(const Geometry& g, const T* query, const T* key, T* out) {
  const Shape shape = launch_shape(g.y.output, g.x.output / L);
  launch(correlate_kernel<T, Index, L, Shift>, checked(g.batch * g.groups * shape.row_tiles * shape.column_tiles), shape.block,
         View<Index>(g), query, key, out, shape.row_tiles, shape.column_tiles);
}

template <typename T, typename Index, int L>
void choose_border(const Geometry& g, const T* query, const T* key, T* out) {
  if (g.shift) return launch_correlate<T, Index, L, true>(g, query, key, out);
  launch_correlate<T, Index, L, false>(g, query, key, out);
}

template <typename T>
void correlate(const Geometry& g, const T* query, const T* key, T* out, bool is_wide) {
  if (is_wide) return choose_border<T, int64_t, 1>(g, query, key, out);
  if constexpr (sizeof(T) == 2)
    if (paired<T>(g, is_wide, {query, key, out})) return choose_border<T, int32_t, 2>(g, query, key, out);
  choose_border<T, int32_t, 1>(g, query, key, out);
}

}  // namespace mmext::cuda
