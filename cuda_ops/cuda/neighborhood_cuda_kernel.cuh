// The device code: the tiles of the CPU kernels, with a thread for every column.
//
// A thread owns one column of kRows output rows. It walks the source rows that any of them sees and loads every value once
// for all of them (kRows taps share it) and every weight once for up to 8 channels; so a multiply-add costs a fraction of a
// load, and lanes run along x, so each load is coalesced. Everything is a gather: no atomics, one order of summation.
#pragma once

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include "../neighborhood.h"
#include "pytorch_cuda_helper.hpp"

namespace mmext::cuda {

constexpr int kRows = 4;       // output rows of a thread
constexpr int kThreads = 128;  // of a block
constexpr int kSlots = 4;      // taps that a correlation sums at a time

// One axis in the index type of the launch.
template <typename Index>
struct AxisView {
  Index source, output, kernel, stride, dilation, padding;

  explicit AxisView(const Axis& a)
      : source(a.source), output(a.output), kernel(a.kernel), stride(a.stride), dilation(a.dilation), padding(a.padding) {}

  // The tap through which window o sees source position i, or -1.
  template <bool Shift>
  __device__ __forceinline__ Index tap(Index o, Index i) const {
    const Index start = Shift ? shifted_start(o, source, kernel, dilation) : o * stride - padding;
    const Index reach = i - start;
    if (reach < 0 || reach % dilation != 0) return -1;
    const Index k = reach / dilation;
    return k < kernel ? k : Index(-1);
  }

  // First and last source position that window o sees (for a zero border, those of the padded image).
  template <bool Shift>
  __device__ __forceinline__ void seen(Index o, Index& low, Index& high) const {
    low = Shift ? shifted_start(o, source, kernel, dilation) : o * stride - padding;
    high = low + (kernel - 1) * dilation;
    if (low < 0) low = 0;
    if (high > source - 1) high = source - 1;
  }

  // First and last window that sees source position i; between them lie windows that do not.
  template <bool Shift>
  __device__ __forceinline__ void seeing(Index i, Index& low, Index& high) const {
    if (Shift) {
      const Index reach = (kernel - 1) / 2 * dilation;
      low = i < kernel * dilation ? i % dilation : i - reach;
      high = i >= source - kernel * dilation ? source - 1 : i + reach;
    } else {
      const Index first = i + padding - (kernel - 1) * dilation;
      low = first > 0 ? (first + stride - 1) / stride : 0;
      high = (i + padding) / stride;
      if (high > output - 1) high = output - 1;
    }
  }
};

template <typename Index>
struct View {
  Index channels, groups, per_group;
  AxisView<Index> y, x;
  bool interleave;

  explicit View(const Geometry& g)
      : channels(g.channels), groups(g.groups), per_group(g.per_group()), y(g.y), x(g.x), interleave(g.interleave) {}

  __device__ __forceinline__ Index channel(Index group, Index j) const {
    return interleave ? j * groups + group : group * per_group + j;
  }
};

// Where a thread works: blocks run over (image, group, channel block, row tile, column tile), the last one fastest.
template <typename Index>
struct Place {
  Index image, group, part, row, column;

  __device__ __forceinline__ Place(Index groups, Index parts, Index row_tiles, Index column_tiles) {
    Index block = blockIdx.x;
    column = block % column_tiles * blockDim.x + threadIdx.x;
    block /= column_tiles;
    row = (block % row_tiles * blockDim.y + threadIdx.y) * kRows;
    block /= row_tiles;
    part = block % parts;
    block /= parts;
    group = block % groups;
    image = block / groups;
  }
};

// aggregate (source = value) or its adjoint (source = gradient, output on the value's grid) for R channels of a group.
template <typename T, typename Index, int R, bool Adjoint, bool Shift>
__global__ void __launch_bounds__(kThreads)
    aggregate_kernel(const View<Index> g, const T* __restrict__ source, const T* __restrict__ weight, const Index weight_batch,
                     T* __restrict__ out, const Index parts, const Index row_tiles, const Index column_tiles) {
  using Acc = at::opmath_type<T>;
  const Index height = Adjoint ? g.y.source : g.y.output, width = Adjoint ? g.x.source : g.x.output;
  const Index source_height = Adjoint ? g.y.output : g.y.source, source_width = Adjoint ? g.x.output : g.x.source;
  const Place<Index> at(g.groups, parts, row_tiles, column_tiles);
  if (at.column >= width || at.row >= height) return;
  const Index last_row = at.row + kRows <= height ? at.row + kRows - 1 : height - 1;

  const Index first = at.part * R, between = g.channel(0, 1) - g.channel(0, 0);
  const Index channel = at.image * g.channels + g.channel(at.group, first);
  const Index weight_plane = g.y.output * g.x.output;
  source += channel * source_height * source_width;
  weight += at.image * weight_batch + at.group * g.y.kernel * g.x.kernel * weight_plane;
  const Index plane = between * source_height * source_width;

  Index low, high, ignored;
  if (Adjoint) {
    g.y.template seeing<Shift>(at.row, low, ignored);
    g.y.template seeing<Shift>(last_row, ignored, high);
    if (Shift) {
      // With a dilation the first windows of neighbouring rows are not in order.
      for (Index r = at.row + 1; r <= last_row; ++r) {
        Index l, h;
        g.y.template seeing<Shift>(r, l, h);
        if (l < low) low = l;
        if (h > high) high = h;
      }
    }
  } else {
    g.y.template seen<Shift>(at.row, low, ignored);
    g.y.template seen<Shift>(last_row, ignored, high);
    if (Shift) {
      for (Index r = at.row; r <= last_row; ++r) {
        Index l, h;
        g.y.template seen<Shift>(r, l, h);
        if (l < low) low = l;
        if (h > high) high = h;
      }
    }
  }
  // The columns that this column meets: every tap, or, for the adjoint of shifted windows, every window that may see it.
  Index from_column = 0, to_column = 0, slots = g.x.kernel;
  if (Adjoint && Shift) {
    g.x.template seeing<Shift>(at.column, from_column, to_column);
    slots = (to_column - from_column) / g.x.dilation + 1;
  }

  Acc acc[kRows][R] = {};
  for (Index i = low; i <= high; ++i) {
    Index taps[kRows];
    bool any = false;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      taps[t] = at.row + t <= last_row
                    ? (Adjoint ? g.y.template tap<Shift>(i, at.row + t) : g.y.template tap<Shift>(at.row + t, i))
                    : Index(-1);
      any |= taps[t] >= 0;
    }
    if (!any) continue;
    for (Index q = 0; q < slots; ++q) {
      Index tap = q, column;
      if (Adjoint && Shift) {
        column = from_column + q * g.x.dilation;
        tap = g.x.template tap<Shift>(column, at.column);
        if (tap < 0) continue;
      } else if (Adjoint) {
        const Index reach = at.column + g.x.padding - q * g.x.dilation;
        if (reach < 0 || reach % g.x.stride != 0) continue;
        column = reach / g.x.stride;
        if (column >= source_width) continue;
      } else {
        column = tap_position<Index>(at.column, q, g.x.source, g.x.kernel, g.x.stride, g.x.dilation, g.x.padding, Shift);
        if (column < 0) continue;
      }
      Acc v[R];
      const T* here = source + i * source_width + column;
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = static_cast<Acc>(here[r * plane]);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (taps[t] < 0) continue;
        const Index where = Adjoint ? i * g.x.output + column : (at.row + t) * g.x.output + at.column;
        const Acc w = static_cast<Acc>(weight[(taps[t] * g.x.kernel + tap) * weight_plane + where]);
#pragma unroll
        for (int r = 0; r < R; ++r) acc[t][r] += w * v[r];
      }
    }
  }
  out += channel * height * width + at.column;
#pragma unroll
  for (int t = 0; t < kRows; ++t)
    if (at.row + t <= last_row) {
#pragma unroll
      for (int r = 0; r < R; ++r) out[r * between * height * width + (at.row + t) * width] = static_cast<T>(acc[t][r]);
    }
}

// All the logits of one column of kRows query rows of one group.
template <typename T, typename Index, bool Shift>
__global__ void __launch_bounds__(kThreads)
    correlate_kernel(const View<Index> g, const T* __restrict__ query, const T* __restrict__ key, T* __restrict__ out,
                     const Index row_tiles, const Index column_tiles) {
  using Acc = at::opmath_type<T>;
  const Place<Index> at(g.groups, 1, row_tiles, column_tiles);
  if (at.column >= g.x.output || at.row >= g.y.output) return;
  const Index last_row = at.row + kRows <= g.y.output ? at.row + kRows - 1 : g.y.output - 1;

  const Index channel = at.image * g.channels + g.channel(at.group, 0), between = g.channel(0, 1) - g.channel(0, 0);
  const Index out_plane = g.y.output * g.x.output, key_plane = g.y.source * g.x.source;
  query += channel * out_plane + at.column;
  key += channel * key_plane;
  out += (at.image * g.groups + at.group) * g.y.kernel * g.x.kernel * out_plane + at.column;

  Index low = g.y.source, high = -1;
  for (Index r = at.row; r <= last_row; ++r) {
    Index l, h;
    g.y.template seen<Shift>(r, l, h);
    if (l < low) low = l;
    if (h > high) high = h;
    if (!Shift)  // taps that lie outside
      for (Index k = 0; k < g.y.kernel; ++k) {
        const Index i = r * g.y.stride - g.y.padding + k * g.y.dilation;
        if (i >= 0 && i < g.y.source) continue;
        for (Index kx = 0; kx < g.x.kernel; ++kx) out[(k * g.x.kernel + kx) * out_plane + r * g.x.output] = T(0);
      }
  }
  for (Index i = low; i <= high; ++i) {
    Index taps[kRows];
    bool any = false;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      taps[t] = at.row + t <= last_row ? g.y.template tap<Shift>(at.row + t, i) : Index(-1);
      any |= taps[t] >= 0;
    }
    if (!any) continue;
    for (Index begin = 0; begin < g.x.kernel; begin += kSlots) {
      Index columns[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
        columns[s] = begin + s < g.x.kernel ? tap_position<Index>(at.column, begin + s, g.x.source, g.x.kernel, g.x.stride,
                                                                  g.x.dilation, g.x.padding, Shift)
                                            : Index(-1);
      Acc acc[kRows][kSlots] = {};
      for (Index j = 0; j < g.per_group; ++j) {
        Acc q[kRows];
#pragma unroll
        for (int t = 0; t < kRows; ++t)
          q[t] = taps[t] >= 0 ? static_cast<Acc>(query[j * between * out_plane + (at.row + t) * g.x.output]) : Acc(0);
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          if (columns[s] < 0) continue;
          const Acc v = static_cast<Acc>(key[j * between * key_plane + i * g.x.source + columns[s]]);
#pragma unroll
          for (int t = 0; t < kRows; ++t) acc[t][s] += q[t] * v;
        }
      }
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (taps[t] < 0) continue;
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
          if (begin + s < g.x.kernel)
            out[(taps[t] * g.x.kernel + begin + s) * out_plane + (at.row + t) * g.x.output] = static_cast<T>(acc[t][s]);
      }
    }
  }
}

}  // namespace mmext::cuda
