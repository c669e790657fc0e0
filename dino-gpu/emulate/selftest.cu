// Kernels for selftest.cpp: one for each thing that the emulation promises.
#include "../kernels/ptx.cuh"

extern "C" __global__ void add(float* p, float v, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) p[i] += v;
}
CPU_KERNEL(add);

extern "C" __global__ void scale(const float* in, float* out, float f, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i] * f;
}
CPU_KERNEL(scale);

extern "C" __global__ void poke(float* p, long long at, float v) { p[at] = v; }
CPU_KERNEL(poke);

struct Sizes { long long rows; int cols; float* where; };
extern "C" __global__ void structure(char a, Sizes s, short b, double c) { *s.where = (float)(s.rows + s.cols + a + b + c); }
CPU_KERNEL(structure);

#define TEN(p) int p##0, int p##1, int p##2, int p##3, int p##4, int p##5, int p##6, int p##7, int p##8, int p##9
#define SUM(p) (p##0 + p##1 + p##2 + p##3 + p##4 + p##5 + p##6 + p##7 + p##8 + p##9)
extern "C" __global__ void forty_one(int* out, TEN(a), TEN(b), TEN(c), TEN(d)) { *out = SUM(a) + 10 * SUM(b) + 100 * SUM(c) + 1000 * SUM(d); }
CPU_KERNEL(forty_one);

// Shared memory nobody wrote, of a plain function, an inline one, a template and the launch.
template <int N> __device__ float shared_in_template() {
  __shared__ __align__(16) float p[N];
  float v = p[N - 1];
  p[N - 1] = 1;
  return v;
}
__device__ inline float shared_in_inline() {
  __shared__ float p[3];
  float v = p[1];
  p[1] = 1;
  return v;
}
extern "C" __global__ void unwritten(float* out) {
  __shared__ float p[5];
  DYNAMIC_SHARED(float, q);
  float* o = out + blockIdx.x * 4;
  o[0] = p[2], o[1] = shared_in_inline(), o[2] = shared_in_template<7>(), o[3] = q[9];
  p[2] = q[9] = 1;
}
CPU_KERNEL(unwritten);

extern "C" __global__ void overrun(int floats) {
  DYNAMIC_SHARED(float, q);
  q[floats] = 1;
}
CPU_KERNEL(overrun);

// Sums of a block over and over through one array; with BARRIERS 1 the one that keeps the array until all have read it
// is missing, with 0 the one before reading as well.
template <int BARRIERS> __device__ void sums(float* out, int rounds) {
  __shared__ float part[32];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float total = 0;
  for (int r = 0; r < rounds; r++) {
    float v = (float)(threadIdx.x % 7 + r);
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (BARRIERS >= 2) __syncthreads();
    if (lane == 0) part[warp] = v;
    if (BARRIERS >= 1) __syncthreads();
    for (int w = 0; w < blockDim.x / 32; w++) total += part[w];
  }
  out[threadIdx.x] = total;
}
extern "C" __global__ void sums_right(float* out, int rounds) { sums<2>(out, rounds); }
CPU_KERNEL(sums_right);
extern "C" __global__ void sums_reused_early(float* out, int rounds) { sums<1>(out, rounds); }
CPU_KERNEL(sums_reused_early);
extern "C" __global__ void sums_read_early(float* out, int rounds) { sums<0>(out, rounds); }
CPU_KERNEL(sums_read_early);

extern "C" __global__ void copies(const float* in, float* out, int wait) {
  __shared__ __align__(16) float p[128];
  cp_async16(&p[threadIdx.x * 4], &in[threadIdx.x * 4]);
  cp_commit();
  if (wait) cp_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = p[threadIdx.x * 4 + i];
}
CPU_KERNEL(copies);

extern "C" __global__ void warp_operations(int* bad) {
  int l = threadIdx.x & 31, wrong = 0;
  wrong += __shfl_sync(~0u, l, 5) != 5;
  wrong += __shfl_xor_sync(~0u, l, 3) != (l ^ 3);
  wrong += __shfl_up_sync(~0u, l, 2) != (l < 2 ? l : l - 2);
  wrong += __shfl_down_sync(~0u, l, 4) != (l + 4 < 32 ? l + 4 : l);
  wrong += __shfl_sync(~0u, l, 1, 8) != (l & ~7) + 1;
  wrong += __ballot_sync(~0u, l & 1) != 0xaaaaaaaau;
  wrong += !__any_sync(~0u, l == 9) || __all_sync(~0u, l == 9) || !__all_sync(~0u, l < 32);
  // halves and a part of a warp, each by its own mask
  unsigned half = l < 16 ? 0xffffu : 0xffff0000u;
  for (int i = 0; i < 5; i++) wrong += __shfl_xor_sync(half, l + i, 1) != (l ^ 1) + i;
  if (l < 5) wrong += __ballot_sync(0x1fu, 1) != 0x1fu;
  __syncwarp();
  wrong += __syncthreads_count(l == 0) != blockDim.x / 32;
  wrong += __syncthreads_or(threadIdx.x == 40) != 1 || __syncthreads_and(threadIdx.x == 40) != 0;
  atomicAdd(bad, wrong);
}
CPU_KERNEL(warp_operations);

extern "C" __global__ void partial_warp(float* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, 1.f, 16); }
CPU_KERNEL(partial_warp);

extern "C" __global__ void atomics(float* f, double* d, int* i, unsigned* u) {
  atomicAdd(f, 1.f), atomicAdd(d, 0.5), atomicAdd(i + 0, 1), atomicMax(i + 1, (int)threadIdx.x), atomicMin(i + 2, -(int)threadIdx.x);
  atomicInc(u, 1000000), atomicCAS(u + 1, 0u, threadIdx.x + 1);
}
CPU_KERNEL(atomics);

extern "C" __global__ void large_locals(float* out) {
  volatile float v[4096];
  for (int i = 0; i < 4096; i++) v[i] = (float)(i + threadIdx.x);
  __syncthreads();
  float s = 0;
  for (int i = 0; i < 4096; i++) s += v[i];
  out[threadIdx.x] = s;
}
CPU_KERNEL(large_locals);

extern "C" __global__ void stuck() {
  if (threadIdx.x < 32) __shfl_sync(~0u, 1, 0);
  if (threadIdx.x == 1) __syncthreads();
  else if (threadIdx.x < 32) __syncwarp();
}
CPU_KERNEL(stuck);

extern "C" __global__ void gives_up() { if (threadIdx.x == 3) __trap(); __syncthreads(); }
CPU_KERNEL(gives_up);
