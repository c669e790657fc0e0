// The DINO loss, streamed over tiles of prototypes: the dot products of a tile (rows, tile) come from the GEMM, these kernels turn them into a
// running softmax, into targets and into gradients. Every tile of a step goes through the same buffers, and tiles follow each
// other on the stream, so sums have one order.  dino-kernel/src/ops/loss.rs
#ifndef LOSS_ONCE
#define LOSS_ONCE

// A running softmax of terms x: the largest so far; the sum of exp(slope (x - top)) less one, for a nearly one-hot row has its
// entire entropy in what is left; and the sum of those terms times slope (top - x).
struct Running { float top, rest, spread; };

__device__ __forceinline__ Running merge(Running a, Running b, float slope) {
  bool later = b.top > a.top || b.top != b.top;
  Running high = later ? b : a, low = later ? a : b;
  float fall = (high.top - low.top) * slope, factor = expf(-fall), total = 1.f + low.rest;
  high.rest += factor * total;
  // A row that has fallen to nothing adds nothing, however far it fell.
  if (factor > 0 || factor != factor) high.spread += factor * (low.spread + fall * total);
  return high;
}

// x of one prototype: s scale - centre, with one rounding however a loop is compiled, for the largest must be found again.
__device__ __forceinline__ float term(const float* s, const float* scale, const float* centre, int k) {
  return fmaf(s[k], scale[k], centre ? -centre[k] : 0.f);
}

// One block of 256 a row: merges `tile` dot products into the row's running softmax; x = s scale - centre (centre may be null).
// `finish`: lse (rows, 2) = (top, ln of the sum), and, unless null, the entropy.
extern "C" __global__ void loss_running(Running* __restrict__ running, float* __restrict__ lse, float* __restrict__ entropy,
    const float* __restrict__ s, const float* __restrict__ scale, const float* __restrict__ centre, const float* __restrict__ slope_at,
    int tile, int start, int finish) {
  __shared__ float part[32];
  __shared__ int own;
  long long row = blockIdx.x;
  s += row * tile;
  float slope = *slope_at, top = -INFINITY;
  for (int k = threadIdx.x; k < tile; k += 256) {
    float x = term(s, scale, centre, k);
    top = x > top || x != x ? x : top;
  }
  if (threadIdx.x == 0) own = tile;
  top = block_max(top, part);
  // The first of the largest terms is the one that `rest` leaves out.
  int first = tile;
  for (int k = threadIdx.x; k < tile && first == tile; k += 256)
    if (term(s, scale, centre, k) == top) first = k;
  atomicMin(&own, first);
  __syncthreads();
  float rest = 0, spread = 0;
  for (int k = threadIdx.x; k < tile; k += 256) {
    float x = term(s, scale, centre, k), below = (top - x) * slope, e = expf(-below);
    if (k != own) rest += e;
    if (e > 0) spread += e * below;
  }
  rest = block_sum(rest, part);
  spread = block_sum(spread, part);
  if (threadIdx.x == 0) {
    Running r = {top, rest, spread};
    if (!start) r = merge(running[row], r, slope);
    running[row] = r;
    if (finish) {
      lse[2 * row] = r.top, lse[2 * row + 1] = log1pf(r.rest);
      if (entropy) entropy[row] = r.spread / (1.f + r.rest) + (float)log(1.0 + (double)r.rest);
    }
  }
}
REGISTER(loss_running);

// One block of 256 a row: dot products to the teacher's probabilities, in place.
extern "C" __global__ void loss_targets(float* __restrict__ t, const float* __restrict__ lse, const float* __restrict__ scale,
    const float* __restrict__ centre, const float* __restrict__ hyper, int tile) {
  long long row = blockIdx.x;
  t += row * tile;
  float top = lse[2 * row], ln = lse[2 * row + 1], sharpen = hyper[INV_TEACHER_TEMP];
  for (int k = threadIdx.x; k < tile; k += 256) t[k] = expf(-((top - term(t, scale, centre, k)) * sharpen + ln));
}
REGISTER(loss_targets);
#endif

// One block of 256 a student row: from its dot products s and the targets of its image's teacher rows, the row's part of the loss, and
// the gradient of the logits ds (rows, tile), and ds scale, which is what meets the directions.
extern "C" __global__ void KERNEL(loss_gradient)(float* __restrict__ loss, act* __restrict__ ds, act* __restrict__ ds_scaled,
    const float* __restrict__ s, const float* __restrict__ targets, const float* __restrict__ lse, const float* __restrict__ scale,
    const float* __restrict__ hyper, int tile, int images, int first_view, int teachers, int start) {
  __shared__ float part[32];
  long long row = blockIdx.x;
  int view = first_view + (int)(row / images), image = (int)(row % images);
  float others = view < teachers ? teachers - 1 : teachers, soften = hyper[INV_STUDENT_TEMP], met = 0;
  float top = lse[2 * row], ln = lse[2 * row + 1], gradient_scale = soften * hyper[LOSS_SCALE];
  s += row * tile, ds += row * tile, ds_scaled += row * tile;
  for (int k = threadIdx.x; k < tile; k += 256) {
    float q = 0;
    for (int i = 0; i < teachers; i++)
      if (i != view) q += targets[((long long)i * images + image) * tile + k];
    float below = (top - term(s, scale, nullptr, k)) * soften + ln, d = (others * expf(-below) - q) * gradient_scale;
    met += q * below;
    put(ds[k], d);
    put(ds_scaled[k], d * scale[k]);
  }
  met = block_sum(met, part);
  if (threadIdx.x == 0) loss[row] = start ? met : loss[row] + met;
}
REGISTER(KERNEL(loss_gradient));

// y (rows, K) = dot products times scale, where all logits are wanted at once.
extern "C" __global__ void KERNEL(scale_columns)(act* __restrict__ y, const float* __restrict__ s, const float* __restrict__ scale, long long n, int cols) {
  long long i = FLAT();
  if (i < n) put(y[i], s[i] * scale[i % cols]);
}
REGISTER(KERNEL(scale_columns));

// sum (cols) += column sums of x; one thread a column.
extern "C" __global__ void KERNEL(sum_rows)(float* __restrict__ sum, const act* __restrict__ x, int rows, int cols) {
  int c = (int)FLAT();
  if (c >= cols) return;
  float s = 0;
  for (int r = 0; r < rows; r++) s += get(x[(long long)r * cols + c]);
  sum[c] += s;
}
REGISTER(KERNEL(sum_rows));
