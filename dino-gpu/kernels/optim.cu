// Clip, AdamW, EMA and the centre over the flat pools: a fixed small number of launches, whatever the number of tensors. Every
// number that changes from step to step is read from `hyper`. Nothing here depends on the activation type.
// dino-kernel/src/ops/optim.rs, slots of `hyper` and `monitor`: dino-kernel/src/scalars.rs

enum { DECAY, STEP, BIAS2, STEP_LAST, BIAS2_LAST, RATE1, RATE2, EPS, EMA_RATE, CENTER_RATE, INV_TEACHER_ROWS, INV_STUDENT_TEMP,
  INV_TEACHER_TEMP, LOSS_SCALE, CLIP, FREEZE_LAST };
enum { LOSS, ENTROPY, FINITE, GRAD_NORM, CENTER_NORM, HALTED };
enum { DECAYS = 1, FROZEN = 2, LAST_LAYER = 4 };

// A piece of one tensor: elements at .. at + len. The table is made once; pieces are in the tensors' order.
struct Piece { long long at; int len, tensor, flags, pad; };

__device__ __forceinline__ double block_sum(double v, double* part) {
  part[threadIdx.x] = v;
  __syncthreads();
  for (int o = blockDim.x / 2; o; o >>= 1) {
    if (threadIdx.x < o) part[threadIdx.x] += part[threadIdx.x + o];
    __syncthreads();
  }
  double total = part[0];
  __syncthreads();
  return total;
}

// One block of 256 a piece: the sum of its squares.
extern "C" __global__ void clip_squares(double* __restrict__ squares, const Piece* __restrict__ pieces, const float* __restrict__ grads) {
  __shared__ double part[256];
  Piece p = pieces[blockIdx.x];
  double s = 0;
  for (int i = threadIdx.x; i < p.len; i += 256) s += (double)grads[p.at + i] * grads[p.at + i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) squares[blockIdx.x] = s;
}
REGISTER(clip_squares);

// One block of 256 a tensor: its sum of squares and its factor min(1, clip / (norm + 1e-6)). `first` (tensors + 1): first pieces.
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

// One block of 256: the global norm before clipping, and whether the step stands.
extern "C" __global__ void clip_verdict(float* __restrict__ monitor, const double* __restrict__ tensor_squares, int tensors) {
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
REGISTER(clip_verdict);

// One block a piece.
extern "C" __global__ void clip_apply(float* __restrict__ grads, const Piece* __restrict__ pieces, const float* __restrict__ factors) {
  Piece p = pieces[blockIdx.x];
  float factor = factors[p.tensor];
  if (factor >= 1.f) return;
  for (int i = threadIdx.x; i < p.len; i += blockDim.x) grads[p.at + i] *= factor;
}
REGISTER(clip_apply);

// One block a piece: decoupled decay, then Adam. `shadow` (or null): the weights as bf16, for the products.
extern "C" __global__ void adamw(float* __restrict__ weights, bf16* __restrict__ shadow, float* __restrict__ first, float* __restrict__ second,
    const float* __restrict__ grads, const Piece* __restrict__ pieces, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  Piece p = pieces[blockIdx.x];
  if (monitor[FINITE] != 1.f || p.flags & FROZEN || (p.flags & LAST_LAYER && hyper[FREEZE_LAST] != 0)) return;
  bool last = p.flags & LAST_LAYER;
  float decay = p.flags & DECAYS ? hyper[DECAY] : 0.f, step = hyper[last ? STEP_LAST : STEP], bias2 = hyper[last ? BIAS2_LAST : BIAS2];
  float rate1 = hyper[RATE1], rate2 = hyper[RATE2], eps = hyper[EPS];
  for (int i = threadIdx.x; i < p.len; i += blockDim.x) {
    long long at = p.at + i;
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

// teacher += rate (student - teacher), n elements.
extern "C" __global__ void ema(float* __restrict__ teacher, bf16* __restrict__ shadow, const float* __restrict__ student,
    const float* __restrict__ monitor, const float* __restrict__ hyper, long long n) {
  long long i = FLAT();
  if (i >= n || monitor[FINITE] != 1.f) return;
  float t = teacher[i];
  t += hyper[EMA_RATE] * (student[i] - t);
  teacher[i] = t;
  if (shadow) shadow[i] = __float2bfloat16(t);
}
REGISTER(ema);

// centre += rate (mean - centre), mean[k] = (sum . v_k) scale_k / rows; one warp a prototype.
extern "C" __global__ void commit_centre(float* __restrict__ centre, const float* __restrict__ sum, const float* __restrict__ v,
    const float* __restrict__ scale, const float* __restrict__ monitor, const float* __restrict__ hyper, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows || monitor[FINITE] != 1.f) return;
  float s = 0;
  for (int c = LANE(); c < cols; c += 32) s += sum[c] * v[row * cols + c];
  s = warp_sum(s);
  if (LANE() == 0) centre[row] += hyper[CENTER_RATE] * (s * scale[row] * hyper[INV_TEACHER_ROWS] - centre[row]);
}
REGISTER(commit_centre);

// One block of 256: the centre's norm, for the monitor.
extern "C" __global__ void centre_norm(float* __restrict__ monitor, const float* __restrict__ centre, int n) {
  __shared__ double part[256];
  if (monitor[FINITE] != 1.f) return;
  double s = 0;
  for (int i = threadIdx.x; i < n; i += 256) s += (double)centre[i] * centre[i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) monitor[CENTER_NORM] = (float)sqrt(s);
}
REGISTER(centre_norm);

// One block of 256: sum[0] += the sum of x.
extern "C" __global__ void sum_stat(float* __restrict__ sum, const float* __restrict__ x, int n) {
  __shared__ double part[256];
  double s = 0;
  for (int i = threadIdx.x; i < n; i += 256) s += x[i];
  s = block_sum(s, part);
  if (threadIdx.x == 0) sum[0] += (float)s;
}
REGISTER(sum_stat);

// The weights as bf16, after the host has written them.
extern "C" __global__ void shadow_weights(bf16* __restrict__ y, const float* __restrict__ x, long long n) {
  long long i = FLAT();
  if (i < n) y[i] = __float2bfloat16(x[i]);
}
REGISTER(shadow_weights);
