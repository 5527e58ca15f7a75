// The softmax over the taps of every pixel: logits are read from memory once, and all passes find them in the cache.
//
// The taps of a pixel lie a plane apart. So a vector of pixels is a vector of independent softmaxes.
#pragma once

#include <limits>

#include "kernels.h"

namespace mmext::cpu {

constexpr int64_t kSoftmaxBytes = 160 * 1024;   // of a block: it stays in the second-level cache, and its runs are long

template <typename T, typename Acc>
struct SoftmaxBand {
  const T* logits;    // of the block's first pixel and first tap
  const Acc* bias;    // the same, or nothing
  T* out;
  int64_t taps, plane, pixels;
  int64_t pitch;      // pixels, up to whole vectors: what lies beyond them is computed with and not written
  Acc* exponentials;  // taps * pitch
  Acc* most;          // pitch
  Acc* sum;           // pitch
};

// e^x for x <= 0, to a rounding or two: 2^n times a Taylor polynomial of the rest, which is below log(2) / 2.
template <int Bytes, typename Acc>
MMEXT_INLINE typename Vector<Acc, Bytes>::type exponential(typename Vector<Acc, Bytes>::type x) {
  using V = typename Vector<Acc, Bytes>::type;
  using M = typename Vector<Acc, Bytes>::mask;
  constexpr bool is_float = sizeof(Acc) == 4;
  constexpr Acc round = is_float ? Acc(12582912) : Acc(6755399441055744);   // 1.5 * 2^23 and 2^52: a sum rounds to integers
  constexpr Acc high = is_float ? Acc(0.693359375) : Acc(6.93147180369123816490e-01);
  constexpr Acc low = is_float ? Acc(-2.12194440e-4) : Acc(1.90821492927058770002e-10);
  constexpr Acc least = is_float ? Acc(-87) : Acc(-708);   // below, the result would not be a normal number
  constexpr int terms = is_float ? 7 : 13, exponent = is_float ? 23 : 52, bias = is_float ? 127 : 1023;
  const M below = x < least;
  const V clamped = below ? x - x + least : x;   // not a number stays so; an infinity is dealt with at the end
  const V shifted = clamped * Acc(1.44269504088896340736) + round, n = shifted - round;
  const V rest = clamped - n * high - n * low;
  V value = rest * (Acc(1) / Acc(terms)) + 1;
#pragma GCC unroll 16
  for (int k = terms - 1; k > 0; --k) value = value * (rest * (Acc(1) / Acc(k))) + 1;
  const V power = (V)(((M)shifted + bias) << exponent);   // 2^n: the low bits of the sum are n
  return (V)((M)(value * power) & ~below);
}

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void softmax_band(const SoftmaxBand<T, Acc>& b) {
  using V = typename Vector<Acc, Bytes>::type;
  constexpr int64_t lanes = Vector<Acc, Bytes>::lanes;
  const auto vector = [](Acc* p) MMEXT_INLINE_LAMBDA -> V& { return *reinterpret_cast<V*>(p); };
  for (int64_t i = 0; i < b.pitch; ++i) b.most[i] = -std::numeric_limits<Acc>::infinity();
  for (int64_t k = 0; k < b.taps; ++k) {
    Acc* const e = b.exponentials + k * b.pitch;
    convert(e, b.logits + k * b.plane, b.pixels);
    if (b.bias != nullptr) {
      const Acc* const bias = b.bias + k * b.plane;
      int64_t i = 0;
      for (; i + lanes <= b.pixels; i += lanes) vector(e + i) += *reinterpret_cast<const V*>(bias + i);
      for (; i < b.pixels; ++i) e[i] += bias[i];
    }
    for (int64_t i = 0; i < b.pitch; i += lanes) {
      const V next = vector(e + i), most = vector(b.most + i);
      vector(b.most + i) = next > most ? next : most;
    }
  }
  for (int64_t i = 0; i < b.pitch; i += lanes) vector(b.sum + i) = V{};
  for (int64_t k = 0; k < b.taps; ++k) {
    Acc* const e = b.exponentials + k * b.pitch;
    for (int64_t i = 0; i < b.pitch; i += lanes) {
      const V power = exponential<Bytes, Acc>(vector(e + i) - vector(b.most + i));
      vector(e + i) = power;
      vector(b.sum + i) += power;
    }
  }
  for (int64_t i = 0; i < b.pitch; i += lanes) vector(b.sum + i) = 1 / vector(b.sum + i);
  for (int64_t k = 0; k < b.taps; ++k) {
    Acc* const e = b.exponentials + k * b.pitch;
    for (int64_t i = 0; i < b.pitch; i += lanes) vector(e + i) *= vector(b.sum + i);
    convert(b.out + k * b.plane, e, b.pixels);
  }
}

MMEXT_MULTIVERSION(softmax_band, SoftmaxBand)

// `rows` softmaxes over `taps` planes each; `bias` is that of one row, or nothing.
template <typename T>
void softmax(const T* logits, const at::opmath_type<T>* bias, T* out, int64_t rows, int64_t taps, int64_t plane) {
  using Acc = at::opmath_type<T>;
  constexpr int64_t lanes = kMaxBytes / sizeof(Acc);
  const int64_t fitting = kSoftmaxBytes / int64_t(sizeof(Acc)) / taps / lanes * lanes;
  const int64_t block = std::min(up(plane, lanes), std::max(fitting, lanes)), blocks = (plane + block - 1) / block;
  at::parallel_for(0, rows * blocks, 1, [&](int64_t begin, int64_t end) {
    Acc* const memory = scratch<Acc>((taps + 2) * block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * block, at = task / blocks * taps * plane + first;
      SoftmaxBand<T, Acc> b{};
      b.logits = logits + at;
      b.bias = bias == nullptr ? nullptr : bias + first;
      b.out = out + at;
      b.taps = taps;
      b.plane = plane;
      b.pixels = std::min(block, plane - first);
      b.pitch = up(b.pixels, lanes);
      b.exponentials = memory;
      b.most = memory + taps * block;
      b.sum = b.most + block;
      run_softmax_band(b);
    }
  });
}

}  // namespace mmext::cpu
