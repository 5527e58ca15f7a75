// Stands in for CUDA: the device code compiled as C++, with a call for every thread. Nothing here knows the kernels.
#pragma once

#include <cstdint>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 blockIdx, blockDim, threadIdx;

namespace mmext::cuda {

template <typename... P>
void launch(void (*kernel)(P...), int64_t blocks, dim3 block, std::decay_t<P>... arguments) {
  blockDim = block;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
      for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(arguments...);
}

}  // namespace mmext::cuda
