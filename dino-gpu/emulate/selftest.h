// What the self-tests share: calls of the emulated driver, and checks that are counted.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <vector>

typedef unsigned long long Ptr;
typedef void* P;
inline void* cuda;
inline int failures, checks;
template <class... A> int cu(const char* name, A... a) {
  void* f = dlsym(cuda, name);
  if (!f) printf("no function %s\n", name), exit(1);
  return ((int (*)(A...))f)(a...);
}
inline void set(const char* what, long long v) { ((void (*)(const char*, long long))dlsym(cuda, "emulation_set"))(what, v); }
inline long long count(const char* what) { return ((long long (*)(const char*))dlsym(cuda, "emulation_count"))(what); }
#define CHECK(x) (checks++, (x) ? (void)0 : (failures++, (void)printf("line %d: not so: %s\n", __LINE__, #x)))
#define IS(call, code) \
  do { int got_ = (call); checks++; if (got_ != (code)) failures++, printf("line %d: %s is %d, not %d\n", __LINE__, #call, got_, code); } while (0)
#define DO(call) IS(call, 0)

inline P module_;
inline P stream() { P s; DO(cu("cuStreamCreateWithPriority", &s, 1u, 0)); return s; }
inline P event() { P e; DO(cu("cuEventCreate", &e, 0u)); return e; }
inline float* device(size_t n) { Ptr p = 0; DO(cu("cuMemAlloc_v2", &p, n * 4)); return (float*)p; }
inline float* pinned(size_t n) { P p = nullptr; DO(cu("cuMemHostAlloc", &p, n * 4, 0u)); return (float*)p; }
inline int sync(P s) { return cu("cuStreamSynchronize", s); }
inline P function(const char* name) { P f = nullptr; DO(cu("cuModuleGetFunction", &f, module_, name)); return f; }
template <class... A> int launch_shared(const char* name, unsigned grid, unsigned block, unsigned shared, P s, A... a) {
  void* args[] = {&a..., nullptr};
  return cu("cuLaunchKernel", function(name), grid, 1u, 1u, block, 1u, 1u, shared, s, (void**)args, (void**)nullptr);
}
template <class... A> int launch(const char* name, unsigned grid, unsigned block, P s, A... a) { return launch_shared(name, grid, block, 0, s, a...); }
inline int up(float* d, const float* h, size_t n, P s) { return cu("cuMemcpyHtoDAsync_v2", (Ptr)d, (const void*)h, n * 4, s); }
inline int down(float* h, float* d, size_t n, P s) { return cu("cuMemcpyDtoHAsync_v2", (void*)h, (Ptr)d, n * 4, s); }
inline int fill(float* d, float v, size_t n, P s) { unsigned u; memcpy(&u, &v, 4); return cu("cuMemsetD32Async", (Ptr)d, u, n, s); }
inline int release(float* d) { return cu("cuMemFree_v2", (Ptr)d); }
inline std::vector<float> get(float* d, size_t n) { std::vector<float> v(n); DO(cu("cuMemcpyDtoH_v2", (void*)v.data(), (Ptr)d, n * 4)); return v; }
