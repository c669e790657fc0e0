// LARS over the flat pools: norms of every chunk, the factor of every tensor, the update. dino-kernel/src/optim/lars.rs

// The rule's numbers in a group's block: `block` of that file.
struct Lars { enum { LR, DECAY, MOMENTUM, ETA }; };

// One block of 256 a chunk: sums of squares of its parameters and of their update g + wd p. `squares` has two a chunk.
extern "C" __global__ void lars_squares(double* __restrict__ squares, const float* __restrict__ weights, const float* __restrict__ grads,
    const Chunk* __restrict__ chunks, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  __shared__ double part[256];
  Chunk c = chunks[blockIdx.x];
  const float* h = block_of(c, monitor, hyper);
  if (!h) return;
  float decay = h[Lars::DECAY];
  double p = 0, d = 0;
  for (int i = threadIdx.x; i < c.len; i += 256) {
    float w = weights[c.at + i], u = grads[c.at + i] + decay * w;
    p += (double)w * w, d += (double)u * u;
  }
  p = block_sum(p, part);
  d = block_sum(d, part);
  if (threadIdx.x == 0) squares[2 * blockIdx.x] = p, squares[2 * blockIdx.x + 1] = d;
}
REGISTER(lars_squares);

// One block of 256 a tensor: its factor eta |p| / |d|, 1 if either norm is 0 or the tensor is not scaled. `first` (tensors + 1): where
// each tensor's chunks begin. The greatest factor is that of f32.
extern "C" __global__ void lars_factors(float* __restrict__ factors, const double* __restrict__ squares, const int* __restrict__ first,
    const Chunk* __restrict__ chunks, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  __shared__ double part[256];
  int t = blockIdx.x;
  const float* h = block_of(chunks[first[t]], monitor, hyper);
  if (!h) return;
  double p = 0, d = 0, eta = h[Lars::ETA];
  for (int i = first[t] + threadIdx.x; i < first[t + 1]; i += 256) p += squares[2 * i], d += squares[2 * i + 1];
  p = block_sum(p, part);
  d = block_sum(d, part);
  if (threadIdx.x == 0) factors[t] = eta > 0 && p > 0 && d > 0 ? (float)fmin(eta * sqrt(p) / sqrt(d), 3.4028234663852886e38) : 1.f;
}
REGISTER(lars_factors);

// One block a chunk. `shadow` (or null): the weights as bf16, for matrix multiplications.
extern "C" __global__ void lars(float* __restrict__ weights, bf16* __restrict__ shadow, float* __restrict__ buffer,
    const float* __restrict__ grads, const float* __restrict__ factors, const Chunk* __restrict__ chunks,
    const float* __restrict__ monitor, const float* __restrict__ hyper) {
  Chunk c = chunks[blockIdx.x];
  const float* h = block_of(c, monitor, hyper);
  if (!h) return;
  float lr = h[Lars::LR], decay = h[Lars::DECAY], momentum = h[Lars::MOMENTUM], factor = factors[c.tensor];
  for (int i = threadIdx.x; i < c.len; i += blockDim.x) {
    long long at = c.at + i;
    float w = weights[at];
    float mu = momentum * buffer[at] + factor * (grads[at] + decay * w);
    w -= lr * mu;
    weights[at] = w, buffer[at] = mu;
    if (shadow) shadow[at] = __float2bfloat16(w);
  }
}
REGISTER(lars);
