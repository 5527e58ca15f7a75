// One binary, three instruction sets: the kernels are compiled for each and chosen when the program runs.
//
// This is what `target_clones` does, written out because the vector length has to follow the instruction set: GCC splits a
// 64-byte vector badly on AVX2.
#pragma once

#include <cstdlib>
#include <string>

#include "kernels.h"

namespace mmext::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best that the processor has, or less where ATEN_CPU_CAPABILITY says so, as for torch's own kernels.
inline Isa isa() {
#if defined(__x86_64__)
  static const Isa found = [] {
    const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string most = wish ? wish : "avx512";
    if (most == "default") return Isa::baseline;
    __builtin_cpu_init();
    if (most != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::baseline;
  }();
  return found;
#else
  return Isa::baseline;
#endif
}

#if defined(__x86_64__)
// Clang does not know this preference, and would ignore the whole attribute for it.
#if defined(__clang__)
#define MMEXT_PREFER_512
#else
#define MMEXT_PREFER_512 ",prefer-vector-width=512"
#endif
#define MMEXT_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
#define MMEXT_TARGET_AVX512 __attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl" MMEXT_PREFER_512)))
#define MMEXT_MULTIVERSION(kernel, Band)                                                              \
  template <typename T, typename Acc>                                                                 \
  MMEXT_TARGET_AVX512 void kernel##_avx512(const Band<T, Acc>& b) { kernel<64>(b); }                  \
  template <typename T, typename Acc>                                                                 \
  MMEXT_TARGET_AVX2 void kernel##_avx2(const Band<T, Acc>& b) { kernel<32>(b); }                      \
  template <typename T, typename Acc>                                                                 \
  void run_##kernel(const Band<T, Acc>& b) {                                                          \
    switch (isa()) {                                                                                  \
      case Isa::avx512: return kernel##_avx512(b);                                                    \
      case Isa::avx2: return kernel##_avx2(b);                                                        \
      default: return kernel<16>(b);                                                                  \
    }                                                                                                 \
  }
#else
#define MMEXT_MULTIVERSION(kernel, Band)                                                              \
  template <typename T, typename Acc>                                                                 \
  void run_##kernel(const Band<T, Acc>& b) { kernel<16>(b); }
#endif

MMEXT_MULTIVERSION(aggregate_band, AggregateBand)
MMEXT_MULTIVERSION(correlate_band, CorrelateBand)

}  // namespace mmext::cpu
