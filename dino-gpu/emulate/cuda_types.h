// The CUDA names that kernels use and C++ lacks: vector types, bf16, math functions, integer and bit functions, atomics.
// Included by cuda_cpu.h. Atomics are plain operations: the emulation runs one thread of one block at a time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
// an attribute and not alignas: it may then be written after __shared__, as in CUDA
#define __align__(n) __attribute__((aligned(n)))

// ---- vector types, aligned as in CUDA: to their size where that is a power of two
#define CPU_VECTOR(T, name, a2, a4)                                                       \
  struct name##1 { T x; };                                                                \
  struct alignas(a2) name##2 { T x, y; };                                                 \
  struct name##3 { T x, y, z; };                                                          \
  struct alignas(a4) name##4 { T x, y, z, w; };                                           \
  inline name##1 make_##name##1(T x) { return {x}; }                                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CPU_VECTOR(signed char, char, 2, 4)
CPU_VECTOR(unsigned char, uchar, 2, 4)
CPU_VECTOR(short, short, 4, 8)
CPU_VECTOR(unsigned short, ushort, 4, 8)
CPU_VECTOR(int, int, 8, 16)
CPU_VECTOR(unsigned, uint, 8, 16)
CPU_VECTOR(long long, longlong, 16, 16)
CPU_VECTOR(unsigned long long, ulonglong, 16, 16)
CPU_VECTOR(float, float, 8, 16)
CPU_VECTOR(double, double, 16, 16)
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// ---- bits
template <class To, class From> inline To cpu_bits(From f) {
  static_assert(sizeof(To) == sizeof(From));
  To t;
  memcpy((void*)&t, (const void*)&f, sizeof t);
  return t;
}
inline uint32_t __float_as_uint(float f) { return cpu_bits<uint32_t>(f); }
inline float __uint_as_float(uint32_t u) { return cpu_bits<float>(u); }
inline int __float_as_int(float f) { return cpu_bits<int>(f); }
inline float __int_as_float(int i) { return cpu_bits<float>(i); }
inline long long __double_as_longlong(double d) { return cpu_bits<long long>(d); }
inline double __longlong_as_double(long long l) { return cpu_bits<double>(l); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t v = a | (uint64_t)b << 32;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    unsigned sel = s >> (4 * i), byte = v >> (8 * (sel & 7)) & 0xff;
    if (sel & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) { return (((uint64_t)hi << 32 | lo) << (n & 31)) >> 32; }
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return ((uint64_t)hi << 32 | lo) >> (n & 31); }

// ---- math; the fast forms are the exact ones here
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
  typedef std::common_type_t<A, B> T;
  if constexpr (std::is_floating_point_v<T>) return std::fmax((T)a, (T)b);  // as CUDA: the other one where one is NaN
  else return (T)a < (T)b ? (T)b : (T)a;
}
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
  typedef std::common_type_t<A, B> T;
  if constexpr (std::is_floating_point_v<T>) return std::fmin((T)a, (T)b);
  else return (T)b < (T)a ? (T)b : (T)a;
}
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float rcbrtf(float x) { return 1.f / cbrtf(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.f / sqrtf(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_ru(float x) { return (int)ceilf(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)nearbyintf(x); }
inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }

// ---- loads and stores with a cache hint
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldlu(const T* p) { return *p; }
template <class T> inline T __ldcv(const T* p) { return *p; }
template <class T> inline void __stwb(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stwt(T* p, T v) { *p = v; }

// ---- bf16
struct __nv_bfloat16_raw { unsigned short x; };
struct alignas(2) __nv_bfloat16 {
  uint16_t u;
  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw r) : u(r.x) {}
  __nv_bfloat16(float f) { *this = round(f); }
  __nv_bfloat16(double f) { *this = round((float)f); }
  __nv_bfloat16(int i) { *this = round((float)i); }
  operator float() const { return __uint_as_float((uint32_t)u << 16); }
  operator __nv_bfloat16_raw() const { return {u}; }
  static __nv_bfloat16 bits(uint16_t b) {
    __nv_bfloat16 r;
    r.u = b;
    return r;
  }
  static __nv_bfloat16 round(float f) {  // to nearest even
    uint32_t b = __float_as_uint(f);
    if ((b & 0x7fffffff) > 0x7f800000) return bits(0x7fff);
    return bits((uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16));
  }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
inline float __bfloat162float(__nv_bfloat16 b) { return (float)b; }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16::round(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16::round(f); }
inline __nv_bfloat16 __float2bfloat16_rz(float f) {
  return std::isnan(f) ? __nv_bfloat16::bits(0x7fff) : __nv_bfloat16::bits((uint16_t)(__float_as_uint(f) >> 16));
}
inline __nv_bfloat16 __double2bfloat16(double d) { return __nv_bfloat16::round((float)d); }
inline __nv_bfloat16 __int2bfloat16_rn(int i) { return __nv_bfloat16::round((float)i); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.u; }
inline short __bfloat16_as_short(__nv_bfloat16 b) { return (short)b.u; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return __nv_bfloat16::bits(u); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16::round(a), __nv_bfloat16::round(b)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return __floats2bfloat162_rn(f.x, f.y); }
inline __nv_bfloat162 __float2bfloat162_rn(float f) { return __floats2bfloat162_rn(f, f); }
inline float2 __bfloat1622float2(__nv_bfloat162 b) { return {(float)b.x, (float)b.y}; }
inline float __low2float(__nv_bfloat162 b) { return (float)b.x; }
inline float __high2float(__nv_bfloat162 b) { return (float)b.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 b) { return b.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 b) { return b.y; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x, b.x}; }
inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.y, b.y}; }
inline bool __hisnan(__nv_bfloat16 a) { return std::isnan((float)a); }
// arithmetic rounds every result to bf16, the fused form once
#define CPU_BF16_BINARY(name, op)                                                                                        \
  inline __nv_bfloat16 name(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16::round((float)a op (float)b); }      \
  inline __nv_bfloat162 name##2(__nv_bfloat162 a, __nv_bfloat162 b) { return {name(a.x, b.x), name(a.y, b.y)}; }          \
  inline __nv_bfloat16 operator op(__nv_bfloat16 a, __nv_bfloat16 b) { return name(a, b); }                               \
  inline __nv_bfloat162 operator op(__nv_bfloat162 a, __nv_bfloat162 b) { return name##2(a, b); }                         \
  inline __nv_bfloat16& operator op##=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = name(a, b); }
CPU_BF16_BINARY(__hadd, +)
CPU_BF16_BINARY(__hsub, -)
CPU_BF16_BINARY(__hmul, *)
CPU_BF16_BINARY(__hdiv, /)
#define CPU_BF16_COMPARE(name, op)                                                              \
  inline bool name(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a op (float)b; }           \
  inline bool operator op(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a op (float)b; }
CPU_BF16_COMPARE(__heq, ==)
CPU_BF16_COMPARE(__hne, !=)
CPU_BF16_COMPARE(__hlt, <)
CPU_BF16_COMPARE(__hle, <=)
CPU_BF16_COMPARE(__hgt, >)
CPU_BF16_COMPARE(__hge, >=)
inline __nv_bfloat16 __hneg(__nv_bfloat16 a) { return __nv_bfloat16::bits(a.u ^ 0x8000); }
inline __nv_bfloat16 operator-(__nv_bfloat16 a) { return __hneg(a); }
inline __nv_bfloat16 __habs(__nv_bfloat16 a) { return __nv_bfloat16::bits(a.u & 0x7fff); }
inline __nv_bfloat16 __hmax(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16::round(fmaxf(a, b)); }
inline __nv_bfloat16 __hmin(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat16::round(fminf(a, b)); }
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) { return __nv_bfloat16::round(fmaf(a, b, c)); }
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

// ---- atomics: each returns the old value
#define CPU_ATOMIC(name, T, expression)   \
  inline T name(T* p, T v) {              \
    T old = *p;                           \
    *p = (expression);                    \
    return old;                           \
  }
#define CPU_ATOMIC_INTEGER(T)                            \
  CPU_ATOMIC(atomicAdd, T, old + v)                      \
  CPU_ATOMIC(atomicMax, T, old < v ? v : old)            \
  CPU_ATOMIC(atomicMin, T, v < old ? v : old)            \
  CPU_ATOMIC(atomicAnd, T, old & v)                      \
  CPU_ATOMIC(atomicOr, T, old | v)                       \
  CPU_ATOMIC(atomicXor, T, old ^ v)                      \
  CPU_ATOMIC(atomicExch, T, v)                           \
  inline T atomicCAS(T* p, T expected, T v) {            \
    T old = *p;                                          \
    if (old == expected) *p = v;                         \
    return old;                                          \
  }
CPU_ATOMIC_INTEGER(int)
CPU_ATOMIC_INTEGER(unsigned)
CPU_ATOMIC_INTEGER(unsigned long long)
CPU_ATOMIC_INTEGER(long long)
CPU_ATOMIC(atomicSub, int, old - v)
CPU_ATOMIC(atomicSub, unsigned, old - v)
CPU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
CPU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
CPU_ATOMIC(atomicAdd, float, old + v)
CPU_ATOMIC(atomicAdd, double, old + v)
CPU_ATOMIC(atomicExch, float, v)
CPU_ATOMIC(atomicAdd, __nv_bfloat16, old + v)
CPU_ATOMIC(atomicAdd, __nv_bfloat162, old + v)
inline unsigned short atomicCAS(unsigned short* p, unsigned short expected, unsigned short v) {
  unsigned short old = *p;
  if (old == expected) *p = v;
  return old;
}
