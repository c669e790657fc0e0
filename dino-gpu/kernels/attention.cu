// y = P v, P = softmax(q k^T scale), for one group of crops; saved: lse = log-sum-exp of the scaled scores, never P.
// dv = P^T dy; ds = P (dy v^T - delta) scale, delta = y . dy by row; dq = ds k; dk = ds^T q.
//
// These serve any head up to 256 wide, all tokens as queries or the class token alone; attention_bf16.cu has the tensor cores for the
// shapes that take nearly all the time. One warp a row, 32 counterparts at a time: first a lane a counterpart for the scores, then
// a lane a channel for the sums. Sums have one order.  dino-kernel/src/ops/attention.rs
#ifndef ATTENTION_ONCE
#define ATTENTION_ONCE

// Rows of a packed matrix that belong to one head: element (row, c) at data[row * stride + c], `data` moved to the head's part.
template <class T> struct Part {
  T* data;
  int stride;
  __device__ __forceinline__ T* row(long long r) const { return data + r * stride; }
};

template <class T> __device__ __forceinline__ float dot(const float* x, const T* y, int d) {
  float s = 0;
  int i = 0;
  for (; i + 4 <= d; i += 4) {
    float v[4];
    load4(v, y, i, d);
    s += x[i] * v[0] + x[i + 1] * v[1] + x[i + 2] * v[2] + x[i + 3] * v[3];
  }
  for (; i < d; i++) s += x[i] * get(y[i]);
  return s;
}

constexpr int WARPS = 4;         // a block
constexpr int MOST = 256;        // channels of a head
constexpr int SLOTS = MOST / 32; // a lane's channels: lane, lane + 32, ...

// Which (crop, row of the crop, head) a warp has.
struct WarpIndex {
  int crop, row, head;
  bool inside;
  __device__ __forceinline__ WarpIndex(long long warps, int rows, int heads) {
    long long w = WARP_ROW();
    inside = w < warps;
    head = w % heads, row = w / heads % rows, crop = w / heads / rows;
  }
};
#endif

// q (crops * queries, row stride q_stride), k and v (crops * tokens, kv_stride), y (crops * queries, heads * d), lse (crops * queries, heads).
extern "C" __global__ void __launch_bounds__(WARPS * 32) KERNEL(attend)(act* __restrict__ y, float* __restrict__ lse,
    const act* __restrict__ q, int q_stride, const act* __restrict__ k, const act* __restrict__ v, int kv_stride, int crops, int queries,
    int tokens, int heads, int d, float scale) {
  __shared__ float qs[WARPS][MOST];
  WarpIndex at((long long)crops * queries * heads, queries, heads);
  if (!at.inside) return;
  int lane = LANE(), warp = threadIdx.x >> 5;
  long long row = (long long)at.crop * queries + at.row, first = (long long)at.crop * tokens;
  float* x = qs[warp];
  for (int c = lane; c < d; c += 32) x[c] = get(q[row * q_stride + at.head * d + c]);
  __syncwarp();
  Part<const act> ks = {k + at.head * d, kv_stride}, vs = {v + at.head * d, kv_stride};
  float top = -INFINITY, total = 0, sum[SLOTS] = {};
  for (int j0 = 0; j0 < tokens; j0 += 32) {
    int j = j0 + lane;
    float s = j < tokens ? dot(x, ks.row(first + j), d) * scale : -INFINITY;
    float higher = warp_max(fmaxf(s, top)), fall = expf(top - higher);
    if (s != s) higher = s;
    float p = expf(s - higher);
    top = higher;
    total = total * fall + p;  // of this lane's counterparts
    for (int e = 0; e < SLOTS; e++) sum[e] *= fall;
    for (int i = 0; i < 32 && j0 + i < tokens; i++) {
      float pi = __shfl_sync(ALL, p, i);
      const act* vi = vs.row(first + j0 + i);
      for (int e = 0; e < SLOTS; e++)
        if (lane + 32 * e < d) sum[e] += pi * get(vi[lane + 32 * e]);
    }
  }
  total = warp_sum(total);
  for (int e = 0; e < SLOTS; e++)
    if (lane + 32 * e < d) put(y[row * heads * d + at.head * d + lane + 32 * e], sum[e] / total);
  if (lane == 0) lse[row * heads + at.head] = top + logf(total);
}
REGISTER(KERNEL(attend));

// dq (as q) is set.
extern "C" __global__ void __launch_bounds__(WARPS * 32) KERNEL(attend_dq)(act* __restrict__ dq, const act* __restrict__ dy,
    const act* __restrict__ y, const float* __restrict__ lse, const act* __restrict__ q, int q_stride, const act* __restrict__ k,
    const act* __restrict__ v, int kv_stride, int crops, int queries, int tokens, int heads, int d, float scale) {
  __shared__ float qs[WARPS][MOST], dys[WARPS][MOST];
  WarpIndex at((long long)crops * queries * heads, queries, heads);
  if (!at.inside) return;
  int lane = LANE(), warp = threadIdx.x >> 5;
  long long row = (long long)at.crop * queries + at.row, first = (long long)at.crop * tokens, here = row * heads * d + at.head * d;
  float *x = qs[warp], *g = dys[warp], delta = 0, l = lse[row * heads + at.head];
  for (int c = lane; c < d; c += 32) {
    x[c] = get(q[row * q_stride + at.head * d + c]);
    g[c] = get(dy[here + c]);
    delta += g[c] * get(y[here + c]);
  }
  delta = warp_sum(delta);
  __syncwarp();
  Part<const act> ks = {k + at.head * d, kv_stride}, vs = {v + at.head * d, kv_stride};
  float sum[SLOTS] = {};
  for (int j0 = 0; j0 < tokens; j0 += 32) {
    int j = j0 + lane;
    float ds = 0;
    if (j < tokens) {
      float p = expf(dot(x, ks.row(first + j), d) * scale - l);
      ds = p * (dot(g, vs.row(first + j), d) - delta) * scale;
    }
    for (int i = 0; i < 32 && j0 + i < tokens; i++) {
      float di = __shfl_sync(ALL, ds, i);
      const act* ki = ks.row(first + j0 + i);
      for (int e = 0; e < SLOTS; e++)
        if (lane + 32 * e < d) sum[e] += di * get(ki[lane + 32 * e]);
    }
  }
  for (int e = 0; e < SLOTS; e++)
    if (lane + 32 * e < d) put(dq[row * q_stride + at.head * d + lane + 32 * e], sum[e]);
}
REGISTER(KERNEL(attend_dq));

// dk and dv (as k and v) are set.
extern "C" __global__ void __launch_bounds__(WARPS * 32) KERNEL(attend_dkv)(act* __restrict__ dk, act* __restrict__ dv,
    const act* __restrict__ dy, const act* __restrict__ y, const float* __restrict__ lse, const act* __restrict__ q, int q_stride,
    const act* __restrict__ k, const act* __restrict__ v, int kv_stride, int crops, int queries, int tokens, int heads, int d, float scale) {
  __shared__ float key[WARPS][MOST], value[WARPS][MOST];
  WarpIndex at((long long)crops * tokens * heads, tokens, heads);
  if (!at.inside) return;
  int lane = LANE(), warp = threadIdx.x >> 5;
  long long row = (long long)at.crop * tokens + at.row, first = (long long)at.crop * queries;
  float *kj = key[warp], *vj = value[warp];
  for (int c = lane; c < d; c += 32) {
    kj[c] = get(k[row * kv_stride + at.head * d + c]);
    vj[c] = get(v[row * kv_stride + at.head * d + c]);
  }
  __syncwarp();
  Part<const act> qs = {q + at.head * d, q_stride}, dys = {dy + at.head * d, heads * d}, ys = {y + at.head * d, heads * d};
  float dk_sum[SLOTS] = {}, dv_sum[SLOTS] = {};
  for (int i0 = 0; i0 < queries; i0 += 32) {
    int i = i0 + lane;
    float p = 0, ds = 0;
    if (i < queries) {
      const act *g = dys.row(first + i), *yi = ys.row(first + i);
      float delta = 0;
      for (int c = 0; c < d; c++) delta += get(g[c]) * get(yi[c]);
      p = expf(dot(kj, qs.row(first + i), d) * scale - lse[(first + i) * heads + at.head]);
      ds = p * (dot(vj, g, d) - delta) * scale;
    }
    for (int n = 0; n < 32 && i0 + n < queries; n++) {
      float pn = __shfl_sync(ALL, p, n), dn = __shfl_sync(ALL, ds, n);
      const act *qn = qs.row(first + i0 + n), *gn = dys.row(first + i0 + n);
      for (int e = 0; e < SLOTS; e++)
        if (lane + 32 * e < d) {
          dk_sum[e] += dn * get(qn[lane + 32 * e]);
          dv_sum[e] += pn * get(gn[lane + 32 * e]);
        }
    }
  }
  for (int e = 0; e < SLOTS; e++)
    if (lane + 32 * e < d) {
      put(dk[row * kv_stride + at.head * d + lane + 32 * e], dk_sum[e]);
      put(dv[row * kv_stride + at.head * d + lane + 32 * e], dv_sum[e]);
    }
}
REGISTER(KERNEL(attend_dkv));

// Probabilities of the first `queries` rows of every crop, (crops, heads, queries, tokens); lse (crops * tokens, heads), qkv (crops * tokens, 3 C).
extern "C" __global__ void KERNEL(attention_rows)(act* __restrict__ y, const float* __restrict__ lse, const act* __restrict__ qkv, long long n,
    int queries, int tokens, int heads, int d, float scale) {
  long long e = FLAT();
  if (e >= n) return;
  int j = e % tokens, i = e / tokens % queries, h = e / tokens / queries % heads;
  long long crop = e / tokens / queries / heads, first = crop * tokens;
  int c = heads * d;
  const act *q = qkv + (first + i) * 3 * c + h * d, *k = qkv + (first + j) * 3 * c + c + h * d;
  float s = 0;
  for (int at = 0; at < d; at++) s += get(q[at]) * get(k[at]);
  put(y[e], expf(s * scale - lse[(first + i) * heads + h]));
}
REGISTER(KERNEL(attention_rows));
