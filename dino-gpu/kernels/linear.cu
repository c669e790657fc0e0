// The f32 GEMM of the mode for tight agreement: any strides, so that one kernel serves y = x w^T, dx = dy w and dw = dy^T x.
// bf16 goes through the tensor cores: gemm_bf16.cuh.  dino-kernel/src/ops/linear.rs
#pragma once

// The sums of a tile of 64 x 64 at a time, over p in [begin, end) of a(i, p) b(p, j); store(i, j, sum) gets each of them. Neighbors in
// memory are neighbors in the warp, whether the elements of an operand along p are (`a_along`, `b_along`) or those across.
// Block (16, 16), grid (ceil(n / 64), ceil(m / 64) or fewer, ...).
template <class A, class B, class Store>
__device__ __forceinline__ void multiply_f32(int m, int n, int begin, int end, bool a_along, bool b_along, A a, B b, Store store) {
  __shared__ float as[16][65], bs[16][65];
  int tx = threadIdx.x, ty = threadIdx.y, id = ty * 16 + tx, n0 = blockIdx.x * 64;
  for (long long m0 = (long long)blockIdx.y * 64; m0 < m; m0 += (long long)gridDim.y * 64) {
    float sum[4][4] = {};
    for (int p0 = begin; p0 < end; p0 += 16) {
      for (int i = id; i < 64 * 16; i += 256) {
        int p = a_along ? i % 16 : i / 64, r = a_along ? i / 16 : i % 64;
        as[p][r] = m0 + r < m && p0 + p < end ? a((int)m0 + r, p0 + p) : 0.f;
        p = b_along ? i % 16 : i / 64, r = b_along ? i / 16 : i % 64;
        bs[p][r] = n0 + r < n && p0 + p < end ? b(p0 + p, n0 + r) : 0.f;
      }
      __syncthreads();
#pragma unroll
      for (int p = 0; p < 16; p++) {
        float x[4], y[4];
        for (int i = 0; i < 4; i++) x[i] = as[p][ty + 16 * i], y[i] = bs[p][tx + 16 * i];
        for (int i = 0; i < 4; i++)
          for (int j = 0; j < 4; j++) sum[i][j] += x[i] * y[j];
      }
      __syncthreads();
    }
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) {
        long long r = m0 + ty + 16 * i;
        int col = n0 + tx + 16 * j;
        if (r >= m || col >= n) continue;
        store((int)r, col, sum[i][j]);
      }
  }
}

// c (m, n; row stride ldc) = a b, a[i, p] at a + i a_row + p a_col, b[p, j] at b + p b_row + j b_col. Grid (.., .., splits): split z sums p
// in [z k_split, (z + 1) k_split) and writes at c + z c_split.
// With bias (n) it is added; with `gelu` (as c) that gets gelu(c); with `accumulate`, c += instead of c =.
extern "C" __global__ void __launch_bounds__(256) gemm_f32(float* __restrict__ c, long long ldc, const float* __restrict__ a, long long a_row,
    long long a_col, const float* __restrict__ b, long long b_row, long long b_col, int m, int n, int k, int k_split, long long c_split,
    const float* __restrict__ bias, float* __restrict__ gelu, int accumulate) {
  int begin = blockIdx.z * k_split, end = min(k, begin + k_split);
  c += blockIdx.z * c_split;
  multiply_f32(m, n, begin, end, a_col == 1, b_row == 1,
    [=](int r, int p) { return a[r * a_row + p * a_col]; },
    [=](int p, int col) { return b[p * b_row + col * b_col]; },
    [=](long long r, int col, float sum) {
      float v = sum + (bias ? bias[col] : 0.f);
      if (accumulate) v += c[r * ldc + col];
      c[r * ldc + col] = v;
      if (gelu) gelu[r * ldc + col] = gelu_of(v);
    });
}
REGISTER(gemm_f32);
