// Runs the CPU kernels of every type on random geometries against plain loops (fuzz.h), without torch: `make native-asan`.
#include "../fuzz.h"

namespace at {
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) {
  f(begin, end);
}
}  // namespace at

#include "drive.h"
#include "softmax.h"

template <>
constexpr cpu::Bits cpu::bits_of<Half> = cpu::Bits::half;
template <>
constexpr cpu::Bits cpu::bits_of<BFloat16> = cpu::Bits::bfloat16;

template <typename T>
void subject::aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint) {
  cpu::aggregate<T>(g, source, weight, weight_batch, out, adjoint);
}

template <typename T>
void subject::correlate(const Geometry& g, const T* query, const T* key, T* out) {
  cpu::correlate<T>(g, query, key, out);
}

namespace {

// The largest error of a softmax over random taps, with and without a bias that hides some of them.
template <typename T>
double softmax_error() {
  using Acc = at::opmath_type<T>;
  const int64_t rows = between(1, 3), taps = between(1, 60), plane = between(1, 400), n = rows * taps * plane;
  const auto logits = numbers<T>(n);
  const auto bias = numbers<Acc>(taps * plane);
  const auto out = unwritten<T>(n);
  const bool biased = between(0, 1);
  for (int64_t i = 0; i < taps * plane; ++i) bias[i] = between(0, 3) ? bias[i] * 20 : Acc(-1e30);
  cpu::softmax<T>(logits.get(), biased ? bias.get() : nullptr, out.get(), rows, taps, plane);
  std::vector<double> exact(n);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < plane; ++o) {
      const auto place = [&](int64_t k) { return (row * taps + k) * plane + o; };
      const auto logit = [&](int64_t k) { return exactly(logits[place(k)]) + (biased ? double(bias[k * plane + o]) : 0); };
      double most = -INFINITY, sum = 0;
      for (int64_t k = 0; k < taps; ++k) most = std::max(most, logit(k));
      for (int64_t k = 0; k < taps; ++k) sum += exact[place(k)] = std::exp(logit(k) - most);
      for (int64_t k = 0; k < taps; ++k) exact[place(k)] /= sum;
    }
  return worst(exact, out.get());
}

bool fuzz_softmax() {
  double errors[4] = {};
  for (int trial = 0; trial < 100; ++trial) {
    const double found[] = {softmax_error<float>(), softmax_error<double>(), softmax_error<Half>(), softmax_error<BFloat16>()};
    for (int i = 0; i < 4; ++i) errors[i] = found[i] <= errors[i] ? errors[i] : found[i];
  }
  const bool good = errors[0] <= 3e-6 && errors[1] <= 1e-14 && errors[2] <= 6e-4 && errors[3] <= 5e-3;
  std::printf("  softmax, worst errors  float %.1e  double %.1e  half %.1e  bfloat16 %.1e%s\n", errors[0], errors[1], errors[2],
              errors[3], good ? "" : "  TOO LARGE");
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  const char* names[] = {"baseline", "avx2", "avx512"};
  const bool good = fuzz(names[int(cpu::isa())], count > 1 ? std::atoi(arguments[1]) : 2000);
  return !(fuzz_softmax() && good);
}
