// CUDA's words for one thread after another: kernels that never wait run as C++.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>

using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __ldg(p) (*(p))

struct Triple {
    unsigned x, y, z;
};
static thread_local Triple blockIdx, blockDim, threadIdx;

// Every thread of a grid, as a GPU numbers them.
template <class Kernel> void run(const unsigned *grid, const unsigned *block, Kernel kernel) {
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) kernel();
}
