// The PTX instructions the kernels use, and nothing else in the crate spells PTX: the real instructions under nvcc,
// the same effect in plain C++ where cuda_cpu.h runs the kernels on the host.
#pragma once
#ifdef CUDA_CPU

namespace cpu_ptx {
// A copy lands as late as cp_wait allows, or with a seed sometimes at once, so both a missing wait and a refill of
// memory that is still being read show.
inline void copy(void* d, const void* s, int n) {
  if (cpu::seed() && cpu::coin(2)) memcpy(d, s, n);
  else cpu::me().open.push_back({d, s, n});
}
inline void copy_zfill(void* d, const void* s, int size, int bytes) {
  static const char zeros[16] = {};
  if (bytes) copy(d, s, bytes);
  if (bytes < size) copy((char*)d + bytes, zeros, size - bytes);
}
// One 8x8 matrix of 16-bit elements per eight lanes' row addresses.
template <int N, bool TRANS> inline void ldmatrix(uint32_t (&r)[N], const void* p) {
  uint64_t u = (uint64_t)p;
  auto* s = cpu::exchange<1>(&u, ~0u);
  int l = cpu::me().lane;
  for (int i = 0; i < N; i++) {
    if (!TRANS) {
      memcpy(&r[i], (const char*)s[i * 8 + l / 4][0] + (l & 3) * 4, 4);
    } else {
      uint16_t lo, hi;
      memcpy(&lo, (const char*)s[i * 8 + (l & 3) * 2][0] + (l >> 2) * 2, 2);
      memcpy(&hi, (const char*)s[i * 8 + (l & 3) * 2 + 1][0] + (l >> 2) * 2, 2);
      r[i] = lo | (uint32_t)hi << 16;
    }
  }
}
}  // namespace cpu_ptx

__device__ inline void cp_async16(void* smem, const void* g) { cpu_ptx::copy(smem, g, 16); }
__device__ inline void cp_async16_bytes(void* smem, const void* g, int bytes) { cpu_ptx::copy_zfill(smem, g, 16, bytes); }
__device__ inline void cp_async16_zfill(void* smem, const void* g, bool valid) { cpu_ptx::copy_zfill(smem, g, 16, valid ? 16 : 0); }
__device__ inline void cp_async4_zfill(void* smem, const void* g, bool valid) { cpu_ptx::copy_zfill(smem, g, 4, valid ? 4 : 0); }
__device__ inline void cp_commit() {
  auto& f = cpu::me();
  f.groups.push_back(std::move(f.open));
  f.open.clear();
}
template <int N> __device__ inline void cp_wait() {
  auto& f = cpu::me();
  while ((int)f.groups.size() > N) {
    for (auto& c : f.groups.front()) memcpy(c.d, c.s, c.n);
    f.groups.erase(f.groups.begin());
  }
}
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* p) { cpu_ptx::ldmatrix<4, false>(r, p); }
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) { cpu_ptx::ldmatrix<4, true>(r, p); }
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint64_t v[3] = {a[0] | (uint64_t)a[1] << 32, a[2] | (uint64_t)a[3] << 32, b[0] | (uint64_t)b[1] << 32};
  auto* s = cpu::exchange<3>(v, ~0u);
  int l = cpu::me().lane, row = l >> 2, col = (l & 3) * 2;
  auto lo = [](uint64_t w) { return __uint_as_float((uint32_t)w << 16); };
  auto hi = [](uint64_t w) { return __uint_as_float((uint32_t)w & 0xffff0000u); };
  for (int q = 0; q < 4; q++) {  // four lanes hold one row of A, four lanes one column of B
    for (int h = 0; h < 2; h++) {
      uint64_t x = s[row * 4 + q][h];  // low word: row, high word: row + 8
      for (int j = 0; j < 2; j++) {
        uint64_t y = s[(col + j) * 4 + q][2] >> (32 * h);
        c[j] += lo(x) * lo(y) + hi(x) * hi(y);
        c[2 + j] += lo(x >> 32) * lo(y) + hi(x >> 32) * hi(y);
      }
    }
  }
}
__device__ inline uint32_t pack_bf16(float lo, float hi) {
  return __float2bfloat16(lo).u | (uint32_t)__float2bfloat16(hi).u << 16;
}
__device__ inline float exp2_approx(float x) { return exp2f(x); }

#else

// Shared memory whose size the launch gives, and the host build's kernel registry (nothing here).
#define DYNAMIC_SHARED(T, name)                                  \
  extern __shared__ __align__(16) unsigned char dynamic_smem_[]; \
  T* name = reinterpret_cast<T*>(dynamic_smem_)
#define CPU_KERNEL(name)

__device__ __forceinline__ uint32_t smem_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
// 16 bytes from global to shared memory, both 16-byte aligned.
__device__ __forceinline__ void cp_async16(void* smem, const void* g) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(smem_address(smem)), "l"(g) : "memory");
}
// The same with only the first `bytes` (0..16) read and the rest of the 16 set to zero.
__device__ __forceinline__ void cp_async16_bytes(void* smem, const void* g, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem_address(smem)), "l"(g), "r"(bytes) : "memory");
}
// All 16 bytes, or zeros without reading memory.
__device__ __forceinline__ void cp_async16_zfill(void* smem, const void* g, bool valid) {
  cp_async16_bytes(smem, g, valid ? 16 : 0);
}
__device__ __forceinline__ void cp_async4_zfill(void* smem, const void* g, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(smem_address(smem)), "l"(g), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most the N latest groups of this thread are still under way.
template <int N> __device__ __forceinline__ void cp_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }
// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}
// c (16x8, f32) += a (16x16, row-major) * b (16x8, column-major). Lane l holds of c the rows l / 4 and l / 4 + 8,
// columns 2 (l % 4) and the next: c[0], c[1] of the first row, c[2], c[3] of the second.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two floats rounded to nearest even; `lo` in the low half, which is the first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
// 2^x within 2 ulp; results below the normal range are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

#endif

// Of four neighboring lanes' 4x4 words, the transpose: lane q's word p becomes what was lane p's word q. Lane q of a matmul's
// result then holds all eight columns of the q-th of four 16x8 tiles, 16 bytes of a row of bf16, where it had two of each.
__device__ __forceinline__ void quad_transpose(uint32_t (&w)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    bool upper = threadIdx.x & bit;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (j & bit) continue;
      uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? w[j] : w[j | bit], bit);
      if (upper) w[j] = got;
      else w[j | bit] = got;
    }
  }
}
