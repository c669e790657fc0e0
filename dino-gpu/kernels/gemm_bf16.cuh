// Matmuls on the tensor cores: bf16 in, f32 sums, any shape, leading dimension and alignment.
//
// A block makes one BM x BN tile of C at a time; its warps share out the tile, each WM x WN. Three stages of the operands' tiles,
// 32 deep in k, are in shared memory: while one is multiplied the next two are on their way. An operand is stored either with k
// along its rows, (rows, K), or with k down its columns, (K, rows); the second kind is transposed as it is read from shared memory.
// Rows in shared memory are padded by 16 bytes, so the eight rows that one ldmatrix phase reads start in different banks.
//
// Grid: x = ceil(n / tile), y = min(ceil(m / tile), 65535) (a block goes on to tile y + gridDim.y, and so forth), z = 1 but for the
// splits of gemm_tn. Block: 128 threads for the tile of 64, 256 for that of 128 (the kernels ending _128).
// Dynamic shared memory in bytes, gemm_bf16::smem_bytes():
//            nt      nn      tn
//   64    30720   29184   27648
//   128   61440   56832   52224
#pragma once
#ifndef CUDA_CPU
#include <cuda_bf16.h>
#include <stdint.h>
#endif
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

namespace gemm_bf16 {

constexpr int STEP = 32;  // depth in k of one stage
constexpr int STAGES = 3;
constexpr int PAD = 8;
__host__ __device__ constexpr int threads(int tile) { return tile == 64 ? 128 : 256; }

// Elements of one stage of an operand with `tile` rows, stored (K, rows) or (rows, K).
__host__ __device__ constexpr int stage(int tile, bool k_rows) { return k_rows ? STEP * (tile + PAD) : tile * (STEP + PAD); }
__host__ __device__ constexpr int smem_bytes(int tile, bool a_k_rows, bool b_k_rows) {
  return STAGES * (stage(tile, a_k_rows) + stage(tile, b_k_rows)) * 2;
}
static_assert(smem_bytes(64, false, false) == 30720 && smem_bytes(128, false, false) == 61440, "the table above");
static_assert(smem_bytes(64, false, true) == 29184 && smem_bytes(128, false, true) == 56832, "the table above");
static_assert(smem_bytes(64, true, true) == 27648 && smem_bytes(128, true, true) == 52224, "the table above");

__device__ __forceinline__ bool aligned16(const bf16* p, int ld) { return (((uintptr_t)p & 15) | (ld & 7)) == 0; }

// ROWS x COLS elements of a stored matrix from (row0, col0) to shared memory; zeros where the matrix ends at `rows`, `cols`.
// `packed`: rows start on 16 bytes, and the copies are asynchronous; else element by element.
template <int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_tile(bf16* smem, const bf16* g, int ld, int row0, int rows, int col0, int cols, bool packed) {
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * COLS / 8; i += THREADS) {
    int row = row0 + i / (COLS / 8), c = i % (COLS / 8) * 8, col = col0 + c;
    int left = row < rows ? max(0, min(8, cols - col)) : 0;
    const bf16* from = left ? g + (size_t)row * ld + col : g;
    bf16* to = smem + i / (COLS / 8) * (COLS + PAD) + c;
    if (packed) {
      cp_async16_bytes(to, from, left * 2);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) to[j] = j < left ? from[j] : __float2bfloat16(0.f);
    }
  }
}

// An operand that is a stored matrix of `rows` rows, the sum over k ending at k1. Whatever has `start` (the first row of the tile that
// comes next) and `load` (its elements from k on to shared memory, STEP deep, zeros past the ends) can be an operand: conv_bf16.cu.
template <int TILE, int THREADS, bool K_ROWS> struct Stored {
  const bf16* g;
  int ld, rows, k1, first;
  bool packed;
  __device__ __forceinline__ Stored(const bf16* g, int ld, int rows, int k1)
      : g(g), ld(ld), rows(rows), k1(k1), first(0), packed(aligned16(g, ld)) {}
  __device__ __forceinline__ void start(int row) { first = row; }
  __device__ __forceinline__ void load(bf16* smem, int k) const {
    if (K_ROWS) load_tile<STEP, TILE, THREADS>(smem, g, ld, k, k1, first, rows, packed);
    else load_tile<TILE, STEP, THREADS>(smem, g, ld, first, rows, k, k1, packed);
  }
};

// The sums of one tile over k in [k0, k1). store(row, column, v) then gets this thread's share of each row of its warp's part, two
// neighbors in each group of eight columns: v[j] are columns column + 8 j and the next. All lanes of the warp call it together, also
// for rows past m and columns past n, which the callee leaves out.
template <int BM, int BN, int WARPS_M, int WARPS_N, bool A_K_ROWS, bool B_K_ROWS, class A, class B, class Store>
__device__ __forceinline__ void multiply(A a, B b, int m, int k0, int k1, Store store) {
  constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
  constexpr int A_STAGE = stage(BM, A_K_ROWS), B_STAGE = stage(BN, B_K_ROWS);
  constexpr int A_LD = A_K_ROWS ? BM + PAD : STEP + PAD, B_LD = B_K_ROWS ? BN + PAD : STEP + PAD;
  static_assert(WM % 16 == 0 && WN % 16 == 0, "full fragments");
  DYNAMIC_SHARED(bf16, smem);
  bf16* a_stages = smem;
  bf16* b_stages = smem + STAGES * A_STAGE;
  int warp = threadIdx.x >> 5, l = threadIdx.x & 31;
  int wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;
  int n0 = blockIdx.x * BN, steps = k1 > k0 ? (k1 - k0 + STEP - 1) / STEP : 0;
  b.start(n0);

  for (long long m_tile = (long long)blockIdx.y * BM; m_tile < m; m_tile += (long long)gridDim.y * BM) {
    int m0 = (int)m_tile;
    a.start(m0);
    // An empty group past the end keeps the count that cp_wait goes by.
    auto load = [&](int t) {
      if (t < steps) {
        bf16* as = a_stages + t % STAGES * A_STAGE;
        bf16* bs = b_stages + t % STAGES * B_STAGE;
        int k = k0 + t * STEP;
        a.load(as, k);
        b.load(bs, k);
      }
      cp_commit();
    };
    float acc[WM / 16][WN / 8][4] = {};
    for (int t = 0; t < STAGES - 1; t++) load(t);
    for (int t = 0; t < steps; t++) {
      cp_wait<STAGES - 2>();
      // Step t is there for all, and all are through with step t - 1, whose stage is filled next.
      __syncthreads();
      load(t + STAGES - 1);
      const bf16* as = a_stages + t % STAGES * A_STAGE;
      const bf16* bs = b_stages + t % STAGES * B_STAGE;
#pragma unroll
      for (int kk = 0; kk < STEP; kk += 16) {
        uint32_t fa[WM / 16][4], fb[WN / 8][2];
#pragma unroll
        for (int i = 0; i < WM / 16; i++) {
          if (A_K_ROWS) ldmatrix_x4_trans(fa[i], as + (kk + (l & 7) + (l >> 4) * 8) * A_LD + wm + i * 16 + (l >> 3 & 1) * 8);
          else ldmatrix_x4(fa[i], as + (wm + i * 16 + (l & 15)) * A_LD + kk + (l >> 4) * 8);
        }
#pragma unroll
        for (int j = 0; j < WN / 16; j++) {
          uint32_t f[4];
          if (B_K_ROWS) ldmatrix_x4_trans(f, bs + (kk + (l & 15)) * B_LD + wn + j * 16 + (l >> 4) * 8);
          else ldmatrix_x4(f, bs + (wn + j * 16 + (l & 7) + (l >> 4) * 8) * B_LD + kk + (l >> 3 & 1) * 8);
          fb[2 * j][0] = f[0], fb[2 * j][1] = f[1], fb[2 * j + 1][0] = f[2], fb[2 * j + 1][1] = f[3];
        }
#pragma unroll
        for (int i = 0; i < WM / 16; i++)
#pragma unroll
          for (int j = 0; j < WN / 8; j++) mma_bf16(acc[i][j], fa[i], fb[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < WM / 16; i++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float2 v[WN / 8];
#pragma unroll
        for (int j = 0; j < WN / 8; j++) v[j] = make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
        store(m0 + wm + i * 16 + h * 8 + (l >> 2), n0 + wn + (l & 3) * 2, v);
      }
    }
    // The next tile's first stages are filled only when all are through with this one's last.
    __syncthreads();
  }
}

// The warp's part of each tile is 32 columns wide: four groups of eight.
constexpr int GROUPS = 4;

// One row's share to f32; eight bytes at a time where the pairs are aligned.
__device__ __forceinline__ void store_f32(float* c, int ldc, int m, int n, int row, int col, const float2 (&v)[GROUPS], bool add) {
  if (row >= m) return;
  float* to = c + (size_t)row * ldc + col;
  bool packed = ((uintptr_t)to & 7) == 0;
#pragma unroll
  for (int j = 0; j < GROUPS; j++, to += 8) {
    int left = n - col - 8 * j;
    if (left >= 2 && packed) {
      float2 old = add ? *(float2*)to : make_float2(0.f, 0.f);
      *(float2*)to = make_float2(old.x + v[j].x, old.y + v[j].y);
    } else {
      if (left >= 1) to[0] = add ? to[0] + v[j].x : v[j].x;
      if (left >= 2) to[1] = add ? to[1] + v[j].y : v[j].y;
    }
  }
}

// One row's share to bf16; where rows are aligned and the 32 columns exist (the same for all lanes), 16 bytes a lane.
__device__ __forceinline__ void store_bf16(bf16* c, int ldc, int m, int n, int row, int col, float2 (&v)[GROUPS], bool add) {
  int pair = (threadIdx.x & 3) * 2, first = col - pair;
  if (add && row < m) {
    const bf16* old = c + (size_t)row * ldc + col;
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
      if (col + 8 * j < n) v[j].x += __bfloat162float(old[8 * j]);
      if (col + 8 * j + 1 < n) v[j].y += __bfloat162float(old[8 * j + 1]);
    }
  }
  if (aligned16(c, ldc) && first + 8 * GROUPS <= n) {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < GROUPS; j++) w[j] = pack_bf16(v[j].x, v[j].y);
    quad_transpose(w);
    if (row < m) *(uint4*)(c + (size_t)row * ldc + first + pair * 4) = uint4{w[0], w[1], w[2], w[3]};
    return;
  }
  if (row >= m) return;
  bf16* to = c + (size_t)row * ldc + col;
#pragma unroll
  for (int j = 0; j < GROUPS; j++, to += 8) {
    int left = n - col - 8 * j;
    if (left >= 1) to[0] = __float2bfloat16(v[j].x);
    if (left >= 2) to[1] = __float2bfloat16(v[j].y);
  }
}

// x Phi(x) of x rounded to bf16, as a later pass over the stored values would give.
__device__ __forceinline__ float gelu_of_rounded(float v) {
  float x = __bfloat162float(__float2bfloat16(v));
  return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
}

template <int TILE, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void nt(void* c, int ldc, const bf16* a, int lda, const bf16* b, int ldb, int m, int n, int k,
                                   const float* bias, void* gelu, int out_f32) {
  constexpr int THREADS = threads(TILE);
  Stored<TILE, THREADS, false> left(a, lda, m, k), right(b, ldb, n, k);
  multiply<TILE, TILE, WARPS_M, WARPS_N, false, false>(left, right, m, 0, k, [=](int row, int col, float2 (&v)[GROUPS]) {
    if (bias) {
#pragma unroll
      for (int j = 0; j < GROUPS; j++) {
        if (col + 8 * j < n) v[j].x += bias[col + 8 * j];
        if (col + 8 * j + 1 < n) v[j].y += bias[col + 8 * j + 1];
      }
    }
    if (out_f32) store_f32((float*)c, ldc, m, n, row, col, v, false);
    else store_bf16((bf16*)c, ldc, m, n, row, col, v, false);
    if (gelu) {
#pragma unroll
      for (int j = 0; j < GROUPS; j++) v[j] = make_float2(gelu_of_rounded(v[j].x), gelu_of_rounded(v[j].y));
      store_bf16((bf16*)gelu, ldc, m, n, row, col, v, false);
    }
  });
}

template <int TILE, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void nn(void* c, int ldc, const bf16* a, int lda, const bf16* b, int ldb, int m, int n, int k,
                                   int out_f32, int accumulate) {
  constexpr int THREADS = threads(TILE);
  Stored<TILE, THREADS, false> left(a, lda, m, k);
  Stored<TILE, THREADS, true> right(b, ldb, n, k);
  multiply<TILE, TILE, WARPS_M, WARPS_N, false, true>(left, right, m, 0, k, [=](int row, int col, float2 (&v)[GROUPS]) {
    if (out_f32) store_f32((float*)c, ldc, m, n, row, col, v, accumulate);
    else store_bf16((bf16*)c, ldc, m, n, row, col, v, accumulate);
  });
}

template <int TILE, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void tn(float* c, int ldc, const bf16* a, int lda, const bf16* b, int ldb, int m, int n, int k,
                                   int k_per_split, int accumulate, size_t split_stride) {
  long long first = (long long)blockIdx.z * k_per_split, last = first + k_per_split;
  int k0 = (int)(first < k ? first : k), k1 = (int)(last < k ? last : k);
  float* part = c + blockIdx.z * split_stride;
  bool add = accumulate && gridDim.z == 1;
  constexpr int THREADS = threads(TILE);
  Stored<TILE, THREADS, true> left(a, lda, m, k1), right(b, ldb, n, k1);
  multiply<TILE, TILE, WARPS_M, WARPS_N, true, true>(left, right, m, k0, k1, [=](int row, int col, float2 (&v)[GROUPS]) {
    store_f32(part, ldc, m, n, row, col, v, add);
  });
}

}  // namespace gemm_bf16

// C (m, n) = A (m, k) B^T + bias, B stored (n, k); C is f32 or bf16. With `gelu`, (m, n) bf16 with C's leading dimension, also
// x Phi(x) of C rounded to bf16. `bias` and `gelu` may be null.
extern "C" __global__ void __launch_bounds__(128) gemm_nt_bf16(void* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, const float* __restrict__ bias, void* gelu, int out_f32) {
  gemm_bf16::nt<64, 2, 2>(c, ldc, a, lda, b, ldb, m, n, k, bias, gelu, out_f32);
}
CPU_KERNEL(gemm_nt_bf16);
extern "C" __global__ void __launch_bounds__(256, 2) gemm_nt_bf16_128(void* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, const float* __restrict__ bias, void* gelu, int out_f32) {
  gemm_bf16::nt<128, 2, 4>(c, ldc, a, lda, b, ldb, m, n, k, bias, gelu, out_f32);
}
CPU_KERNEL(gemm_nt_bf16_128);

// C (m, n) = A (m, k) B, B stored (k, n); C is f32 or bf16. With `accumulate`, C += instead of C =.
extern "C" __global__ void __launch_bounds__(128) gemm_nn_bf16(void* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, int out_f32, int accumulate) {
  gemm_bf16::nn<64, 2, 2>(c, ldc, a, lda, b, ldb, m, n, k, out_f32, accumulate);
}
CPU_KERNEL(gemm_nn_bf16);
extern "C" __global__ void __launch_bounds__(256, 2) gemm_nn_bf16_128(void* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, int out_f32, int accumulate) {
  gemm_bf16::nn<128, 2, 4>(c, ldc, a, lda, b, ldb, m, n, k, out_f32, accumulate);
}
CPU_KERNEL(gemm_nn_bf16_128);

// C (m, n) f32 = A^T B over rows [z k_per_split, (z + 1) k_per_split) of A stored (k, m) and B stored (k, n), at c + z split_stride
// for z = blockIdx.z; a range that is empty gives zeros. `accumulate` adds to C and counts only where gridDim.z is 1.
extern "C" __global__ void __launch_bounds__(128) gemm_tn_bf16(float* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, int k_per_split, int accumulate, size_t split_stride) {
  gemm_bf16::tn<64, 2, 2>(c, ldc, a, lda, b, ldb, m, n, k, k_per_split, accumulate, split_stride);
}
CPU_KERNEL(gemm_tn_bf16);
extern "C" __global__ void __launch_bounds__(256, 2) gemm_tn_bf16_128(float* c, int ldc, const bf16* __restrict__ a, int lda,
    const bf16* __restrict__ b, int ldb, int m, int n, int k, int k_per_split, int accumulate, size_t split_stride) {
  gemm_bf16::tn<128, 2, 4>(c, ldc, a, lda, b, ldb, m, n, k, k_per_split, accumulate, split_stride);
}
CPU_KERNEL(gemm_tn_bf16_128);

// C (m, n) += the sum of `splits` dense (m, n) parts, in their order, so the same parts give the same bits.
// Grid: any number of blocks, best ceil(m n / 256). Block: 256 threads. No dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256) split_sum(float* c, int ldc, const float* __restrict__ parts, int m, int n,
    int splits, size_t split_stride) {
  size_t elements = (size_t)m * n;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += (size_t)gridDim.x * blockDim.x) {
    float sum = 0.f;
    for (int z = 0; z < splits; z++) sum += parts[z * split_stride + i];
    c[i / n * ldc + i % n] += sum;
  }
}
CPU_KERNEL(split_sum);
