// The center of the teacher's logits, and sums for the monitor. dino-kernel/src/ops/loss.rs

// center += rate (mean - center), mean[k] = (sum . v_k) scale_k / rows; one warp a prototype.
extern "C" __global__ void commit_center(float* __restrict__ center, const float* __restrict__ sum, const float* __restrict__ v,
    const float* __restrict__ scale, const float* __restrict__ monitor, const float* __restrict__ hyper, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows || monitor[FINITE] != 1.f) return;
  float s = 0;
  for (int c = LANE(); c < cols; c += 32) s += sum[c] * v[row * cols + c];
  s = warp_sum(s);
  if (LANE() == 0) center[row] += hyper[CENTER_RATE] * (s * scale[row] * hyper[INV_TEACHER_ROWS] - center[row]);
}
REGISTER(commit_center);

// One block of 256: the center's norm, for the monitor.
extern "C" __global__ void center_norm(float* __restrict__ monitor, const float* __restrict__ center, int n) {
  __shared__ double part[256];
  if (monitor[FINITE] != 1.f) return;
  double s = 0;
  for (int i = threadIdx.x; i < n; i += 256) s += (double)center[i] * center[i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) monitor[CENTER_NORM] = (float)sqrt(s);
}
REGISTER(center_norm);

// One block of 256: sum[0] += the sum of x.
extern "C" __global__ void sum_stat(float* __restrict__ sum, const float* __restrict__ x, int n) {
  __shared__ double part[256];
  double s = 0;
  for (int i = threadIdx.x; i < n; i += 256) s += x[i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) sum[0] += (float)s;
}
REGISTER(sum_stat);
