// Attention and its gradients on the tensor cores, without the (tokens, tokens) matrix in memory.
//
// One group of crops with `tokens` tokens each. qkv is (crops tokens, 3 C), columns [q | k | v], each head by head; y, dy are
// (crops tokens, C); lse, the natural logarithm of the sum of exp(scale q.k), and delta, the sum of y dy, are (crops tokens, heads).
// All of bf16 start on 16 bytes. head_dim is a multiple of 8 up to D, the last part of the kernel's name: choose the least of
// 32, 64, 96, 128 that holds it; the columns up to D are zeros in shared memory.
//
// A block has 4 warps and owns 64 rows of one crop and head, 16 a warp: queries (forward, dq) or keys (dkv). It walks over the other
// side `step` rows at a time: while one step is computed, the next is copied into the other of two stages. Scores stay in
// registers, and what a thread holds of them as the result of one matmul is just what it must hold as the left operand of the next.
// Rows past the last token are zeros; the last step leaves out groups of 16 rows that hold nothing else.
//
// Grid of all but delta: x = crops * ceil(tokens / 64), y = heads. Block: 128. Dynamic shared memory in bytes:
//            fwd      dq     dkv
//    32    25600   30720   31744
//    64    46080   55296   37376
//    96    39936   53248   53760
//   128    52224   69632   70144
#ifndef CUDA_CPU
#include <cuda_bf16.h>
#include <stdint.h>
#endif
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

namespace attention_bf16 {

constexpr int THREADS = 128;
constexpr int ROWS = 64;
constexpr int PAD = 8;  // 16 bytes, so the eight rows that one ldmatrix phase reads start in different banks
__host__ __device__ constexpr int step(int d) { return d <= 64 ? 64 : 32; }
__host__ __device__ constexpr int dkv_rows(int d) { return d <= 32 ? 64 : 32; }  // its step: two sums to hold, not one
__host__ __device__ constexpr int forward_bytes(int d) { return (ROWS + 4 * step(d)) * (d + PAD) * 2; }
__host__ __device__ constexpr int dq_bytes(int d) { return (2 * ROWS + 4 * step(d)) * (d + PAD) * 2; }
__host__ __device__ constexpr int dkv_bytes(int d) { return (2 * ROWS + 4 * dkv_rows(d)) * (d + PAD) * 2 + 4 * dkv_rows(d) * 4; }
static_assert(forward_bytes(32) == 25600 && dq_bytes(32) == 30720 && dkv_bytes(32) == 31744, "the table above");
static_assert(forward_bytes(64) == 46080 && dq_bytes(64) == 55296 && dkv_bytes(64) == 37376, "the table above");
static_assert(forward_bytes(96) == 39936 && dq_bytes(96) == 53248 && dkv_bytes(96) == 53760, "the table above");
static_assert(forward_bytes(128) == 52224 && dq_bytes(128) == 69632 && dkv_bytes(128) == 70144, "the table above");

constexpr float LOG2_E = 1.4426950408889634f;

// Copies N rows to shared memory; zeros from row `rows` and from column head_dim on.
template <int N, int D>
__device__ __forceinline__ void load_rows(bf16* smem, const bf16* g, int stride, int rows, int head_dim) {
#pragma unroll
  for (int i = threadIdx.x; i < N * D / 8; i += THREADS) {
    int r = i / (D / 8), c = i % (D / 8) * 8;
    bool inside = r < rows && c < head_dim;
    cp_async16_zfill(smem + r * (D + PAD) + c, inside ? g + (r * stride + c) : g, inside);
  }
}

// s (16, N) = own (16, D) other (N, D)^T, both in shared memory. A step that is cut short has `chunks` groups of 16 rows in `other`.
template <int N, int D, bool SHORT>
__device__ __forceinline__ void scores(float (&s)[N / 8][4], const bf16* own, const bf16* other, int chunks) {
  int l = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < N / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    uint32_t a[4];
    ldmatrix_x4(a, own + (l & 15) * (D + PAD) + d + (l >> 4) * 8);
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
      if (SHORT && j >= chunks) break;
      uint32_t f[4];
      ldmatrix_x4(f, other + (j * 16 + (l & 7) + (l >> 4) * 8) * (D + PAD) + d + (l >> 3 & 1) * 8);
      uint32_t b0[2] = {f[0], f[1]}, b1[2] = {f[2], f[3]};
      mma_bf16(s[2 * j], a, b0);
      mma_bf16(s[2 * j + 1], a, b1);
    }
  }
}

// o (16, D) += p (16, N), rounded to bf16, times other (N, D) in shared memory.
template <int N, int D, bool SHORT>
__device__ __forceinline__ void add_matmul(float (&o)[D / 8][4], const float (&p)[N / 8][4], const bf16* other, int chunks) {
  int l = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    if (SHORT && j >= chunks) break;
    uint32_t a[4] = {pack_bf16(p[2 * j][0], p[2 * j][1]), pack_bf16(p[2 * j][2], p[2 * j][3]),
                     pack_bf16(p[2 * j + 1][0], p[2 * j + 1][1]), pack_bf16(p[2 * j + 1][2], p[2 * j + 1][3])};
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      uint32_t f[4];
      ldmatrix_x4_trans(f, other + (j * 16 + (l & 15)) * (D + PAD) + d * 16 + (l >> 4) * 8);
      uint32_t b0[2] = {f[0], f[1]}, b1[2] = {f[2], f[3]};
      mma_bf16(o[2 * d], a, b0);
      mma_bf16(o[2 * d + 1], a, b1);
    }
  }
}

// The warp's 16 rows of o, those at l / 4 times factor[0] and those 8 below times factor[1]; `rows` of the 16 exist.
template <int D>
__device__ __forceinline__ void store_rows(bf16* g, int stride, const float (&o)[D / 8][4], int rows, int head_dim,
                                           const float (&factor)[2]) {
  int l = threadIdx.x & 31;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = (l >> 2) + 8 * h;
#pragma unroll
    for (int j = 0; j < D / 8; j += 4) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) w[i] = pack_bf16(o[j + i][2 * h] * factor[h], o[j + i][2 * h + 1] * factor[h]);
      quad_transpose(w);
      int c = (j + (l & 3)) * 8;
      if (r < rows && c < head_dim) *(uint4*)(g + (r * stride + c)) = uint4{w[0], w[1], w[2], w[3]};
    }
  }
}

// Over the four lanes that hold one row of a matmul's result.
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// One step of the forward pass: `left` keys remain. top is the largest score so far, sum this thread's share of
// sum exp(scale (score - top)), and o is relative to top too; [0] is the row at l / 4, [1] the one 8 below.
template <int N, int D, bool SHORT>
__device__ __forceinline__ void forward_step(float (&o)[D / 8][4], float (&top)[2], float (&sum)[2], const bf16* q, const bf16* k,
                                             const bf16* v, int left, float scale) {
  int l = threadIdx.x & 31, chunks = (left + 15) / 16;
  float s[N / 8][4];
  scores<N, D, SHORT>(s, q, k, chunks);
  if (SHORT) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (j * 8 + (l & 3) * 2 + (e & 1) >= left) s[j][e] = -INFINITY;
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float t = top[h];
#pragma unroll
    for (int j = 0; j < N / 8; j++) t = fmaxf(t, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
    t = row_max(t);
    float c = scale * LOG2_E, shift = t * c, shrink = exp2_approx(top[h] * c - shift);
    top[h] = t;
    sum[h] *= shrink;
#pragma unroll
    for (int d = 0; d < D / 8; d++) o[d][2 * h] *= shrink, o[d][2 * h + 1] *= shrink;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; e++) {
        s[j][e] = exp2_approx(s[j][e] * c - shift);
        sum[h] += s[j][e];
      }
  }
  add_matmul<N, D, SHORT>(o, s, v, chunks);
}

template <int D>
__device__ __forceinline__ void forward(bf16* y, float* lse, const bf16* qkv, int tokens, int heads, int head_dim, float scale) {
  constexpr int N = step(D), LD = D + PAD;
  DYNAMIC_SHARED(bf16, smem);
  bf16* q_rows = smem;
  bf16* stages = smem + ROWS * LD;  // each N rows of k, N rows of v
  int warp = threadIdx.x >> 5, l = threadIdx.x & 31, head = blockIdx.y;
  int tiles = (tokens + ROWS - 1) / ROWS, steps = (tokens + N - 1) / N, row0 = blockIdx.x % tiles * ROWS;
  int cols = heads * head_dim, stride = 3 * cols;
  size_t crop_row = (size_t)(blockIdx.x / tiles) * tokens;
  const bf16* q = qkv + crop_row * stride + head * head_dim;
  const bf16* k = q + cols;
  const bf16* v = k + cols;
  auto load = [&](int t) {
    bf16* to = stages + t % 2 * (2 * N * LD);
    if (t < steps) load_rows<N, D>(to, k + (size_t)t * N * stride, stride, tokens - t * N, head_dim);
    if (t < steps) load_rows<N, D>(to + N * LD, v + (size_t)t * N * stride, stride, tokens - t * N, head_dim);
    cp_commit();
  };
  load_rows<ROWS, D>(q_rows, q + (size_t)row0 * stride, stride, tokens - row0, head_dim);
  load(0);
  int own0 = row0 + warp * 16, own = tokens - own0;  // rows of this warp that exist; it may have none, but comes to the barriers
  float o[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int t = 0; t < steps; t++) {
    cp_wait<0>();
    // Step t is there for all, and all are through with step t - 1, whose stage is filled next.
    __syncthreads();
    load(t + 1);
    const bf16* ks = stages + t % 2 * (2 * N * LD);
    int left = tokens - t * N;
    if (own > 0 && left >= N) forward_step<N, D, false>(o, top, sum, q_rows + warp * 16 * LD, ks, ks + N * LD, N, scale);
    else if (own > 0) forward_step<N, D, true>(o, top, sum, q_rows + warp * 16 * LD, ks, ks + N * LD, left, scale);
  }
  if (own <= 0) return;
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float s = row_sum(sum[h]);
    int r = (l >> 2) + 8 * h;
    if ((l & 3) == 0 && r < own) lse[(crop_row + own0 + r) * heads + head] = top[h] * scale + logf(s);
    inverse[h] = 1.f / s;
  }
  store_rows<D>(y + (crop_row + own0) * cols + head * head_dim, cols, o, own, head_dim, inverse);
}

// One step of dq: p = exp(scale q.k - lse), ds = p (dy.v - delta), dq += ds k (times scale at the end).
template <int N, int D, bool SHORT>
__device__ __forceinline__ void dq_step(float (&dq)[D / 8][4], const bf16* q, const bf16* dy, const bf16* k, const bf16* v,
                                        const float (&lse2)[2], const float (&delta)[2], int left, float scale) {
  int l = threadIdx.x & 31, chunks = (left + 15) / 16;
  float s[N / 8][4], dp[N / 8][4];
  scores<N, D, SHORT>(s, q, k, chunks);
  scores<N, D, SHORT>(dp, dy, v, chunks);
#pragma unroll
  for (int j = 0; j < N / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      s[j][e] = exp2_approx(s[j][e] * (scale * LOG2_E) - lse2[e >> 1]) * (dp[j][e] - delta[e >> 1]);
      // A key past the end has score 0, which may be far above lse: its infinity times the zero row of k would be NaN.
      if (SHORT && j * 8 + (l & 3) * 2 + (e & 1) >= left) s[j][e] = 0.f;
    }
  add_matmul<N, D, SHORT>(dq, s, k, chunks);
}

template <int D>
__device__ __forceinline__ void query_gradient(bf16* dqkv, const bf16* dy, const bf16* qkv, const float* lse, const float* delta,
                                               int tokens, int heads, int head_dim, float scale) {
  constexpr int N = step(D), LD = D + PAD;
  DYNAMIC_SHARED(bf16, smem);
  bf16* q_rows = smem;
  bf16* dy_rows = smem + ROWS * LD;
  bf16* stages = smem + 2 * ROWS * LD;  // each N rows of k, N rows of v
  int warp = threadIdx.x >> 5, l = threadIdx.x & 31, head = blockIdx.y;
  int tiles = (tokens + ROWS - 1) / ROWS, steps = (tokens + N - 1) / N, row0 = blockIdx.x % tiles * ROWS;
  int cols = heads * head_dim, stride = 3 * cols;
  size_t crop_row = (size_t)(blockIdx.x / tiles) * tokens;
  const bf16* q = qkv + crop_row * stride + head * head_dim;
  const bf16* k = q + cols;
  const bf16* v = k + cols;
  auto load = [&](int t) {
    bf16* to = stages + t % 2 * (2 * N * LD);
    if (t < steps) load_rows<N, D>(to, k + (size_t)t * N * stride, stride, tokens - t * N, head_dim);
    if (t < steps) load_rows<N, D>(to + N * LD, v + (size_t)t * N * stride, stride, tokens - t * N, head_dim);
    cp_commit();
  };
  load_rows<ROWS, D>(q_rows, q + (size_t)row0 * stride, stride, tokens - row0, head_dim);
  load_rows<ROWS, D>(dy_rows, dy + (crop_row + row0) * cols + head * head_dim, cols, tokens - row0, head_dim);
  load(0);
  int own0 = row0 + warp * 16, own = tokens - own0;
  float lse2[2], del[2];  // lse in base 2
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = (l >> 2) + 8 * h;
    lse2[h] = r < own ? lse[(crop_row + own0 + r) * heads + head] * LOG2_E : 0.f;
    del[h] = r < own ? delta[(crop_row + own0 + r) * heads + head] : 0.f;
  }
  float dq[D / 8][4] = {};
  const bf16* qw = q_rows + warp * 16 * LD;
  const bf16* dyw = dy_rows + warp * 16 * LD;
  for (int t = 0; t < steps; t++) {
    cp_wait<0>();
    // Step t is there for all, and all are through with step t - 1, whose stage is filled next.
    __syncthreads();
    load(t + 1);
    const bf16* ks = stages + t % 2 * (2 * N * LD);
    int left = tokens - t * N;
    if (own > 0 && left >= N) dq_step<N, D, false>(dq, qw, dyw, ks, ks + N * LD, lse2, del, N, scale);
    else if (own > 0) dq_step<N, D, true>(dq, qw, dyw, ks, ks + N * LD, lse2, del, left, scale);
  }
  if (own <= 0) return;
  float factor[2] = {scale, scale};
  store_rows<D>(dqkv + (crop_row + own0) * stride + head * head_dim, stride, dq, own, head_dim, factor);
}

// One step of dk and dv, on the transposed scores: dv += p^T dy, dk += ds^T q (times scale at the end). Queries past the end
// need no mask: their rows of q and dy, their lse and delta are zeros, so p is 1 and both matmuls add zeros.
template <int N, int D, bool SHORT>
__device__ __forceinline__ void dkv_step(float (&dk)[D / 8][4], float (&dv)[D / 8][4], const bf16* k, const bf16* v, const bf16* q,
                                         const bf16* dy, const float* lse, const float* delta, int left, float scale) {
  int l = threadIdx.x & 31, chunks = (left + 15) / 16;
  float s[N / 8][4], dp[N / 8][4];
  scores<N, D, SHORT>(s, k, q, chunks);
#pragma unroll
  for (int j = 0; j < N / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      s[j][e] = exp2_approx(s[j][e] * (scale * LOG2_E) - lse[j * 8 + (l & 3) * 2 + (e & 1)] * LOG2_E);
  add_matmul<N, D, SHORT>(dv, s, dy, chunks);
  scores<N, D, SHORT>(dp, v, dy, chunks);
#pragma unroll
  for (int j = 0; j < N / 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) s[j][e] *= dp[j][e] - delta[j * 8 + (l & 3) * 2 + (e & 1)];
  add_matmul<N, D, SHORT>(dk, s, q, chunks);
}

template <int D>
__device__ __forceinline__ void key_value_gradient(bf16* dqkv, const bf16* dy, const bf16* qkv, const float* lse,
                                                   const float* delta, int tokens, int heads, int head_dim, float scale) {
  constexpr int N = dkv_rows(D), LD = D + PAD;
  DYNAMIC_SHARED(bf16, smem);
  bf16* k_rows = smem;
  bf16* v_rows = smem + ROWS * LD;
  bf16* stages = smem + 2 * ROWS * LD;               // each N rows of q, N rows of dy
  float* stats = (float*)(stages + 2 * 2 * N * LD);  // of each stage N of lse, N of delta
  int warp = threadIdx.x >> 5, head = blockIdx.y;
  int tiles = (tokens + ROWS - 1) / ROWS, steps = (tokens + N - 1) / N, row0 = blockIdx.x % tiles * ROWS;
  int cols = heads * head_dim, stride = 3 * cols;
  size_t crop_row = (size_t)(blockIdx.x / tiles) * tokens;
  const bf16* q = qkv + crop_row * stride + head * head_dim;
  const bf16* k = q + cols;
  const bf16* v = k + cols;
  dy += crop_row * cols + head * head_dim;
  lse += crop_row * heads + head;
  delta += crop_row * heads + head;
  auto load = [&](int t) {
    bf16* to = stages + t % 2 * (2 * N * LD);
    if (t < steps) {
      load_rows<N, D>(to, q + (size_t)t * N * stride, stride, tokens - t * N, head_dim);
      load_rows<N, D>(to + N * LD, dy + (size_t)t * N * cols, cols, tokens - t * N, head_dim);
      if (threadIdx.x < 2 * N) {
        int row = t * N + threadIdx.x % N;
        const float* from = threadIdx.x < N ? lse : delta;
        bool inside = row < tokens;
        cp_async4_zfill(stats + t % 2 * (2 * N) + threadIdx.x, inside ? from + row * heads : from, inside);
      }
    }
    cp_commit();
  };
  load_rows<ROWS, D>(k_rows, k + (size_t)row0 * stride, stride, tokens - row0, head_dim);
  load_rows<ROWS, D>(v_rows, v + (size_t)row0 * stride, stride, tokens - row0, head_dim);
  load(0);
  int own0 = row0 + warp * 16, own = tokens - own0;
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  const bf16* kw = k_rows + warp * 16 * LD;
  const bf16* vw = v_rows + warp * 16 * LD;
  for (int t = 0; t < steps; t++) {
    cp_wait<0>();
    // Step t is there for all, and all are through with step t - 1, whose stage is filled next.
    __syncthreads();
    load(t + 1);
    const bf16* qs = stages + t % 2 * (2 * N * LD);
    const float* ls = stats + t % 2 * (2 * N);
    int left = tokens - t * N;
    if (own > 0 && left >= N) dkv_step<N, D, false>(dk, dv, kw, vw, qs, qs + N * LD, ls, ls + N, N, scale);
    else if (own > 0) dkv_step<N, D, true>(dk, dv, kw, vw, qs, qs + N * LD, ls, ls + N, left, scale);
  }
  if (own <= 0) return;
  bf16* to = dqkv + (crop_row + own0) * stride + head * head_dim;
  float dk_factor[2] = {scale, scale}, dv_factor[2] = {1.f, 1.f};
  store_rows<D>(to + cols, stride, dk, own, head_dim, dk_factor);
  store_rows<D>(to + 2 * cols, stride, dv, own, head_dim, dv_factor);
}

}  // namespace attention_bf16

// delta[row, head] = sum over the head's columns of y dy; eight lanes a head.
// Grid: ceil(rows heads / 32). Block: 256. No dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256) attention_delta_bf16(float* __restrict__ delta, const bf16* __restrict__ y,
    const bf16* __restrict__ dy, int rows, int heads, int head_dim) {
  size_t i = (size_t)blockIdx.x * 32 + threadIdx.x / 8;
  bool inside = i < (size_t)rows * heads;
  float sum = 0.f;
  for (int c = threadIdx.x % 8 * 8; inside && c < head_dim; c += 64) {
    uint4 a = *(const uint4*)(y + i * head_dim + c), b = *(const uint4*)(dy + i * head_dim + c);
    uint32_t p[4] = {a.x, a.y, a.z, a.w}, q[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {  // a bf16 is the upper half of an f32
      sum += __uint_as_float(p[j] << 16) * __uint_as_float(q[j] << 16);
      sum += __uint_as_float(p[j] & 0xffff0000u) * __uint_as_float(q[j] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int o = 4; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (inside && threadIdx.x % 8 == 0) delta[i] = sum;
}
CPU_KERNEL(attention_delta_bf16);

// For each D: y and lse from qkv; dq into columns [0, C) of dqkv; dk and dv into columns [C, 3 C).
// Grid: (crops * ceil(tokens / 64), heads). Block: 128. Dynamic shared memory: forward_bytes(D), dq_bytes(D), dkv_bytes(D).
// The other numbers are the blocks that an SM should hold at once, for which the registers are limited.
#define ATTENTION(D, FORWARD, DQ, DKV)                                                                                \
  extern "C" __global__ void __launch_bounds__(128, FORWARD) attention_fwd_bf16_##D(bf16* __restrict__ y,             \
      float* __restrict__ lse, const bf16* __restrict__ qkv, int tokens, int heads, int head_dim, float scale) {      \
    attention_bf16::forward<D>(y, lse, qkv, tokens, heads, head_dim, scale);                                          \
  }                                                                                                                   \
  CPU_KERNEL(attention_fwd_bf16_##D);                                                                                 \
  extern "C" __global__ void __launch_bounds__(128, DQ) attention_dq_bf16_##D(bf16* __restrict__ dqkv,                \
      const bf16* __restrict__ dy, const bf16* __restrict__ qkv, const float* __restrict__ lse,                       \
      const float* __restrict__ delta, int tokens, int heads, int head_dim, float scale) {                            \
    attention_bf16::query_gradient<D>(dqkv, dy, qkv, lse, delta, tokens, heads, head_dim, scale);                     \
  }                                                                                                                   \
  CPU_KERNEL(attention_dq_bf16_##D);                                                                                  \
  extern "C" __global__ void __launch_bounds__(128, DKV) attention_dkv_bf16_##D(bf16* __restrict__ dqkv,              \
      const bf16* __restrict__ dy, const bf16* __restrict__ qkv, const float* __restrict__ lse,                       \
      const float* __restrict__ delta, int tokens, int heads, int head_dim, float scale) {                            \
    attention_bf16::key_value_gradient<D>(dqkv, dy, qkv, lse, delta, tokens, heads, head_dim, scale);                 \
  }                                                                                                                   \
  CPU_KERNEL(attention_dkv_bf16_##D)
ATTENTION(32, 4, 4, 3);
ATTENTION(64, 4, 3, 3);
ATTENTION(96, 3, 3, 2);
ATTENTION(128, 3, 3, 2);
#undef ATTENTION
