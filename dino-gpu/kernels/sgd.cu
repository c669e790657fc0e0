// SGD with momentum over the flat pools, one launch. dino-kernel/src/optim/sgd.rs

// The rule's numbers in a group's block: `block` of that file.
struct Sgd { enum { LR, DECAY, MOMENTUM }; };

// One block a chunk. `shadow` (or null): the weights as bf16, for matrix multiplications.
extern "C" __global__ void sgd(float* __restrict__ weights, bf16* __restrict__ shadow, float* __restrict__ buffer,
    const float* __restrict__ grads, const Chunk* __restrict__ chunks, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  Chunk c = chunks[blockIdx.x];
  const float* h = block_of(c, monitor, hyper);
  if (!h) return;
  float lr = h[Sgd::LR], decay = h[Sgd::DECAY], momentum = h[Sgd::MOMENTUM];
  for (int i = threadIdx.x; i < c.len; i += blockDim.x) {
    long long at = c.at + i;
    float w = weights[at];
    float b = momentum * buffer[at] + (grads[at] + decay * w);
    w -= lr * b;
    weights[at] = w, buffer[at] = b;
    if (shadow) shadow[at] = __float2bfloat16(w);
  }
}
REGISTER(sgd);
