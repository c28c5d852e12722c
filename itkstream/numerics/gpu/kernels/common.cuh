// What the kernels share; it is put in front of each file of them.
//
// Images are (nx, ny, nz) arrays, the last axis next to each other in memory, and NaN marks voxels
// that do not count. Fields are (na, nb, nc, 3). A plane is an image of one plane along axis 0.
//
// No two threads write to one place, none waits for another, and sums have one order: results
// repeat bit for bit. Every kernel is also C++ for one thread at a time, which is how they are
// tested where there is no GPU.

typedef unsigned char Bits8;
typedef unsigned short Bits16;
typedef unsigned int Bits32;
typedef unsigned long long Bits64;

__device__ __forceinline__ int at_x() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int at_y() { return blockIdx.y * blockDim.y + threadIdx.y; }
__device__ __forceinline__ int at_z() { return blockIdx.z * blockDim.z + threadIdx.z; }
