// Pools over feature maps, a row of channels a pixel. Max: the largest of every window; its gradient goes to the first that is. Average: of
// every map.  dino-kernel/src/ops/max_pool.rs, average_pool.rs
#ifndef POOL_ONCE
#define POOL_ONCE
// A window moves over maps (height, width); padding never counts.
struct Pool {
  int height, width, kernel, stride, padding;
  __device__ __forceinline__ int positions(int side) const { return (side + 2 * padding - kernel) / stride + 1; }
  // The pixels that it covers at a position, along one axis: first .. end.
  __device__ __forceinline__ int first(int position) const { return max(position * stride - padding, 0); }
  __device__ __forceinline__ int end(int position, int side) const { return min(position * stride - padding + kernel, side); }
};

// The largest of four columns over the window at (i, j) of one map, and the first pixel where it is.
template <class T> __device__ __forceinline__ void largest(float (&most)[4], int (&where)[4], const T* map, const Pool& p, int i, int j,
    int c, int cols) {
  bool none = true;
  for (int row = p.first(i); row < p.end(i, p.height); row++)
    for (int col = p.first(j); col < p.end(j, p.width); col++) {
      int pixel = row * p.width + col;
      float v[4];
      load4(v, map + (long long)pixel * cols, c, cols);
      for (int k = 0; k < 4; k++)
        if (none || v[k] > most[k] || v[k] != v[k]) most[k] = v[k], where[k] = pixel;  // a number that is none wins
      none = false;
    }
}
#endif

// Block (X, Y), X Y = 256, four columns a thread; grid (ceil(cols / 4 X), ceil(output pixels / Y) or fewer).
extern "C" __global__ void __launch_bounds__(256) KERNEL(max_pool)(act* __restrict__ y, const act* __restrict__ x, int maps, int height,
    int width, int kernel, int stride, int padding, int cols) {
  Pool p = {height, width, kernel, stride, padding};
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4, across = p.positions(width), map = p.positions(height) * across;
  if (c >= cols) return;
  for (long long at = blockIdx.y * blockDim.y + threadIdx.y; at < (long long)maps * map; at += (long long)gridDim.y * blockDim.y) {
    int in_map = at % map, where[4];
    float most[4];
    largest(most, where, x + at / map * height * width * cols, p, in_map / across, in_map % across, c, cols);
    store4(y + at * cols, most, c, cols);
  }
}
REGISTER(KERNEL(max_pool));

// The same over input pixels: each gathers from the windows that cover it, in their order.
extern "C" __global__ void __launch_bounds__(256) KERNEL(max_pool_backward)(act* __restrict__ dx, const act* __restrict__ dy,
    const act* __restrict__ x, int maps, int height, int width, int kernel, int stride, int padding, int cols) {
  Pool p = {height, width, kernel, stride, padding};
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4, down = p.positions(height), across = p.positions(width), map = height * width;
  if (c >= cols) return;
  for (long long at = blockIdx.y * blockDim.y + threadIdx.y; at < (long long)maps * map; at += (long long)gridDim.y * blockDim.y) {
    int pixel = at % map, row = pixel / width, col = pixel % width;
    long long number = at / map;
    float sum[4] = {};
    // Windows begin at position * stride - padding, and are `kernel` long.
    for (int i = max(row + padding - kernel + stride, 0) / stride; i < down && i * stride - padding <= row; i++)
      for (int j = max(col + padding - kernel + stride, 0) / stride; j < across && j * stride - padding <= col; j++) {
        int where[4];
        float most[4], d[4];
        largest(most, where, x + number * map * cols, p, i, j, c, cols);
        load4(d, dy + ((number * down + i) * across + j) * cols, c, cols);
        for (int k = 0; k < 4; k++) sum[k] += where[k] == pixel ? d[k] : 0.f;
      }
    store4(dx + at * cols, sum, c, cols);
  }
}
REGISTER(KERNEL(max_pool_backward));

// One group of `crops` crops of `rows` rows: y (crops, cols) = the mean of each. Block (32, 8), four columns a thread; grid
// (ceil(cols / 128), ceil(crops / 8) or fewer).
extern "C" __global__ void __launch_bounds__(256) KERNEL(average_pool)(act* __restrict__ y, const act* __restrict__ x, int crops, int rows,
    int cols, float inverse) {
  int c = (blockIdx.x * 32 + threadIdx.x) * 4;
  if (c >= cols) return;
  for (int crop = blockIdx.y * 8 + threadIdx.y; crop < crops; crop += gridDim.y * 8) {
    const act* from = x + (long long)crop * rows * cols;
    float sum[4] = {}, v[4];
    for (int r = 0; r < rows; r++) {
      load4(v, from + (long long)r * cols, c, cols);
      for (int j = 0; j < 4; j++) sum[j] += v[j];
    }
    for (int j = 0; j < 4; j++) sum[j] *= inverse;
    store4(y + (long long)crop * cols, sum, c, cols);
  }
}
REGISTER(KERNEL(average_pool));

// dx (crops, rows, cols) = dy (crops, cols) / rows. Block (X, Y), four columns a thread; grid (ceil(cols / 4 X), ceil(rows / Y) or fewer).
extern "C" __global__ void __launch_bounds__(256) KERNEL(average_pool_backward)(act* __restrict__ dx, const act* __restrict__ dy, int crops,
    int rows, int cols, float inverse) {
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (c >= cols) return;
  for (long long r = blockIdx.y * blockDim.y + threadIdx.y; r < (long long)crops * rows; r += (long long)gridDim.y * blockDim.y) {
    float v[4];
    load4(v, dy + r / rows * cols, c, cols);
    for (int j = 0; j < 4; j++) v[j] *= inverse;
    store4(dx + r * cols, v, c, cols);
  }
}
REGISTER(KERNEL(average_pool_backward));
