// CPU implementation of the messages from row to row; the operator and its derivatives are in mmext/ops/row_messages.py.
//
// A row's convolution is a Toom-Cook product, as Winograd's: three pixels and three taps make five products instead of nine.
// Longer kernels are cut into parts of three taps, whose windows lie one tile further each. So the parts of a tile are one
// long dot product, and a row is five matrix products. The points are 0, 1, -1, 2 and infinity.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "isa.h"

namespace mmext {
namespace cpu {

constexpr int kTile = 3, kPart = 3, kPoints = kTile + kPart - 1;

// The row that speaks: what it has and what it was told, where a gate lets it pass.
template <typename T, typename Acc>
struct SpeakBand {
  const T* own;
  const T* told;
  const T* gate;   // or nothing
  Acc* out;
  int64_t count;
};

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void speak_band(const SpeakBand<T, Acc>& b) {
  const T* const __restrict own = b.own;
  const T* const __restrict told = b.told;
  const T* const __restrict gate = b.gate;
  Acc* const __restrict out = b.out;
  if (gate == nullptr)
    for (int64_t i = 0; i < b.count; ++i) out[i] = own[i] + told[i];
  else
    for (int64_t i = 0; i < b.count; ++i) out[i] = gate[i] > 0 ? own[i] + told[i] : T(0);
}

// The windows of the tiles of an image's row, at the points.
template <typename T, typename Acc>
struct SpreadBand {
  const T* row;     // padded: (tiles + parts - 1) * kTile + kPart - 1 pixels of `channels`
  Acc* out;         // (tiles, parts * channels) of the first point
  int64_t channels, tiles, parts;
  int64_t point;    // from a point to the next one
};

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void spread_band(const SpreadBand<T, Acc>& b) {
  const int64_t n = b.channels;
  for (int64_t t = 0; t < b.tiles; ++t)
    for (int64_t g = 0; g < b.parts; ++g) {
      const T* const __restrict d = b.row + (t + g) * kTile * n;
      Acc* const out = b.out + (t * b.parts + g) * n;
      Acc* const __restrict out0 = out;
      Acc* const __restrict out1 = out + b.point;
      Acc* const __restrict out2 = out + 2 * b.point;
      Acc* const __restrict out3 = out + 3 * b.point;
      Acc* const __restrict out4 = out + 4 * b.point;
      for (int64_t c = 0; c < n; ++c) {
        const Acc d0 = d[c], d1 = d[c + n], d2 = d[c + 2 * n], d3 = d[c + 3 * n], d4 = d[c + 4 * n];
        const Acc odd = d3 - d1, even = d3 - d2;
        out0[c] = 2 * (d0 - d2) + odd;
        out1[c] = even - 2 * d1;
        out2[c] = even - 2 * (d2 - d1);
        out3[c] = odd;
        out4[c] = d4 - d2 - 2 * odd;
      }
    }
}

// The pixels of an image's row from its products at the points.
template <typename T, typename Acc>
struct GatherBand {
  const T* products;   // (tiles, channels) of the first point
  const T* bias;       // or nothing
  Acc* out;            // (width, channels)
  int64_t channels, width;
  int64_t point;       // from a point to the next one
  bool rectify;
};

template <int Bytes, typename T, typename Acc>
MMEXT_INLINE void gather_band(const GatherBand<T, Acc>& b) {
  const int64_t n = b.channels;
  const Acc least = b.rectify ? Acc(0) : -std::numeric_limits<Acc>::infinity();
  for (int64_t x = 0; x < b.width; ++x) {
    const T* const __restrict zero = b.products + x / kTile * n;
    const T* const __restrict one = zero + b.point;
    const T* const __restrict minus = one + b.point;
    const T* const __restrict two = minus + b.point;
    const T* const __restrict end = two + b.point;
    const T* const __restrict bias = b.bias;
    Acc* const __restrict out = b.out + x * n;
    switch (x % kTile) {
      case 0:
        for (int64_t c = 0; c < n; ++c) out[c] = zero[c] + one[c] + minus[c] + two[c];
        break;
      case 1:
        for (int64_t c = 0; c < n; ++c) out[c] = one[c] - minus[c] + 2 * two[c];
        break;
      default:
        for (int64_t c = 0; c < n; ++c) out[c] = one[c] + minus[c] + 4 * two[c] + end[c];
    }
    if (bias != nullptr)
      for (int64_t c = 0; c < n; ++c) out[c] += bias[c];
    // What is not a number passes, as through torch's own.
    for (int64_t c = 0; c < n; ++c) out[c] = out[c] < least ? least : out[c];
  }
}

MMEXT_MULTIVERSION(speak_band, SpeakBand)
MMEXT_MULTIVERSION(spread_band, SpreadBand)
MMEXT_MULTIVERSION(gather_band, GatherBand)

}  // namespace cpu

namespace {

// The kernel (C, C, k) at the points: (kPoints, parts * C, C). Where the last part is short, its taps are zero.
template <typename T>
void at_points(const T* kernel, int64_t channels, int64_t taps, int64_t parts, T* to) {
  const int64_t point = parts * channels * channels;
  for (int64_t from = 0; from < channels; ++from)
    for (int64_t g = 0; g < parts; ++g) {
      T* const out = to + (g * channels + from) * channels;
      const int64_t left = taps - g * cpu::kPart;
      for (int64_t c = 0; c < channels; ++c) {
        const T* const tap = kernel + (c * channels + from) * taps + g * cpu::kPart;
        const T first = tap[0], second = left > 1 ? tap[1] : T(0), third = left > 2 ? tap[2] : T(0), ends = first + third;
        out[c] = first / 2;
        out[c + point] = (ends + second) / -2;
        out[c + 2 * point] = (second - ends) / 6;
        out[c + 3 * point] = (first + 2 * second + 4 * third) / 6;
        out[c + 4 * point] = third;
      }
    }
}

// out_0 = 0, out_i = K * (rows_{i-1} + out_{i-1}) + b, rectified; with a gate, only what is above zero there speaks, and
// nothing is rectified. Rows are (L, N, W, C), the kernel is (C, C, k).
at::Tensor recurrence(const at::Tensor& rows, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& gate, bool reverse) {
  TORCH_CHECK_VALUE(rows.dim() == 4 && weight.dim() == 3 && weight.size(0) == rows.size(3) && weight.size(1) == rows.size(3) &&
                        weight.size(2) % 2 == 1,
                    "mmext: rows (L, N, W, C) need a kernel (C, C, k) with k odd, got ", rows.sizes(), " and ", weight.sizes());
  TORCH_CHECK_VALUE(rows.scalar_type() == weight.scalar_type() && (!bias || bias->scalar_type() == rows.scalar_type()) &&
                        (!gate || gate->scalar_type() == rows.scalar_type()),
                    "mmext: rows, kernel, bias and gate must be of one type");
  TORCH_CHECK_VALUE((!bias || (bias->dim() == 1 && bias->size(0) == rows.size(3))) && (!gate || gate->sizes() == rows.sizes()),
                    "mmext: the bias must be (C,), and the gate of the rows' shape ", rows.sizes());
  const int64_t length = rows.size(0), images = rows.size(1), width = rows.size(2), channels = rows.size(3);
  at::Tensor out = at::empty(rows.sizes(), rows.options(), at::MemoryFormat::Contiguous);
  if (out.numel() == 0) return out;
  out.select(0, reverse ? length - 1 : 0).zero_();
  const at::Tensor own = rows.contiguous(), passing = gate ? gate->contiguous() : at::Tensor(),
                   added = bias ? bias->contiguous() : at::Tensor(), taps = weight.contiguous();
  const int64_t parts = (taps.size(2) + cpu::kPart - 1) / cpu::kPart, tiles = (width + cpu::kTile - 1) / cpu::kTile;
  const int64_t room = (tiles + parts - 1) * cpu::kTile + cpu::kPart - 1, border = taps.size(2) / 2;
  at::Tensor kernel = at::empty({cpu::kPoints, parts * channels, channels}, rows.options());
  at::Tensor padded = at::zeros({images, room, channels}, rows.options());
  at::Tensor spread = at::empty({cpu::kPoints, images * tiles, parts * channels}, rows.options());
  at::Tensor products = at::empty({cpu::kPoints, images * tiles, channels}, rows.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "row_messages", [&] {
    at_points(taps.const_data_ptr<scalar_t>(), channels, taps.size(2), parts, kernel.mutable_data_ptr<scalar_t>());
    const int64_t size = width * channels, step = reverse ? -images * size : images * size;
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    int64_t at = reverse ? (length - 1) * images * size : 0;
    for (int64_t row = 1; row < length; ++row, at += step) {
      for (int64_t n = 0; n < images; ++n) {
        scalar_t* const line = padded.mutable_data_ptr<scalar_t>() + n * room * channels;
        const int64_t here = at + n * size;
        cpu::run_speak_band(cpu::SpeakBand<scalar_t, scalar_t>{
            own.const_data_ptr<scalar_t>() + here, to + here,
            passing.defined() ? passing.const_data_ptr<scalar_t>() + here : nullptr, line + border * channels, size});
        cpu::run_spread_band(cpu::SpreadBand<scalar_t, scalar_t>{
            line, spread.mutable_data_ptr<scalar_t>() + n * tiles * parts * channels, channels, tiles, parts, spread.stride(0)});
      }
      at::bmm_out(products, spread, kernel);
      for (int64_t n = 0; n < images; ++n)
        cpu::run_gather_band(cpu::GatherBand<scalar_t, scalar_t>{
            products.const_data_ptr<scalar_t>() + n * tiles * channels,
            added.defined() ? added.const_data_ptr<scalar_t>() : nullptr, to + at + step + n * size, channels, width,
            products.stride(0), !passing.defined()});
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmext, m) {
  m.def("row_recurrence(Tensor rows, Tensor weight, Tensor? bias, Tensor? gate, bool reverse) -> Tensor");
}
TORCH_LIBRARY_IMPL(mmext, CPU, m) { m.impl("row_recurrence", recurrence); }

}  // namespace mmext
