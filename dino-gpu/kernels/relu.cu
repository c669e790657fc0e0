// y = max(x, 0), NaN stays; dx = dy where x > 0.  dino-kernel/src/ops/relu.rs

// Four elements a thread.
extern "C" __global__ void KERNEL(relu)(act* __restrict__ y, const act* __restrict__ x, long long n) {
  long long at = FLAT() * 4;
  if (at >= n) return;
  int left = (int)(n - at < 4 ? n - at : 4);
  float v[4];
  load4(v, x + at, 0, left);
  for (int i = 0; i < 4; i++) v[i] = v[i] <= 0 ? 0 : v[i];
  store4(y + at, v, 0, left);
}
REGISTER(KERNEL(relu));

extern "C" __global__ void KERNEL(relu_backward)(act* __restrict__ dx, const act* __restrict__ dy, const act* __restrict__ x, long long n) {
  long long at = FLAT() * 4;
  if (at >= n) return;
  int left = (int)(n - at < 4 ? n - at : 4);
  float g[4], v[4];
  load4(g, dy + at, 0, left);
  load4(v, x + at, 0, left);
  for (int i = 0; i < 4; i++) g[i] = v[i] <= 0 ? 0 : g[i];
  store4(dx + at, g, 0, left);
}
REGISTER(KERNEL(relu_backward));
