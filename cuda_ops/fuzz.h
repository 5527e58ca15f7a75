// What the kernels of every device are checked with, without torch and without the device, so that sanitizers can watch:
// random geometries, plain loops in float64, and 16-bit types by their definition.
//
// A program includes this before its kernels, defines `subject::aggregate` and `subject::correlate`, and calls `fuzz`.
// Outputs are full of NaN before each call: what a kernel leaves unwritten is an error of infinite size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "neighborhood.h"

namespace {

// A 16-bit type by its definition: `Fraction` bits behind the point, smallest exponent `Least`. Independent of the kernels'
// own conversions, which work on bits.
template <int Fraction, int Least>
struct Small {
  uint16_t bits;

  Small() = default;
  explicit Small(float f) : bits(uint16_t(std::signbit(f) << 15)) {
    const int width = 15 - Fraction, infinite = ((1 << width) - 1) << Fraction;
    if (std::isnan(f)) {
      bits = uint16_t(infinite | 1 << (Fraction - 1));
      return;
    }
    int exponent;
    std::frexp(f, &exponent);
    exponent = std::max(exponent - 1, Least);
    // In units of the last place; rounding up to the next power of two carries into the exponent, as it should.
    const double places = std::nearbyint(std::ldexp(std::fabs(double(f)), Fraction - exponent));
    const double code = f == 0 ? 0 : places + std::ldexp(double(exponent - Least), Fraction);
    bits = uint16_t(bits | (code >= infinite ? infinite : int(code)));
  }
  explicit operator float() const {
    const int exponent = (bits & 0x7fff) >> Fraction, fraction = bits & ((1 << Fraction) - 1), width = 15 - Fraction;
    const float sign = bits >> 15 ? -1.f : 1.f;
    if (exponent == (1 << width) - 1) return fraction ? std::numeric_limits<float>::quiet_NaN() : sign * INFINITY;
    if (exponent == 0) return sign * float(std::ldexp(double(fraction), Least - Fraction));
    return sign * float(std::ldexp(double(fraction + (1 << Fraction)), exponent - 1 + Least - Fraction));
  }
};
using Half = Small<10, -14>;
using BFloat16 = Small<7, -126>;

}  // namespace

namespace at {
template <typename T>
using opmath_type = std::conditional_t<sizeof(T) == 2, float, T>;
}  // namespace at
#define TORCH_CHECK(condition, ...) \
  if (!(condition)) std::abort()

using namespace mmext;

namespace subject {
// The operators under test; a weight batch of 0 means that one weight serves all images.
template <typename T>
void aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint);
template <typename T>
void correlate(const Geometry& g, const T* query, const T* key, T* out);
}  // namespace subject

namespace {

std::mt19937 source_of_chance(1);

int64_t between(int64_t low, int64_t high) { return low + int64_t(source_of_chance() % (high - low + 1)); }

template <typename T>
double exactly(T number) { return double(at::opmath_type<T>(number)); }

template <typename T>
std::vector<double> exactly(const std::unique_ptr<T[]>& numbers, int64_t n) {
  std::vector<double> all(n);
  for (int64_t i = 0; i < n; ++i) all[i] = exactly(numbers[i]);
  return all;
}

template <typename T>
std::unique_ptr<T[]> numbers(int64_t n) {   // exactly n, so that a step outside is seen
  std::unique_ptr<T[]> p(new T[n]);
  for (int64_t i = 0; i < n; ++i) p[i] = T(float(between(-1000, 1000)) / 1000);
  return p;
}

template <typename T>
std::unique_ptr<T[]> unwritten(int64_t n) {
  std::unique_ptr<T[]> p(new T[n]);
  for (int64_t i = 0; i < n; ++i) p[i] = T(std::numeric_limits<float>::quiet_NaN());
  return p;
}

Axis random_axis(bool shift) {
  Axis a{};
  a.kernel = shift ? 2 * between(0, 3) + 1 : between(1, 6);
  a.dilation = between(1, 3);
  a.stride = shift ? 1 : between(1, 3);
  a.padding = between(0, 7) ? between(0, 5) : between(6, 40);   // much padding: whole tiles see nothing
  a.source = between(shift ? a.dilation * a.kernel : 1, 45);
  if (!shift && between(0, 5) == 0) {   // taps or windows far beyond the image, which must cost nothing
    const int64_t far[] = {50, 100'000'000, (int64_t(1) << 31) - 1};
    const bool windows = between(0, 1);
    (windows ? a.stride : a.dilation) = far[between(0, windows ? 2 : 1)];
    const int64_t reach = (between(1, windows ? 3 : 30) - 1) * a.stride + a.dilation * (a.kernel - 1) + 1;
    a.padding = std::max<int64_t>(0, (reach - a.source + 1) / 2) + between(0, 1);
  }
  const int64_t room = a.source + 2 * a.padding - a.dilation * (a.kernel - 1) - 1;
  a.output = shift ? a.source : room < 0 ? 0 : room / a.stride + 1;
  return a;
}

// The largest error against `exact`, relative where the result is above one; not a number counts as infinite.
template <typename T>
double worst(const std::vector<double>& exact, const T* got) {
  double error = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double off = std::abs(exact[i] - exactly(got[i])) / std::max(1.0, std::abs(exact[i]));
    error = off <= error ? error : std::isnan(off) ? INFINITY : off;
  }
  return error;
}

template <typename T>
double error_of(const Geometry& g) {
  const int64_t out_plane = g.y.output * g.x.output, value_plane = g.y.source * g.x.source;
  const int64_t n_value = g.batch * g.channels * value_plane, n_out = g.batch * g.channels * out_plane;
  const int64_t image_weights = g.groups * g.taps() * out_plane, n_logits = g.batch * image_weights;
  const int64_t weight_batch = between(0, 3) ? image_weights : 0;
  const auto v = numbers<T>(n_value), w = numbers<T>(weight_batch ? n_logits : image_weights), z = numbers<T>(n_out);
  const auto out = unwritten<T>(n_out), sent = unwritten<T>(n_value), logits = unwritten<T>(n_logits);
  subject::aggregate<T>(g, v.get(), w.get(), weight_batch, out.get(), false);
  subject::aggregate<T>(g, z.get(), w.get(), weight_batch, sent.get(), true);
  subject::correlate<T>(g, z.get(), v.get(), logits.get());

  const auto value = exactly(v, n_value), grad = exactly(z, n_out), weight = exactly(w, weight_batch ? n_logits : image_weights);
  std::vector<double> exact_out(n_out), exact_sent(n_value), exact_logits(n_logits);
  for (int64_t b = 0; b < g.batch; ++b)
    for (int64_t group = 0; group < g.groups; ++group)
      for (int64_t j = 0; j < g.per_group(); ++j)
        for (int64_t o = 0; o < out_plane; ++o)
          for (int64_t k = 0; k < g.taps(); ++k) {
            const int64_t i = tap_position(g.y, o / g.x.output, k / g.x.kernel, g.shift);
            const int64_t x = tap_position(g.x, o % g.x.output, k % g.x.kernel, g.shift);
            if (i < 0 || x < 0) continue;
            const int64_t channel = b * g.channels + g.channel(group, j);
            const int64_t at_image = (group * g.taps() + k) * out_plane + o, at_w = b * weight_batch + at_image;
            const int64_t at_v = channel * value_plane + i * g.x.source + x, at_o = channel * out_plane + o;
            exact_out[at_o] += weight[at_w] * value[at_v];
            exact_sent[at_v] += weight[at_w] * grad[at_o];
            exact_logits[b * image_weights + at_image] += grad[at_o] * value[at_v];
          }
  return std::max({worst(exact_out, out.get()), worst(exact_sent, sent.get()), worst(exact_logits, logits.get())});
}

// Whether every operator is right in every type; `name` says what ran.
bool fuzz(const char* name, int trials = 2000) {
  struct {
    const char* name;
    double (*error_of)(const Geometry&);
    double most, error;
  } types[] = {{"float", error_of<float>, 1e-5, 0},
               {"double", error_of<double>, 1e-13, 0},
               {"half", error_of<Half>, 6e-4, 0},
               {"bfloat16", error_of<BFloat16>, 5e-3, 0}};
  int done = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const bool shift = between(0, 2) == 0;
    Geometry g{between(1, 2), 0, between(1, 3), random_axis(shift), random_axis(shift), shift, between(0, 1) == 1};
    if (g.y.output == 0 || g.x.output == 0) continue;
    g.channels = g.groups * between(1, trial % 50 == 0 ? 70 : 9);
    auto& type = types[trial % 4];
    type.error = std::max(type.error, type.error_of(g));
    ++done;
  }
  std::printf("%s: %d geometries, worst errors", name, done);
  bool good = true;
  for (const auto& type : types) {
    std::printf("  %s %.1e", type.name, type.error);
    good = good && type.error <= type.most;
  }
  std::printf("%s\n", good ? "" : "  TOO LARGE");
  return good;
}

}  // namespace
