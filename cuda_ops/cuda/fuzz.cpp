// Runs the device code of every type on random geometries against plain loops (fuzz.h), as C++: `make native-cuda-emulate`.
#include "../fuzz.h"

#include "emulate.h"
#include "neighborhood_cuda_launch.cuh"

namespace {

// Calls by form: 64-bit indices, 32-bit ones, and those with two columns a lane.
int wide_calls = 0, narrow_calls = 0, paired_calls = 0;

template <typename T>
bool choose_index(const Geometry& g, std::initializer_list<const T*> tensors) {
  const bool is_wide = cuda::wide(g) || between(0, 2) == 0;
  ++(is_wide ? wide_calls : cuda::paired<T>(g, is_wide, tensors) ? paired_calls : narrow_calls);
  return is_wide;
}

}  // namespace

template <typename T>
void subject::aggregate(const Geometry& g, const T* source, const T* weight, int64_t weight_batch, T* out, bool adjoint) {
  cuda::aggregate<T>(g, source, weight, weight_batch, out, adjoint, choose_index<T>(g, {source, weight, out}));
}

template <typename T>
void subject::correlate(const Geometry& g, const T* query, const T* key, T* out) {
  cuda::correlate<T>(g, query, key, out, choose_index<T>(g, {query, key, out}));
}

int main(int count, char** arguments) {
  const bool good = fuzz("emulated CUDA", count > 1 ? std::atoi(arguments[1]) : 2000);
  std::printf("  calls: %d with 64-bit indices, %d with 32-bit ones, %d with two columns a lane\n", wide_calls, narrow_calls,
              paired_calls);
  return !(good && wide_calls > 0 && narrow_calls > 0 && paired_calls > 0);
}
