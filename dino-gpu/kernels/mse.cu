// The mean squared error of the softmax outputs over the tiles of loss.cu, which has the teacher's probabilities: once for the loss and
// the rows' inner products, once for the gradient.  dino-kernel/src/ops/mse.rs
#ifndef MSE_ONCE
#define MSE_ONCE

// The student's probability of one prototype.
__device__ __forceinline__ float probability(const float* s, const float* scale, const float* lse, long long row, float soften, int k) {
  return expf(-((lse[2 * row] - term(s, scale, nullptr, k)) * soften + lse[2 * row + 1]));
}

// One block of 256 a student row: from its products s and the targets of its image's teacher rows, the row's part of the loss, the sum of
// (p - q)^2, and of the inner product, that of p (others p - targets).
extern "C" __global__ void mse_inner(float* __restrict__ loss, float* __restrict__ inner, const float* __restrict__ s,
    const float* __restrict__ targets, const float* __restrict__ lse, const float* __restrict__ scale, const float* __restrict__ hyper,
    int tile, int images, int first_view, int teachers, int start) {
  __shared__ float part[32];
  long long row = blockIdx.x;
  int view = first_view + (int)(row / images), image = (int)(row % images);
  float others = view < teachers ? teachers - 1 : teachers, soften = hyper[INV_STUDENT_TEMP], error = 0, product = 0;
  s += row * tile;
  for (int k = threadIdx.x; k < tile; k += 256) {
    float p = probability(s, scale, lse, row, soften, k), sum = 0;
    for (int i = 0; i < teachers; i++)
      if (i != view) {
        float q = targets[((long long)i * images + image) * tile + k];
        sum += q;
        error += (p - q) * (p - q);
      }
    product += p * (others * p - sum);
  }
  error = block_sum(error, part);
  product = block_sum(product, part);
  if (threadIdx.x == 0) {
    loss[row] = start ? error : loss[row] + error;
    inner[row] = start ? product : inner[row] + product;
  }
}
REGISTER(mse_inner);
#endif

// One block of 256 a student row: the gradient of the logits ds (rows, tile), p (others p - targets - inner) 2 / temperature, and ds
// scale, which is what meets the directions.
extern "C" __global__ void KERNEL(mse_gradient)(act* __restrict__ ds, act* __restrict__ ds_scaled, const float* __restrict__ inner,
    const float* __restrict__ s, const float* __restrict__ targets, const float* __restrict__ lse, const float* __restrict__ scale,
    const float* __restrict__ hyper, int tile, int images, int first_view, int teachers) {
  long long row = blockIdx.x;
  int view = first_view + (int)(row / images), image = (int)(row % images);
  float others = view < teachers ? teachers - 1 : teachers, soften = hyper[INV_STUDENT_TEMP];
  float gradient_scale = 2 * soften * hyper[LOSS_SCALE], own = inner[row];
  s += row * tile, ds += row * tile, ds_scaled += row * tile;
  for (int k = threadIdx.x; k < tile; k += 256) {
    float p = probability(s, scale, lse, row, soften, k), sum = 0;
    for (int i = 0; i < teachers; i++)
      if (i != view) sum += targets[((long long)i * images + image) * tile + k];
    float d = p * (others * p - sum - own) * gradient_scale;
    put(ds[k], d);
    put(ds_scaled[k], d * scale[k]);
  }
}
REGISTER(KERNEL(mse_gradient));
