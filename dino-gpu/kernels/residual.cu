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

// One group of `crops` crops of `len` elements each, grid (ceil(len / 1024), crops or fewer), four elements a thread. x may be null:
// y = scale[crop] branch.
extern "C" __global__ void KERNEL(add_scaled)(act* __restrict__ y, const act* __restrict__ x, const act* __restrict__ branch,
    const float* __restrict__ scale, int crops, long long len) {
  long long at = FLAT() * 4;
  if (at >= len) return;
  int left = (int)(len - at < 4 ? len - at : 4);
  for (int crop = blockIdx.y; crop < crops; crop += gridDim.y) {
    long long here = crop * len + at;
    float a[4] = {}, b[4], s = scale[crop];
    load4(b, branch + here, 0, left);
    if (x) load4(a, x + here, 0, left);
    for (int i = 0; i < 4; i++) a[i] += s * b[i];
    store4(y + here, a, 0, left);
  }
}
REGISTER(KERNEL(add_scaled));

extern "C" __global__ void KERNEL(from_f32)(act* __restrict__ y, const float* __restrict__ x, long long n) {
  long long i = FLAT();
  if (i < n) put(y[i], x[i]);
}
REGISTER(KERNEL(from_f32));
