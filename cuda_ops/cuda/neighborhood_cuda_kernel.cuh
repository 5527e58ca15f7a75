// The device code: the tiles of the CPU kernels, with a thread for every column.
//
// A thread owns L neighbouring columns of kRows output rows. It walks the source rows that any of them sees and loads every
// value once for all of them (kRows taps share it) and every weight once for up to 8 channels; so a multiply-add costs a
// fraction of a load, and lanes run along x, so each load is coalesced. Everything is a gather: no atomics, no shared memory,
// no synchronisation, one order of summation. So a thread can be called as a function, which emulate.h does.
//
// L is 2 for half types whose rows begin at whole words of two numbers, and else 1. Such a lane loads words, and keeps the
// last one: taps of stride 1 need a new word of a row at every second tap only.
//
// Needs at::opmath_type, CUDA or emulate.h.
#pragma once

#include "../neighborhood.h"

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

// L neighbouring numbers of a row, which one load brings.
template <typename T, int L>
struct alignas(L * sizeof(T)) Word {
  T at[L];

  // The number of an absolute column. A choice of values: one of places would be an index into registers, and end in memory.
  template <typename Acc, typename Index>
  __device__ __forceinline__ Acc of(Index column) const {
    const Acc first = static_cast<Acc>(at[0]), last = static_cast<Acc>(at[L - 1]);
    return L == 1 || column % 2 == 0 ? first : last;
  }
};

template <int L, typename T>
__device__ __forceinline__ const Word<T, L>& word_at(const T* numbers) {
  return *reinterpret_cast<const Word<T, L>*>(numbers);
}

template <typename T, int L, typename Acc>
__device__ __forceinline__ void store(T* out, const Acc (&numbers)[L]) {
  Word<T, L> word;
#pragma unroll
  for (int l = 0; l < L; ++l) word.at[l] = static_cast<T>(numbers[l]);
  *reinterpret_cast<Word<T, L>*>(out) = word;
}

// Where a thread works: blocks run over (image, group, channel block, row tile, column tile), the last one fastest.
template <typename Index, int L>
struct Place {
  Index image, group, part, row, column;

  __device__ __forceinline__ Place(Index groups, Index parts, Index row_tiles, Index column_tiles) {
    Index block = blockIdx.x;
    column = (block % column_tiles * blockDim.x + threadIdx.x) * L;
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
template <typename T, typename Index, int R, int L, bool Adjoint, bool Shift>
__global__ void __launch_bounds__(kThreads)
    aggregate_kernel(const View<Index> g, const T* __restrict__ source, const T* __restrict__ weight, const Index weight_batch,
                     T* __restrict__ out, const Index parts, const Index row_tiles, const Index column_tiles) {
  using Acc = at::opmath_type<T>;
  const Index height = Adjoint ? g.y.source : g.y.output, width = Adjoint ? g.x.source : g.x.output;
  const Index source_height = Adjoint ? g.y.output : g.y.source, source_width = Adjoint ? g.x.output : g.x.source;
  const Place<Index, L> at(g.groups, parts, row_tiles, column_tiles);
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
  // The columns that a column meets: every tap, or, for the adjoint of shifted windows, every window that may see it.
  Index from_column[L] = {}, to_column[L] = {}, slots = g.x.kernel;
  if (Adjoint && Shift) {
    slots = 0;
#pragma unroll
    for (int l = 0; l < L; ++l) {
      g.x.template seeing<Shift>(at.column + l, from_column[l], to_column[l]);
      const Index met = (to_column[l] - from_column[l]) / g.x.dilation + 1;
      if (met > slots) slots = met;
    }
  }

  Acc acc[kRows][R][L] = {};
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
    Word<T, L> words[R] = {};
    Index held = -1;   // the word of the source row that is in registers
    for (Index q = 0; q < slots; ++q) {
      Index column[L], tap[L];
      any = false;
#pragma unroll
      for (int l = 0; l < L; ++l) {
        column[l] = -1;
        tap[l] = q;
        if (Adjoint && Shift) {
          const Index window = from_column[l] + q * g.x.dilation;
          if (window <= to_column[l]) tap[l] = g.x.template tap<Shift>(window, at.column + l);
          if (window <= to_column[l] && tap[l] >= 0) column[l] = window;
        } else if (Adjoint) {
          const Index reach = at.column + l + g.x.padding - q * g.x.dilation;
          if (reach >= 0 && reach % g.x.stride == 0 && reach / g.x.stride < source_width) column[l] = reach / g.x.stride;
        } else {
          column[l] = tap_position<Index>(at.column + l, q, g.x.source, g.x.kernel, g.x.stride, g.x.dilation, g.x.padding, Shift);
        }
        any |= column[l] >= 0;
      }
      if (!any) continue;
      Acc v[L][R] = {};
#pragma unroll
      for (int s = 0; s < L; ++s) {
        const int l = Adjoint ? L - 1 - s : s;   // the adjoint meets columns in falling order: the word of the last one is next
        if (L > 1 && column[l] < 0) continue;
        if (L == 1 || column[l] / L != held) {
          held = column[l] / L;
          const T* here = source + i * source_width + held * L;
#pragma unroll
          for (int r = 0; r < R; ++r) words[r] = word_at<L>(here + r * plane);
        }
#pragma unroll
        for (int r = 0; r < R; ++r) v[l][r] = words[r].template of<Acc>(column[l]);
      }
      const bool together = !Adjoint || (column[0] % 2 == 0 && column[L - 1] == column[0] + 1 && tap[L - 1] == tap[0]);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (taps[t] < 0) continue;
        const T* line = weight + taps[t] * g.x.kernel * weight_plane + (Adjoint ? i : at.row + t) * g.x.output;
        Acc w[L];
        if (L > 1 && together) {
          const Word<T, L> both = word_at<L>(line + tap[0] * weight_plane + (Adjoint ? column[0] : at.column));
#pragma unroll
          for (int l = 0; l < L; ++l) w[l] = column[l] < 0 ? Acc(0) : static_cast<Acc>(both.at[l]);
        } else {
#pragma unroll
          for (int l = 0; l < L; ++l)
            w[l] = L > 1 && column[l] < 0
                       ? Acc(0)
                       : static_cast<Acc>(line[tap[l] * weight_plane + (Adjoint ? column[l] : at.column + l)]);
        }
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int l = 0; l < L; ++l) acc[t][r][l] += w[l] * v[l][r];
      }
    }
  }
  out += channel * height * width + at.column;
#pragma unroll
  for (int t = 0; t < kRows; ++t)
    if (at.row + t <= last_row) {
#pragma unroll
      for (int r = 0; r < R; ++r) store(out + r * between * height * width + (at.row + t) * width, acc[t][r]);
    }
}

// All the logits of L columns of kRows query rows of one group.
template <typename T, typename Index, int L, bool Shift>
__global__ void __launch_bounds__(kThreads)
    correlate_kernel(const View<Index> g, const T* __restrict__ query, const T* __restrict__ key, T* __restrict__ out,
                     const Index row_tiles, const Index column_tiles) {
  using Acc = at::opmath_type<T>;
  const Place<Index, L> at(g.groups, 1, row_tiles, column_tiles);
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
        const Acc none[L] = {};
        for (Index kx = 0; kx < g.x.kernel; ++kx) store(out + (k * g.x.kernel + kx) * out_plane + r * g.x.output, none);
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
      Index columns[kSlots][L];
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
#pragma unroll
        for (int l = 0; l < L; ++l)
          columns[s][l] = begin + s < g.x.kernel
                              ? tap_position<Index>(at.column + l, begin + s, g.x.source, g.x.kernel, g.x.stride, g.x.dilation,
                                                    g.x.padding, Shift)
                              : Index(-1);
      Acc acc[kRows][kSlots][L] = {};
      for (Index j = 0; j < g.per_group; ++j) {
        Word<T, L> q[kRows];
#pragma unroll
        for (int t = 0; t < kRows; ++t)
          if (taps[t] >= 0) q[t] = word_at<L>(query + j * between * out_plane + (at.row + t) * g.x.output);
        const T* line = key + j * between * key_plane + i * g.x.source;
        Word<T, L> word = {};
        Index held = -1;   // the word of the source row that is in registers
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
#pragma unroll
          for (int l = 0; l < L; ++l) {
            const Index column = columns[s][l];
            if (column < 0) continue;
            if (L == 1 || column / L != held) {
              held = column / L;
              word = word_at<L>(line + held * L);
            }
            const Acc v = word.template of<Acc>(column);
#pragma unroll
            for (int t = 0; t < kRows; ++t)
              if (taps[t] >= 0) acc[t][s][l] += static_cast<Acc>(q[t].at[l]) * v;
          }
      }
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (taps[t] < 0) continue;
#pragma unroll
        for (int s = 0; s < kSlots; ++s)
          if (begin + s < g.x.kernel)
            store(out + (taps[t] * g.x.kernel + begin + s) * out_plane + (at.row + t) * g.x.output, acc[t][s]);
      }
    }
  }
}

}  // namespace mmext::cuda
