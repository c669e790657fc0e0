// Norms of columns over groups of rows: statistics and running statistics, y = x^ w + b [+ residual] with its ReLU, and the gradient.
// dino-kernel/src/ops/batchnorm.rs
//
// A launch is the rows of all crops of one size: of each of `parts` groups of images, in each view, `segment` rows that follow each other,
// the views `view_rows` apart. A block has a strip of such a segment and four columns a thread: block (X, Y), X Y = 256; grid (ceil(cols / 4 X),
// views * strips, parts or fewer). Statistics, gains and biases are those of group part * sizes + size of the whole matrix.
#ifndef BATCHNORM_ONCE
#define BATCHNORM_ONCE
struct Segments { int segment; long long view_rows; int strip, strips; };

// The strip of this block in a group.
__device__ __forceinline__ long long first_row(const Segments& s, int part) {
  return blockIdx.y / s.strips * s.view_rows + (long long)part * s.segment + (long long)(blockIdx.y % s.strips) * s.strip;
}
__device__ __forceinline__ int strip_rows(const Segments& s, int slot) { return min(s.strip, s.segment - slot % s.strips * s.strip); }

// Count, mean and sum of squared distances from it, of two sets together (Chan, Golub and LeVeque 1979).
struct Moments { float n, mean, squares; };
__device__ __forceinline__ void merge(Moments& a, float n, float mean, float squares) {
  if (n == 0) return;
  float all = a.n + n, apart = mean - a.mean;
  a.mean += apart * (n / all);
  a.squares += squares + apart * apart * (a.n * n / all);
  a.n = all;
}

// Those of one column of a group, in thread row 0, out of the moments (slots, 2, cols) of its strips. All of the block (32, 8) come here.
__device__ __forceinline__ Moments of_strips(const float* parts, const Segments& s, int slots, int c, int cols) {
  __shared__ Moments found[8][32];
  Moments m = {0, 0, 0};
  for (int slot = threadIdx.y; slot < slots && c < cols; slot += 8) {
    const float* at = parts + (long long)slot * 2 * cols + c;
    merge(m, strip_rows(s, slot), at[0], at[cols]);
  }
  found[threadIdx.y][threadIdx.x] = m;
  __syncthreads();
  if (threadIdx.y == 0 && c < cols)
    for (int i = 1; i < 8; i++) merge(m, found[i][threadIdx.x].n, found[i][threadIdx.x].mean, found[i][threadIdx.x].squares);
  __syncthreads();
  return m;
}

// One block (32, 8) 32 columns: the moments (2, cols) of a group, of which several shards have a part each.
extern "C" __global__ void shard_moments(float* __restrict__ to, const float* __restrict__ parts, int cols, int segment, int strip,
    int strips, int slots) {
  Segments s = {segment, 0, strip, strips};
  int c = blockIdx.x * 32 + threadIdx.x;
  Moments m = of_strips(parts, s, slots, c, cols);
  if (threadIdx.y == 0 && c < cols) to[c] = m.mean, to[cols + c] = m.squares;
}
REGISTER(shard_moments);

// One block (32, 8) 32 columns: mean and rstd of every group of one size out of the moments of its strips, parts
// (count, views * strips, 2, cols); the running mean and variance move once for each. `unbiased` is the share of a new variance.
// A group that several shards share has theirs as its strips.
extern "C" __global__ void batch_statistics(float* __restrict__ mean, float* __restrict__ rstd, float* __restrict__ running_mean,
    float* __restrict__ running_var, const float* __restrict__ parts, int cols, int segment, int strip, int strips, int slots,
    int count, int size, int sizes, float keep, float take, float unbiased, float eps) {
  Segments s = {segment, 0, strip, strips};
  int c = blockIdx.x * 32 + threadIdx.x;
  for (int part = 0; part < count; part++) {
    Moments m = of_strips(parts + (long long)part * slots * 2 * cols, s, slots, c, cols);
    if (threadIdx.y == 0 && c < cols) {
      float var = m.squares / m.n;
      running_mean[c] = keep * running_mean[c] + take * m.mean;
      running_var[c] = keep * running_var[c] + unbiased * var;
      long long to = ((long long)part * sizes + size) * cols + c;
      mean[to] = m.mean, rstd[to] = 1.f / sqrtf(var + eps);
    }
  }
}
REGISTER(batch_statistics);

// mean and rstd (cols) of the running mean and variance, a thread a column.
extern "C" __global__ void running_statistics(float* __restrict__ mean, float* __restrict__ rstd, const float* __restrict__ running_mean,
    const float* __restrict__ running_var, int cols, float eps) {
  long long c = FLAT();
  if (c < cols) mean[c] = running_mean[c], rstd[c] = 1.f / sqrtf(running_var[c] + eps);
}
REGISTER(running_statistics);

// One block (32, 8) 32 columns: the sums of g and of g x^ over every group of one size, in the place of its first strip's (parts as below);
// db and dw += them, group by group.
extern "C" __global__ void batch_gradient_sums(float* __restrict__ dw, float* __restrict__ db, float* __restrict__ sums, int cols, int slots,
    int parts) {
  __shared__ float found[2][8][32];
  int c = blockIdx.x * 32 + threadIdx.x;
  for (int part = 0; part < parts; part++) {
    float* of = sums + (long long)part * slots * 2 * cols + c;
    float sum = 0, normal = 0;
    for (int slot = threadIdx.y; slot < slots && c < cols; slot += 8) {
      sum += of[(long long)slot * 2 * cols], normal += of[((long long)slot * 2 + 1) * cols];
    }
    found[0][threadIdx.y][threadIdx.x] = sum, found[1][threadIdx.y][threadIdx.x] = normal;
    __syncthreads();
    if (threadIdx.y == 0 && c < cols) {
      for (int i = 1; i < 8; i++) sum += found[0][i][threadIdx.x], normal += found[1][i][threadIdx.x];
      of[0] = sum, of[cols] = normal;
      db[c] += sum, dw[c] += normal;
    }
    __syncthreads();
  }
}
REGISTER(batch_gradient_sums);

// Running statistics become those that the step has moved, of a finite step; with `hyper` only where the teacher's rate is 1.
extern "C" __global__ void commit_running(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ monitor,
    const float* __restrict__ hyper, int n) {
  long long i = FLAT();
  if (i < n && monitor[FINITE] == 1.f && (!hyper || hyper[TEACHER_RATE] == 1.f)) y[i] = x[i];
}
REGISTER(commit_running);
#endif

// The moments of every strip, parts (parts, views * strips, 2, cols): mean, and sum of squared distances from it. A thread takes eight rows
// at a time, whose moments it forms in registers.
extern "C" __global__ void __launch_bounds__(256) KERNEL(batch_moments)(float* __restrict__ parts, const act* __restrict__ x, int cols,
    int segment, long long view_rows, int strip, int strips, int count) {
  __shared__ float means[1024], squares[1024], counts[256];
  Segments s = {segment, view_rows, strip, strips};
  int column = threadIdx.x * 4, width = blockDim.x * 4, c = blockIdx.x * width + column, rows = strip_rows(s, blockIdx.y);
  for (int part = blockIdx.z; part < count; part += gridDim.z) {
    const act* strip_x = x + first_row(s, part) * cols;
    Moments m[4] = {};
    for (int r = threadIdx.y; r < rows; r += 8 * blockDim.y) {
      float v[8][4], n = 0, mean[4] = {}, square[4] = {};
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int row = r + i * blockDim.y;
        if (row < rows) load4(v[i], strip_x + (long long)row * cols, c, cols);
        if (row < rows) n += 1;
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) mean[j] += i < n ? v[i][j] : 0.f;
      for (int j = 0; j < 4; j++) mean[j] /= n;
#pragma unroll
      for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) square[j] += i < n ? (v[i][j] - mean[j]) * (v[i][j] - mean[j]) : 0.f;
      for (int j = 0; j < 4; j++) merge(m[j], n, mean[j], square[j]);
    }
    for (int j = 0; j < 4; j++) {
      means[threadIdx.y * width + column + j] = m[j].mean;
      squares[threadIdx.y * width + column + j] = m[j].squares;
    }
    if (threadIdx.x == 0) counts[threadIdx.y] = m[0].n;
    __syncthreads();
    // A thread for each of the block's columns.
    int at = threadIdx.y * blockDim.x + threadIdx.x, to = blockIdx.x * width + at;
    if (at < width && to < cols) {
      Moments all = {0, 0, 0};
      for (int i = 0; i < blockDim.y; i++) merge(all, counts[i], means[i * width + at], squares[i * width + at]);
      float* p = parts + ((long long)part * gridDim.y + blockIdx.y) * 2 * cols + to;
      p[0] = all.mean, p[cols] = all.squares;
    }
    __syncthreads();
  }
}
REGISTER(KERNEL(batch_moments));

// residual may be null.
extern "C" __global__ void __launch_bounds__(256) KERNEL(batch_normalize)(act* __restrict__ y, const act* __restrict__ x,
    const act* __restrict__ residual, const float* __restrict__ mean, const float* __restrict__ rstd, const float* __restrict__ w,
    const float* __restrict__ b, int cols, int segment, long long view_rows, int strip, int strips, int count, int size, int sizes, int relu) {
  Segments s = {segment, view_rows, strip, strips};
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4, rows = strip_rows(s, blockIdx.y);
  if (c >= cols) return;
  float gain[4], bias[4];
  load4(gain, w, c, cols);
  load4(bias, b, c, cols);
  for (int part = blockIdx.z; part < count; part += gridDim.z) {
    long long first = first_row(s, part), group = ((long long)part * sizes + size) * cols;
    float mu[4], scale[4];
    load4(mu, mean + group, c, cols);
    load4(scale, rstd + group, c, cols);
    for (int j = 0; j < 4; j++) scale[j] *= gain[j];
#pragma unroll 4
    for (int r = threadIdx.y; r < rows; r += blockDim.y) {
      long long at = (first + r) * cols;
      float v[4];
      load4(v, x + at, c, cols);
      for (int j = 0; j < 4; j++) v[j] = (v[j] - mu[j]) * scale[j] + bias[j];
      if (residual) {
        float add[4];
        load4(add, residual + at, c, cols);
        for (int j = 0; j < 4; j++) v[j] += add[j];
      }
      if (relu)
        for (int j = 0; j < 4; j++) v[j] = v[j] < 0.f ? 0.f : v[j];  // a number that is none stays none
      store4(y + at, v, c, cols);
    }
  }
}
REGISTER(KERNEL(batch_normalize));

// sums (parts, views * strips, 2, cols): of g and of g x^ over every strip. With y (not null) a ReLU follows: g, which is dy where y is not
// 0, is stored over dy.
extern "C" __global__ void __launch_bounds__(256) KERNEL(batch_gradient_strips)(float* __restrict__ sums, act* __restrict__ dy,
    const act* __restrict__ x, const act* __restrict__ y, const float* __restrict__ mean, const float* __restrict__ rstd, int cols,
    int segment, long long view_rows, int strip, int strips, int count, int size, int sizes) {
  __shared__ float found[2][1024];
  Segments s = {segment, view_rows, strip, strips};
  int column = threadIdx.x * 4, width = blockDim.x * 4, c = blockIdx.x * width + column, rows = strip_rows(s, blockIdx.y);
  for (int part = blockIdx.z; part < count; part += gridDim.z) {
    long long first = first_row(s, part), group = ((long long)part * sizes + size) * cols;
    float mu[4], rs[4], sum[4] = {}, normal[4] = {};
    load4(mu, mean + group, c, cols);
    load4(rs, rstd + group, c, cols);
#pragma unroll 4
    for (int r = threadIdx.y; r < rows; r += blockDim.y) {
      long long at = (first + r) * cols;
      float g[4], v[4];
      load4(g, dy + at, c, cols);
      load4(v, x + at, c, cols);
      if (y) {
        float out[4];
        load4(out, y + at, c, cols);
        for (int j = 0; j < 4; j++) g[j] = out[j] == 0.f ? 0.f : g[j];
        store4(dy + at, g, c, cols);
      }
      for (int j = 0; j < 4; j++) sum[j] += g[j], normal[j] += g[j] * ((v[j] - mu[j]) * rs[j]);
    }
    for (int j = 0; j < 4; j++) {
      found[0][threadIdx.y * width + column + j] = sum[j];
      found[1][threadIdx.y * width + column + j] = normal[j];
    }
    __syncthreads();
    // A thread for each of the block's columns.
    int at = threadIdx.y * blockDim.x + threadIdx.x, to = blockIdx.x * width + at;
    if (at < width && to < cols) {
      float all = 0, all_normal = 0;
      for (int i = 0; i < blockDim.y; i++) all += found[0][i * width + at], all_normal += found[1][i * width + at];
      float* p = sums + ((long long)part * gridDim.y + blockIdx.y) * 2 * cols + to;
      p[0] = all, p[cols] = all_normal;
    }
    __syncthreads();
  }
}
REGISTER(KERNEL(batch_gradient_strips));

// dx = w rstd (g - mean(g) - x^ mean(g x^)); sums (parts, slots, 2, cols), of a group the first. `inverse`: 1 / rows of a group.
extern "C" __global__ void __launch_bounds__(256) KERNEL(batch_gradient)(act* __restrict__ dx, const act* __restrict__ g,
    const act* __restrict__ x, const float* __restrict__ sums, const float* __restrict__ mean, const float* __restrict__ rstd,
    const float* __restrict__ w, int cols, int segment, long long view_rows, int strip, int strips, int count, int size, int sizes,
    int slots, float inverse) {
  Segments s = {segment, view_rows, strip, strips};
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4, rows = strip_rows(s, blockIdx.y);
  if (c >= cols) return;
  float gain[4];
  load4(gain, w, c, cols);
  for (int part = blockIdx.z; part < count; part += gridDim.z) {
    long long first = first_row(s, part), group = ((long long)part * sizes + size) * cols;
    const float* of = sums + (long long)part * slots * 2 * cols;
    float mu[4], rs[4], sum[4], normal[4];
    load4(mu, mean + group, c, cols);
    load4(rs, rstd + group, c, cols);
    load4(sum, of, c, cols);
    load4(normal, of + cols, c, cols);
    for (int j = 0; j < 4; j++) sum[j] *= inverse, normal[j] *= inverse;
#pragma unroll 4
    for (int r = threadIdx.y; r < rows; r += blockDim.y) {
      long long at = (first + r) * cols;
      float d[4], v[4];
      load4(d, g + at, c, cols);
      load4(v, x + at, c, cols);
      for (int j = 0; j < 4; j++) v[j] = gain[j] * rs[j] * (d[j] - sum[j] - (v[j] - mu[j]) * rs[j] * normal[j]);
      store4(dx + at, v, c, cols);
    }
  }
}
REGISTER(KERNEL(batch_gradient));
