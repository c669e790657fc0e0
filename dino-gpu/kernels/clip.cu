// Per-tensor clip over the flat pool of gradients: a fixed small number of launches, whatever the number of tensors.
// dino-kernel/src/optim/clip.rs

// One block of 256 a chunk: the sum of its squares.
extern "C" __global__ void clip_squares(double* __restrict__ squares, const Chunk* __restrict__ chunks, const float* __restrict__ grads) {
  __shared__ double part[256];
  Chunk c = chunks[blockIdx.x];
  double s = 0;
  for (int i = threadIdx.x; i < c.len; i += 256) s += (double)grads[c.at + i] * grads[c.at + i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) squares[blockIdx.x] = s;
}
REGISTER(clip_squares);

// One block of 256 a tensor: its sum of squares and its factor min(1, clip / (norm + 1e-6)). `first` (tensors + 1): where each tensor's chunks begin.
extern "C" __global__ void clip_factors(float* __restrict__ factors, double* __restrict__ tensor_squares, const double* __restrict__ squares,
    const int* __restrict__ first, const float* __restrict__ hyper) {
  __shared__ double part[256];
  int t = blockIdx.x;
  double s = 0, limit = hyper[CLIP];
  for (int i = first[t] + threadIdx.x; i < first[t + 1]; i += 256) s += squares[i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) {
    double factor = limit / (sqrt(s) + 1e-6);
    factors[t] = limit > 0 && factor < 1 ? (float)factor : 1.f;
    tensor_squares[t] = s;
  }
}
REGISTER(clip_factors);

// One block of 256: the global norm before clipping, and whether the step is taken.
extern "C" __global__ void clip_norm(float* __restrict__ monitor, const double* __restrict__ tensor_squares, int tensors) {
  __shared__ double part[256];
  double total = 0;
  for (int t = threadIdx.x; t < tensors; t += 256) total += tensor_squares[t];
  total = block_sum(total, part);
  if (threadIdx.x == 0) {
    bool finite = total < (double)INFINITY && fabsf(monitor[LOSS]) < INFINITY;  // false for NaN
    monitor[FINITE] = finite && monitor[HALTED] == 0 ? 1.f : 0.f;
    if (!finite) monitor[HALTED] = 1.f;
    monitor[GRAD_NORM] = (float)sqrt(total);
  }
}
REGISTER(clip_norm);

// One block a chunk.
extern "C" __global__ void clip_apply(float* __restrict__ grads, const Chunk* __restrict__ chunks, const float* __restrict__ factors) {
  Chunk c = chunks[blockIdx.x];
  float factor = factors[c.tensor];
  if (factor >= 1.f) return;
  for (int i = threadIdx.x; i < c.len; i += blockDim.x) grads[c.at + i] *= factor;
}
REGISTER(clip_apply);
