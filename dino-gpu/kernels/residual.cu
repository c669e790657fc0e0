// y = x + branch; under stochastic depth y = x + scale[crop] branch; scale alone for the branch's gradient; and the plain
// conversions between f32 and activations.  dino-kernel/src/ops/residual.rs

// Four elements a thread.
extern "C" __global__ void KERNEL(add)(act* __restrict__ y, const act* __restrict__ x, const act* __restrict__ branch, long long n) {
  long long at = FLAT() * 4;
  if (at >= n) return;
  int left = (int)(n - at < 4 ? n - at : 4);
  float a[4], b[4];
  load4(a, x + at, 0, left);
  load4(b, branch + at, 0, left);
  for (int i = 0; i < 4; i++) a[i] += b[i];
  store4(y + at, a, 0, left);
}
REGISTER(KERNEL(add));

// One group of crops, `crop` = tokens * cols elements each. x may be null: y = scale[crop] branch.
extern "C" __global__ void KERNEL(add_scaled)(act* __restrict__ y, const act* __restrict__ x, const act* __restrict__ branch,
    const float* __restrict__ scale, long long n, int crop) {
  long long i = FLAT();
  if (i >= n) return;
  float s = scale[i / crop] * get(branch[i]);
  put(y[i], x ? get(x[i]) + s : s);
}
REGISTER(KERNEL(add_scaled));

extern "C" __global__ void KERNEL(from_f32)(act* __restrict__ y, const float* __restrict__ x, long long n) {
  long long i = FLAT();
  if (i < n) put(y[i], x[i]);
}
REGISTER(KERNEL(from_f32));
