// What every kernel file uses: the activation type, reductions in a fixed order, packed loads.
//
// The files of the ops are compiled twice, with `act` = float (the mode for tight agreement) and `act` = bf16 (the mode for speed);
// arithmetic, statistics, parameters and gradients of parameters are f32 in both. KERNEL(name) is name_f32 or name_bf16.
#pragma once
#ifndef CUDA_CPU
#include <cuda_bf16.h>
#include <stdint.h>
#endif
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

// Registers a kernel with the emulation, by the name that KERNEL() makes; nothing on a card.
#define REGISTER(name) CPU_KERNEL(name)

constexpr float FLOOR = 1e-12f;  // the published guard of the l2 normalization
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float get(float x) { return x; }
__device__ __forceinline__ float get(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float& y, float x) { y = x; }
__device__ __forceinline__ void put(bf16& y, float x) { y = __float2bfloat16(x); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(ALL, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    float w = __shfl_xor_sync(ALL, v, o);
    v = w > v || w != w ? w : v;  // a NaN wins, as it must show
  }
  return v;
}

// Of one value a thread, to all threads; the order depends on the block's size alone. `part` has 32 elements and may be reused at once.
__device__ __forceinline__ float block_sum(float v, float* part) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  v = warp_sum(v);
  if (lane == 0) part[warp] = v;
  __syncthreads();
  v = warp_sum(lane < warps ? part[lane] : 0.f);
  __syncthreads();
  return v;
}
__device__ __forceinline__ float block_max(float v, float* part) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  v = warp_max(v);
  if (lane == 0) part[warp] = v;
  __syncthreads();
  v = warp_max(lane < warps ? part[lane] : -INFINITY);
  __syncthreads();
  return v;
}

// The same in f64, in a block of a power of two of threads. `part` has an element a thread.
__device__ __forceinline__ double block_sum(double v, double* part) {
  part[threadIdx.x] = v;
  __syncthreads();
  for (int o = blockDim.x / 2; o; o >>= 1) {
    if (threadIdx.x < o) part[threadIdx.x] += part[threadIdx.x + o];
    __syncthreads();
  }
  double total = part[0];
  __syncthreads();
  return total;
}

// Four elements at `at` of a row of `cols`: packed where they are aligned, else one by one; zeros beyond the end.
template <class T> __device__ __forceinline__ bool packed(const T* p, int at, int cols) {
  return at + 4 <= cols && (size_t)(p + at) % (4 * sizeof(T)) == 0;
}
__device__ __forceinline__ void load4(float (&v)[4], const float* row, int at, int cols) {
  if (packed(row, at, cols)) {
    float4 p = *(const float4*)(row + at);
    v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w;
  } else {
    for (int i = 0; i < 4; i++) v[i] = at + i < cols ? row[at + i] : 0.f;
  }
}
__device__ __forceinline__ void load4(float (&v)[4], const bf16* row, int at, int cols) {
  if (packed(row, at, cols)) {
    uint2 p = *(const uint2*)(row + at);  // a bf16 is the upper half of an f32
    v[0] = __uint_as_float(p.x << 16), v[1] = __uint_as_float(p.x & 0xffff0000u);
    v[2] = __uint_as_float(p.y << 16), v[3] = __uint_as_float(p.y & 0xffff0000u);
  } else {
    for (int i = 0; i < 4; i++) v[i] = at + i < cols ? get(row[at + i]) : 0.f;
  }
}
__device__ __forceinline__ unsigned bits(float x) {
  bf16 h = __float2bfloat16(x);
  return *(const unsigned short*)&h;
}
__device__ __forceinline__ void store4(float* row, const float (&v)[4], int at, int cols) {
  if (packed(row, at, cols)) {
    *(float4*)(row + at) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    for (int i = 0; i < 4; i++)
      if (at + i < cols) row[at + i] = v[i];
  }
}
__device__ __forceinline__ void store4(bf16* row, const float (&v)[4], int at, int cols) {
  if (packed(row, at, cols)) {
    uint2 p;
    p.x = bits(v[0]) | bits(v[1]) << 16, p.y = bits(v[2]) | bits(v[3]) << 16;
    *(uint2*)(row + at) = p;
  } else {
    for (int i = 0; i < 4; i++)
      if (at + i < cols) put(row[at + i], v[i]);
  }
}

// The warp's row of a grid of one warp a row, and the lane.
#define WARP_ROW() ((long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5))
#define LANE() ((int)(threadIdx.x & 31))
// The thread's element of a flat grid.
#define FLAT() ((long long)blockIdx.x * blockDim.x + threadIdx.x)
