// y = x Phi(x), exact; dx = dy (Phi(x) + x phi(x)).  dino-kernel/src/ops/gelu.rs
#ifndef GELU_ONCE
#define GELU_ONCE
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_of(float x) { return x * normal_cdf(x); }
#endif

// Four elements a thread.
extern "C" __global__ void KERNEL(gelu)(act* __restrict__ y, const act* __restrict__ x, long long n) {
  long long at = FLAT() * 4;
  if (at >= n) return;
  int left = (int)(n - at < 4 ? n - at : 4);
  float v[4];
  load4(v, x + at, 0, left);
  for (int i = 0; i < 4; i++) v[i] = gelu_of(v[i]);
  store4(y + at, v, 0, left);
}
REGISTER(KERNEL(gelu));

extern "C" __global__ void KERNEL(gelu_backward)(act* __restrict__ dx, const act* __restrict__ dy, const act* __restrict__ x, long long n) {
  long long at = FLAT() * 4;
  if (at >= n) return;
  int left = (int)(n - at < 4 ? n - at : 4);
  float g[4], v[4];
  load4(g, dy + at, 0, left);
  load4(v, x + at, 0, left);
  for (int i = 0; i < 4; i++) g[i] *= normal_cdf(v[i]) + v[i] * expf(-0.5f * v[i] * v[i]) * 0.39894228040143268f;
  store4(dx + at, g, 0, left);
}
REGISTER(KERNEL(gelu_backward));
