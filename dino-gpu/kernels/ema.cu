// The teacher over the flat pool of weights, and the weights as bf16. dino-kernel/src/optim/teacher.rs

// teacher += rate (student - teacher), n elements. A rate of 1 copies; at a rate of 0 the teacher keeps its bits.
extern "C" __global__ void ema(float* __restrict__ teacher, bf16* __restrict__ shadow, const float* __restrict__ student,
    const float* __restrict__ monitor, const float* __restrict__ hyper, long long n) {
  long long i = FLAT();
  float rate = hyper[TEACHER_RATE];
  if (i >= n || monitor[FINITE] != 1.f || rate == 0.f) return;
  float t = teacher[i], s = student[i];
  t = rate == 1.f ? s : t + rate * (s - t);
  teacher[i] = t;
  if (shadow) shadow[i] = __float2bfloat16(t);
}
REGISTER(ema);

// The weights as bf16, after the host has written them.
extern "C" __global__ void shadow_weights(bf16* __restrict__ y, const float* __restrict__ x, long long n) {
  long long i = FLAT();
  if (i < n) y[i] = __float2bfloat16(x[i]);
}
REGISTER(shadow_weights);
