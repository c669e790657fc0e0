// The f32 GEMM of the mode for tight agreement: any strides, so that one kernel serves y = x w^T, dx = dy w and dw = dy^T x.
// bf16 goes through the tensor cores: gemm_bf16.cuh.  dino-kernel/src/ops/linear.rs
#pragma once

// c (m, n; row stride ldc) = a b, a[i, p] at a + i a_row + p a_col, b[p, j] at b + p b_row + j b_col. Block (16, 16), a tile of 64 x 64;
// grid (ceil(n / 64), ceil(m / 64) or fewer, splits): split z sums p in [z k_split, (z + 1) k_split) and writes at c + z c_split.
// With bias (n) it is added; with `gelu` (as c) that gets gelu(c); with `accumulate`, c += instead of c =.
extern "C" __global__ void __launch_bounds__(256) gemm_f32(float* __restrict__ c, long long ldc, const float* __restrict__ a, long long a_row,
    long long a_col, const float* __restrict__ b, long long b_row, long long b_col, int m, int n, int k, int k_split, long long c_split,
    const float* __restrict__ bias, float* __restrict__ gelu, int accumulate) {
  __shared__ float as[16][65], bs[16][65];
  int tx = threadIdx.x, ty = threadIdx.y, id = ty * 16 + tx;
  int n0 = blockIdx.x * 64, begin = blockIdx.z * k_split, end = min(k, begin + k_split);
  c += blockIdx.z * c_split;
  for (long long m0 = (long long)blockIdx.y * 64; m0 < m; m0 += (long long)gridDim.y * 64) {
    float sum[4][4] = {};
    for (int p0 = begin; p0 < end; p0 += 16) {
      // Neighbors in memory are neighbors in the warp, whether the matrix is stored by rows or by columns.
      for (int i = id; i < 64 * 16; i += 256) {
        int p = a_col == 1 ? i % 16 : i / 64, r = a_col == 1 ? i / 16 : i % 64;
        as[p][r] = m0 + r < m && p0 + p < end ? a[(m0 + r) * a_row + (p0 + p) * a_col] : 0.f;
        p = b_row == 1 ? i % 16 : i / 64, r = b_row == 1 ? i / 16 : i % 64;
        bs[p][r] = n0 + r < n && p0 + p < end ? b[(p0 + p) * b_row + (n0 + r) * b_col] : 0.f;
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
        float v = sum[i][j] + (bias ? bias[col] : 0.f);
        if (accumulate) v += c[r * ldc + col];
        c[r * ldc + col] = v;
        if (gelu) gelu[r * ldc + col] = gelu_of(v);
      }
  }
}
REGISTER(gemm_f32);
