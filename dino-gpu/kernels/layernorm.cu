// y = (x - mean) rstd w + b by row, two passes for the variance; dx_acc += rstd (g - mean(g) - x^ mean(g x^)), g = dy w.
// One warp a row.  dino-kernel/src/ops/layernorm.rs

#ifndef LAYERNORM_ONCE
#define LAYERNORM_ONCE
// Four elements of x, or of x + branch where there is one.
template <class T> __device__ __forceinline__ void load_sum(float (&v)[4], const T* x, const T* branch, int at, int cols) {
  load4(v, x, at, cols);
  if (branch) {
    float d[4];
    load4(d, branch, at, cols);
    for (int i = 0; i < 4; i++) v[i] += d[i];
  }
}
#endif

// With a branch, mid = x + branch is stored too; mean, variance and y are those of the sum before it is rounded to mid's type.
extern "C" __global__ void KERNEL(layernorm)(act* __restrict__ y, act* __restrict__ mid, float* __restrict__ mean, float* __restrict__ rstd,
    const act* __restrict__ x, const act* __restrict__ branch, const float* __restrict__ w, const float* __restrict__ b, int rows, int cols,
    float eps) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  int lane = LANE();
  x += row * cols, y += row * cols;
  if (branch) branch += row * cols, mid += row * cols;
  float v[4], s = 0;
  for (int c = lane * 4; c < cols; c += 128) {
    load_sum(v, x, branch, c, cols);
    for (int i = 0; i < 4; i++) s += v[i];
    if (branch) store4(mid, v, c, cols);
  }
  float mu = warp_sum(s) / cols, q = 0;
  for (int c = lane * 4; c < cols; c += 128) {
    load_sum(v, x, branch, c, cols);
    for (int i = 0; i < 4; i++)
      if (c + i < cols) q += (v[i] - mu) * (v[i] - mu);
  }
  float rs = 1.f / sqrtf(warp_sum(q) / cols + eps);
  for (int c = lane * 4; c < cols; c += 128) {
    float g[4], o[4];
    load_sum(v, x, branch, c, cols);
    load4(g, w, c, cols);
    load4(o, b, c, cols);
    for (int i = 0; i < 4; i++) v[i] = (v[i] - mu) * rs * g[i] + o[i];
    store4(y, v, c, cols);
  }
  if (lane == 0) mean[row] = mu, rstd[row] = rs;
}
REGISTER(KERNEL(layernorm));

extern "C" __global__ void KERNEL(layernorm_backward)(act* __restrict__ dx_acc, const act* __restrict__ dy, const act* __restrict__ x,
    const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ w, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  int lane = LANE();
  x += row * cols, dy += row * cols, dx_acc += row * cols;
  float mu = mean[row], rs = rstd[row], v[4], d[4], g[4], s = 0, sx = 0;
  for (int c = lane * 4; c < cols; c += 128) {
    load4(v, x, c, cols);
    load4(d, dy, c, cols);
    load4(g, w, c, cols);
    for (int i = 0; i < 4; i++) {
      float t = d[i] * g[i];  // zero beyond the end
      s += t, sx += t * (v[i] - mu) * rs;
    }
  }
  s = warp_sum(s) / cols, sx = warp_sum(sx) / cols;
  for (int c = lane * 4; c < cols; c += 128) {
    float a[4];
    load4(v, x, c, cols);
    load4(d, dy, c, cols);
    load4(g, w, c, cols);
    load4(a, dx_acc, c, cols);
    for (int i = 0; i < 4; i++) a[i] += (d[i] * g[i] - s - (v[i] - mu) * rs * sx) * rs;
    store4(dx_acc, a, c, cols);
  }
}
REGISTER(KERNEL(layernorm_backward));

// Column sums over a strip of rows, four columns a thread, block (32, 8), grid (ceil(cols / 128), strips): parts (strips, 2, cols) = sums of
// dy x^ and of dy; without x only the sums of dy, parts (strips, cols). Strips are added in order by `split_sum`.
extern "C" __global__ void KERNEL(column_sums)(float* __restrict__ parts, const act* __restrict__ dy, const act* __restrict__ x,
    const float* __restrict__ mean, const float* __restrict__ rstd, int rows, int cols, int strip) {
  __shared__ float sum[2][8][132];
  int c = blockIdx.x * 128 + threadIdx.x * 4, first = blockIdx.y * strip, end = min(first + strip, rows);
  float s[4] = {}, sx[4] = {};
  for (int r = first + threadIdx.y; r < end && c < cols; r += 8) {
    float d[4], v[4];
    load4(d, dy + (long long)r * cols, c, cols);
    for (int i = 0; i < 4; i++) s[i] += d[i];
    if (x) {
      load4(v, x + (long long)r * cols, c, cols);
      float mu = mean[r], rs = rstd[r];
      for (int i = 0; i < 4; i++) sx[i] += d[i] * (v[i] - mu) * rs;
    }
  }
  for (int i = 0; i < 4; i++) {
    sum[0][threadIdx.y][threadIdx.x * 4 + i] = s[i];
    sum[1][threadIdx.y][threadIdx.x * 4 + i] = sx[i];
  }
  __syncthreads();
  int column = threadIdx.y * 32 + threadIdx.x;  // a thread for each of the block's 128
  c = blockIdx.x * 128 + column;
  if (column >= 128 || c >= cols) return;
  float total = 0, total_x = 0;
  for (int i = 0; i < 8; i++) total += sum[0][i][column], total_x += sum[1][i][column];
  if (x) parts[((long long)blockIdx.y * 2) * cols + c] = total_x, parts[((long long)blockIdx.y * 2 + 1) * cols + c] = total;
  else parts[(long long)blockIdx.y * cols + c] = total;
}
REGISTER(KERNEL(column_sums));
