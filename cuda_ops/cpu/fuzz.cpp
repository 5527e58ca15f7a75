// Runs the CPU kernels of every type on random geometries against plain loops (fuzz.h), without torch: `make native-asan`.
#include "../fuzz.h"

namespace at {
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) {
  f(begin, end);
}
}  // namespace at

#include "drive.h"

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

int main() {
  const char* names[] = {"baseline", "avx2", "avx512"};
  return !fuzz(names[int(cpu::isa())]);
}
