// Runs the CPU kernels on random geometries against plain loops, without torch, so that sanitizers can watch them:
//
//   g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi -Wno-ignored-attributes
//       cuda_ops/cpu/fuzz.cpp -o build/fuzz && build/fuzz
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>

namespace at {
template <typename T>
using opmath_type = T;
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) {
  f(begin, end);
}
}  // namespace at
#define TORCH_CHECK(condition, ...) \
  if (!(condition)) std::abort()

#include "drive.h"

using namespace mmext;

namespace {

std::mt19937 source_of_chance(1);

int64_t between(int64_t low, int64_t high) { return low + int64_t(source_of_chance() % (high - low + 1)); }

std::unique_ptr<float[]> numbers(int64_t n) {   // exactly n, so that a step outside is seen
  std::unique_ptr<float[]> p(new float[n]);
  for (int64_t i = 0; i < n; ++i) p[i] = float(between(-1000, 1000)) / 1000;
  return p;
}

Axis random_axis(bool shift) {
  Axis a{};
  a.kernel = shift ? 2 * between(0, 3) + 1 : between(1, 6);
  a.dilation = between(1, 3);
  a.stride = shift ? 1 : between(1, 3);
  a.padding = between(0, 5);
  a.source = between(shift ? a.dilation * a.kernel : 1, 45);
  const int64_t room = a.source + 2 * a.padding - a.dilation * (a.kernel - 1) - 1;
  a.output = shift ? a.source : room < 0 ? 0 : room / a.stride + 1;
  return a;
}

double worst(const std::vector<double>& exact, const float* got) {
  double error = 0;
  for (size_t i = 0; i < exact.size(); ++i) error = std::max(error, std::abs(exact[i] - got[i]));
  return error;
}

}  // namespace

int main() {
  double error = 0;
  int done = 0;
  for (int trial = 0; trial < 1500; ++trial) {
    const bool shift = between(0, 2) == 0;
    Geometry g{between(1, 2), 0, between(1, 3), random_axis(shift), random_axis(shift), shift, between(0, 1) == 1};
    if (g.y.output == 0 || g.x.output == 0) continue;
    g.channels = g.groups * between(1, trial % 50 == 0 ? 70 : 9);
    const int64_t out_plane = g.y.output * g.x.output, value_plane = g.y.source * g.x.source;
    const int64_t n_value = g.batch * g.channels * value_plane, n_out = g.batch * g.channels * out_plane;
    const int64_t n_weight = g.batch * g.groups * g.taps() * out_plane;
    const auto v = numbers(n_value), w = numbers(n_weight), z = numbers(n_out);
    const auto out = numbers(n_out), sent = numbers(n_value), logits = numbers(n_weight);
    cpu::aggregate<float>(g, v.get(), w.get(), n_weight / g.batch, out.get(), false);
    cpu::aggregate<float>(g, z.get(), w.get(), n_weight / g.batch, sent.get(), true);
    cpu::correlate<float>(g, z.get(), v.get(), logits.get());

    std::vector<double> exact_out(n_out), exact_sent(n_value), exact_logits(n_weight);
    for (int64_t b = 0; b < g.batch; ++b)
      for (int64_t group = 0; group < g.groups; ++group)
        for (int64_t j = 0; j < g.per_group(); ++j)
          for (int64_t o = 0; o < out_plane; ++o)
            for (int64_t k = 0; k < g.taps(); ++k) {
              const int64_t i = tap_position(g.y, o / g.x.output, k / g.x.kernel, shift);
              const int64_t x = tap_position(g.x, o % g.x.output, k % g.x.kernel, shift);
              if (i < 0 || x < 0) continue;
              const int64_t channel = b * g.channels + g.channel(group, j);
              const int64_t at_w = ((b * g.groups + group) * g.taps() + k) * out_plane + o;
              const int64_t at_v = channel * value_plane + i * g.x.source + x, at_o = channel * out_plane + o;
              exact_out[at_o] += double(w[at_w]) * v[at_v];
              exact_sent[at_v] += double(w[at_w]) * z[at_o];
              exact_logits[at_w] += double(z[at_o]) * v[at_v];
            }
    error = std::max({error, worst(exact_out, out.get()), worst(exact_sent, sent.get()), worst(exact_logits, logits.get())});
    ++done;
  }
  const char* names[] = {"baseline", "avx2", "avx512"};
  std::printf("%s: %d geometries, worst error %.2e\n", names[int(cpu::isa())], done, error);
  return error > 1e-4;
}
