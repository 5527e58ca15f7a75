// The neighbourhood operators: one trilinear form, three views of it, each the derivative of the other two.
//
//   aggregate   out[b,c,o]   = sum_k  w[b,g(c),k,o] * v[b,c,N(o,k)]
//   adjoint     u[b,c,i]     = sum_{(o,k): N(o,k)=i}  w[b,g(c),k,o] * z[b,c,o]
//   correlate   l[b,g,k,o]   = sum_{c: g(c)=g}  q[b,c,o] * v[b,c,N(o,k)]
//
// N maps an output pixel and a tap to a source pixel, or to nothing (a tap outside of a zero border). It is a product of
// two one-dimensional maps, so a `Geometry` is two `Axis` and the way channels fall into groups.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MMEXT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MMEXT_HOST_DEVICE inline
#endif

namespace mmext {

struct Axis {
  int64_t source;    // length of the value axis
  int64_t output;    // length of the output axis
  int64_t kernel;    // taps
  int64_t stride;
  int64_t dilation;
  int64_t padding;   // zeros before the first source position
};

struct Geometry {
  int64_t batch, channels, groups;
  Axis y, x;
  bool shift;        // windows slide inside the border instead of reaching over it (needs stride 1, odd kernels)
  bool interleave;   // g(c) = c mod G instead of c / (C/G)

  MMEXT_HOST_DEVICE int64_t per_group() const { return channels / groups; }
  MMEXT_HOST_DEVICE int64_t taps() const { return y.kernel * x.kernel; }
  // The j-th channel of group g.
  MMEXT_HOST_DEVICE int64_t channel(int64_t g, int64_t j) const { return interleave ? j * groups + g : g * per_group() + j; }
};

// First source position of the shifted window of output o: the window of its residue class modulo the dilation, slid inside.
template <typename Index>
MMEXT_HOST_DEVICE Index shifted_start(Index o, Index length, Index kernel, Index dilation) {
  const Index residue = o % dilation;
  const Index members = (length - residue + dilation - 1) / dilation;
  Index first = o / dilation - (kernel - 1) / 2;
  if (first > members - kernel) first = members - kernel;
  if (first < 0) first = 0;
  return residue + dilation * first;
}

// N(o, k), or -1 where the tap lies outside.
template <typename Index>
MMEXT_HOST_DEVICE Index tap_position(Index o, Index k, Index length, Index kernel, Index stride, Index dilation, Index padding,
                                     bool shift) {
  if (shift) return shifted_start(o, length, kernel, dilation) + k * dilation;
  const Index position = o * stride - padding + k * dilation;
  return position >= 0 && position < length ? position : Index(-1);
}

// First window o >= 0 with o * stride >= distance; it may lie beyond the last one.
inline int64_t first_window(int64_t distance, int64_t stride) { return distance > 0 ? (distance - 1) / stride + 1 : 0; }

// Whether any window sees the image through tap k (of a zero border).
inline bool tap_sees(const Axis& a, int64_t k) {
  const int64_t o = first_window(a.padding - k * a.dilation, a.stride);
  return o < a.output && o * a.stride - a.padding + k * a.dilation < a.source;
}

inline int64_t tap_position(const Axis& a, int64_t o, int64_t k, bool shift) {
  return tap_position<int64_t>(o, k, a.source, a.kernel, a.stride, a.dilation, a.padding, shift);
}

}  // namespace mmext
