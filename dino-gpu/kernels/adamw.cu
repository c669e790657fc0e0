// AdamW over the flat pools, one launch. dino-kernel/src/optim/adamw.rs

// The rule's numbers in a group's block: `block` of that file.
struct AdamW { enum { DECAY, STEP, BIAS2, RATE1, RATE2, EPS }; };

// One block a chunk: decoupled decay, then Adam. `shadow` (or null): the weights as bf16, for the products.
extern "C" __global__ void adamw(float* __restrict__ weights, bf16* __restrict__ shadow, float* __restrict__ first, float* __restrict__ second,
    const float* __restrict__ grads, const Chunk* __restrict__ chunks, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  Chunk c = chunks[blockIdx.x];
  const float* h = block_of(c, monitor, hyper);
  if (!h) return;
  float decay = h[AdamW::DECAY], step = h[AdamW::STEP], bias2 = h[AdamW::BIAS2];
  float rate1 = h[AdamW::RATE1], rate2 = h[AdamW::RATE2], eps = h[AdamW::EPS];
  for (int i = threadIdx.x; i < c.len; i += blockDim.x) {
    long long at = c.at + i;
    float g = grads[at], w = weights[at], m = first[at], v = second[at];
    w -= decay * w;
    m += rate1 * (g - m);
    v += rate2 * (g * g - v);
    w -= step * m / (sqrtf(v) * bias2 + eps);
    weights[at] = w, first[at] = m, second[at] = v;
    if (shadow) shadow[at] = __float2bfloat16(w);
  }
}
REGISTER(adamw);
