// Runs CUDA C++ kernels on the host. A block runs on one OS thread, each of its CUDA threads is a fiber, and fibers
// change only where CUDA threads wait for each other: at barriers and at warp operations. Include this before the
// kernels, or compile them with  g++ -x c++ -include cuda_cpu.h ; exactly one file defines CUDA_CPU_MAIN before it.
//
// Order of threads: a warp runs until all of its threads wait, so that a block's fast warps are as far ahead of the slow
// ones as barriers allow, and a missing barrier shows. With a seed (CUDA_CPU_SEED) the order of lanes, warps and blocks
// is random, and asynchronous copies land early or late.
//
// Memory: shared memory, static and dynamic, holds 0xff bytes (NaN) when a block starts.
//
// One kernel at a time in the process: the caller holds a lock.
#pragma once
#define CUDA_CPU 1
#include <link.h>
#include <sys/mman.h>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#include "cuda_types.h"  // after the library's headers: CUDA's keywords, such as __noinline__, mean something else in them

// Thread-local because that is the one storage class for which the linker gathers variables of plain functions,
// inline functions and templates alike in one contiguous range, which poison_shared() below can then find and fill. So nothing
// else in this library may be thread_local.
#define __shared__ thread_local
// Dynamic shared memory: the only spelling that must differ from CUDA's.
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(cpu::block().dynamic)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cpu {
constexpr int MAX_THREADS = 1024, MAX_WARPS = 32, MAX_MASKS = 8;
constexpr size_t STACK = 64 << 10, PAGE = 4096, SHARED_GUARD = 256;

struct Warp;
struct Copy { void* d; const void* s; int n; };
struct Fiber {
  void* sp = nullptr;  // where it waits; null before it has started
  int stack = -1, lane = 0;
  uint3 tid{};
  Warp* warp = nullptr;
  std::vector<Copy> open;                 // asynchronous copies not yet committed
  std::vector<std::vector<Copy>> groups;  // and committed groups not yet waited for
};
// The meeting point of the lanes of one mask. Exchanged words are stored in two alternating sets: a lane can be one meeting ahead
// of another that has still to read, never two.
struct WarpBar {
  uint32_t mask, waiting, members[2];  // members: the lanes that took part
  int unread;                          // lanes released and not yet running again
  unsigned gen;
  alignas(64) uint64_t slot[2][32][4];
};
struct Warp {
  uint32_t alive, ready, at_block;  // lanes that have not ended, that can run, that wait at the block's barrier
  int index, bars;
  WarpBar bar[MAX_MASKS];
};
struct Block {
  Fiber fiber[MAX_THREADS];
  Warp warp[MAX_WARPS];
  Fiber* me = nullptr;
  uint32_t ready = 0;  // warps that have a lane that can run
  int alive = 0, arrived = 0, threads = 0, warps = 0;
  unsigned gen = 0, switch_rate = 0;
  int votes[2] = {};  // of __syncthreads_count and its kin
  int trap = 0;       // the error code of a kernel that gave up
  void* main_sp = nullptr;
  void* dead = nullptr;  // what a fiber that ends saves, never used
  char* dynamic = nullptr;
  size_t dynamic_capacity = 0;
  bool shared_overrun = false;
  char* stacks = nullptr;
  std::vector<int> free_stacks;
  const char* kernel = "";
  void (*body)(void*) = nullptr;
  void* arg = nullptr;
};
inline Block the_block;
inline Block& block() { return the_block; }
inline Fiber& me() { return *the_block.me; }

// 0: threads run in order; else the state of the random order
inline uint64_t the_seed = getenv("CUDA_CPU_SEED") ? strtoull(getenv("CUDA_CPU_SEED"), nullptr, 10) : 0;
inline uint64_t& seed() { return the_seed; }
inline unsigned coin(unsigned n) {
  the_seed = the_seed * 6364136223846793005u + 1442695040888963407u;
  if (!the_seed) the_seed = 1;
  return (unsigned)((the_seed >> 33) % n);
}

extern "C" void cpu_switch(void** save, void* load);
#if defined(CUDA_CPU_MAIN)
#if defined(__x86_64__)
asm(".text\n.globl cpu_switch\n.hidden cpu_switch\n.type cpu_switch,@function\ncpu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#elif defined(__aarch64__)
asm(".text\n.globl cpu_switch\n.hidden cpu_switch\n.type cpu_switch,%function\ncpu_switch:\n"
    "sub sp,sp,#176\nstp x19,x20,[sp]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\n"
    "stp x27,x28,[sp,#64]\nstp x29,x30,[sp,#80]\nstp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\n"
    "stp d14,d15,[sp,#144]\nmov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
    "ldp x19,x20,[sp]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\nldp x27,x28,[sp,#64]\n"
    "ldp x29,x30,[sp,#80]\nldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
    "add sp,sp,#176\nret\n");
#else
#error "no fiber switch for this processor"
#endif
#endif

[[noreturn]] inline void die(const char* what) {
  const uint3 t = threadIdx, b = blockIdx;
  fprintf(stderr, "emulation: kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s\n", the_block.kernel, b.x, b.y, b.z, t.x, t.y, t.z, what);
  abort();
}
[[noreturn]] inline void deadlock() {
  int at_block = 0;
  for (int i = 0; i < the_block.warps; i++) at_block += __builtin_popcount(the_block.warp[i].at_block);
  fprintf(stderr, "emulation: deadlock: of %d threads that have not ended, %d wait at __syncthreads and %d at warp operations\n",
          the_block.alive, at_block, the_block.alive - at_block);
  die("deadlock: not all threads reach the same barriers");
}

inline void wake(Warp& w, uint32_t lanes) {
  w.ready |= lanes;
  if (w.ready) the_block.ready |= 1u << w.index;
}
inline int random_bit(uint32_t mask) {
  for (unsigned k = coin(__builtin_popcount(mask)); k; k--) mask &= mask - 1;
  return __builtin_ctz(mask);
}
// Takes the next thread that can run and makes it the current one.
inline Fiber& pick() {
  Block& b = the_block;
  if (!b.ready) deadlock();
  Warp* w = b.me->warp;
  if (the_seed) {
    if (!w->ready || (b.switch_rate && coin(b.switch_rate) == 0)) w = &b.warp[random_bit(b.ready)];
  } else if (!w->ready) {
    uint32_t later = b.ready & ~((2u << w->index) - 1);
    w = &b.warp[__builtin_ctz(later ? later : b.ready)];
  }
  int lane = the_seed ? random_bit(w->ready) : __builtin_ctz(w->ready);
  if (!(w->ready &= ~(1u << lane))) b.ready &= ~(1u << w->index);
  Fiber& f = b.fiber[w->index * 32 + lane];
  b.me = &f;
  threadIdx = f.tid;
  return f;
}
void start_on_own_stack(Fiber& f);
inline void yield_to_others(Fiber& self) {
  Fiber& f = pick();
  if (&f == &self) return;
  if (!f.sp) start_on_own_stack(f);
  cpu_switch(&self.sp, f.sp);
}

// ---- barriers
inline void release_block() {
  Block& b = the_block;
  b.arrived = 0;
  b.gen++;
  b.votes[b.gen & 1] = 0;
  for (int i = 0; i < b.warps; i++) {
    Warp& w = b.warp[i];
    uint32_t lanes = w.at_block;
    w.at_block = 0;
    wake(w, lanes);
  }
}
inline void release_warp(Warp& w, WarpBar& bar) {
  bar.members[bar.gen & 1] = bar.waiting;
  bar.unread = __builtin_popcount(bar.waiting);
  wake(w, bar.waiting);
  bar.waiting = 0;
  bar.gen++;
}
// The last thread to arrive runs on, unless a seed sets another order: the others are behind it as far as can be.
inline void run_on(Fiber& f) {
  if (the_seed && coin(2)) return yield_to_others(f);
  Warp& w = *f.warp;
  if (!(w.ready &= ~(1u << f.lane))) the_block.ready &= ~(1u << w.index);
}
inline void block_sync() {
  Block& b = the_block;
  Fiber& f = *b.me;
  f.warp->at_block |= 1u << f.lane;
  if (++b.arrived < b.alive) return yield_to_others(f);
  release_block();
  run_on(f);
}
inline WarpBar& warp_bar(Warp& w, uint32_t mask) {
  for (int i = 0; i < w.bars; i++)
    if (w.bar[i].mask == mask) return w.bar[i];
  int i = 0;
  if (w.bars < MAX_MASKS) i = w.bars++;
  else
    while (i < MAX_MASKS && (w.bar[i].waiting || w.bar[i].unread)) i++;
  if (i == MAX_MASKS) die("too many different masks in use by one warp at a time");
  WarpBar& bar = w.bar[i];
  bar.mask = mask;
  bar.waiting = 0;
  bar.unread = 0;
  return bar;
}
inline void warp_meet(Fiber& f, WarpBar& bar) {
  Warp& w = *f.warp;
  if (!(bar.mask >> f.lane & 1)) die("a warp operation whose mask lacks the calling thread");
  bar.waiting |= 1u << f.lane;
  if (bar.waiting != (bar.mask & w.alive)) {
    yield_to_others(f);
  } else {
    release_warp(w, bar);
    run_on(f);
  }
  bar.unread--;
}
inline void warp_sync(uint32_t mask) {
  Fiber& f = me();
  warp_meet(f, warp_bar(*f.warp, mask));
}
// Every lane of the mask writes N words; all of them may then read the words of all lanes. `members` gets the lanes that did.
template <int N> inline uint64_t (*exchange(const uint64_t* v, uint32_t mask, uint32_t* members = nullptr))[4] {
  static_assert(N <= 4);
  Fiber& f = me();
  WarpBar& bar = warp_bar(*f.warp, mask);
  unsigned set = bar.gen & 1;
  for (int i = 0; i < N; i++) bar.slot[set][f.lane][i] = v[i];
  warp_meet(f, bar);
  if (members) *members = bar.members[set];
  return bar.slot[set];
}
// A lane that takes no part has no value: NaN bits are read from it.
template <class T> inline T shuffle(uint32_t mask, T v, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t u = 0, got = ~uint64_t(0);
  memcpy(&u, (const void*)&v, sizeof v);
  uint32_t members;
  auto* s = exchange<1>(&u, mask, &members);
  if (members >> (source & 31) & 1) got = s[source & 31][0];
  T r;
  memcpy((void*)&r, &got, sizeof r);
  return r;
}

// ---- the life of a fiber
inline void reset(Fiber& f) {
  f.sp = nullptr;
  if (!f.open.empty()) f.open.clear();  // copies that nobody waited for have landed, where nobody looks
  if (!f.groups.empty()) f.groups.clear();
}
// The current thread has ended: those that wait for all others may now be complete.
inline void retire(Fiber& f) {
  Block& b = the_block;
  Warp& w = *f.warp;
  reset(f);  // for the next block
  b.alive--;
  w.alive &= ~(1u << f.lane);
  for (int i = 0; i < w.bars; i++)
    if (w.bar[i].waiting && w.bar[i].waiting == (w.bar[i].mask & w.alive)) release_warp(w, w.bar[i]);
  if (b.arrived && b.arrived >= b.alive) release_block();
}
// Runs threads one after another on the same stack for as long as they end without waiting and new ones are picked;
// so a kernel without barriers needs one stack and no switches.
[[noreturn]] inline void fiber_main() {
  Block& b = the_block;
  for (;;) {
    b.body(b.arg);
    Fiber& done = *b.me;
    retire(done);
    if (!b.alive) {
      b.free_stacks.push_back(done.stack);
      cpu_switch(&b.dead, b.main_sp);
    }
    Fiber& f = pick();
    if (!f.sp) {
      f.stack = done.stack;
      f.sp = &b;  // started: any value but null, replaced when it first waits
      continue;
    }
    b.free_stacks.push_back(done.stack);
    cpu_switch(&b.dead, f.sp);
  }
}
inline char* stack_end(int i) {
  // neighbors end at different lines of a page: else all hot frames would fight for the same cache sets
  return the_block.stacks + (size_t)(i + 1) * (STACK + PAGE) - (size_t)(i * 320 % 4096 & ~63);
}
inline void make_stacks() {
  Block& b = the_block;
  size_t bytes = (size_t)MAX_THREADS * (STACK + PAGE);
  b.stacks = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (b.stacks == MAP_FAILED) die("no memory for stacks");
  for (int i = 0; i < MAX_THREADS; i++) mprotect(b.stacks + (size_t)i * (STACK + PAGE), PAGE, PROT_NONE);  // guard page
}
inline void start_on_own_stack(Fiber& f) {
  f.stack = the_block.free_stacks.back();
  the_block.free_stacks.pop_back();
  void** sp = (void**)stack_end(f.stack) - 2;
#if defined(__x86_64__)
  *sp = (void*)fiber_main;
  f.sp = sp - 6;
#else
  char* s = (char*)sp - 176;
  ((void**)s)[11] = (void*)fiber_main;
  f.sp = s;
#endif
}
// Ends the kernel at once with an error code, as __trap and a failed assertion do.
[[noreturn]] inline void trap(int code) {
  the_block.trap = code;
  cpu_switch(&the_block.dead, the_block.main_sp);
  abort();
}

// ---- shared memory
struct Bytes { char* at; size_t size; };
// this library's thread-local variables of the calling OS thread, that is, the static shared memory of all kernels
inline Bytes static_shared() {
  Bytes r{nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const char* here = (const char*)&the_block;
        bool ours = false;
        size_t tls = 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          auto& p = info->dlpi_phdr[i];
          const char* start = (const char*)(info->dlpi_addr + p.p_vaddr);
          if (p.p_type == PT_LOAD && here >= start && here < start + p.p_memsz) ours = true;
          if (p.p_type == PT_TLS) tls = p.p_memsz;
        }
        if (!ours) return 0;
        if (tls && info->dlpi_tls_data) *(Bytes*)out = {(char*)info->dlpi_tls_data, tls};
        return 1;
      },
      &r);
  return r;
}
// Its first use makes the block of thread-local variables exist; 0xff as the rest of them once that was filled.
inline __shared__ char shared_marker;
inline void make_dynamic_shared(size_t bytes) {
  Block& b = the_block;
#if defined(__SANITIZE_ADDRESS__)
  free(b.dynamic);  // of the exact size, so that the sanitizer sees accesses beyond it
  b.dynamic = (char*)aligned_alloc(1024, bytes + 1024 - bytes % 1024);
  __asan_poison_memory_region(b.dynamic + bytes, 1024 - bytes % 1024);
#else
  if (b.dynamic_capacity < bytes + SHARED_GUARD) {
    free(b.dynamic);
    b.dynamic_capacity = (bytes + SHARED_GUARD + 1023) & ~size_t(1023);
    b.dynamic = (char*)aligned_alloc(1024, b.dynamic_capacity);
  }
  memset(b.dynamic + bytes, 0xff, SHARED_GUARD);
#endif
  if (!b.dynamic) die("no memory for dynamic shared memory");
}
// whether all bytes are 0xff: the first is, and each is as the one before it (memcmp is far faster than a loop)
inline bool all_ff(const char* p, size_t n) { return !n || (*p == (char)0xff && !memcmp(p, p + 1, n - 1)); }

// The part of memory that is not all 0xff, in full chunks.
inline Bytes written(Bytes m) {
  constexpr size_t chunk = 256;
  if (all_ff(m.at, m.size)) return {m.at, 0};
  size_t from = 0, to = m.size;
  while (all_ff(m.at + from, std::min(chunk, to - from))) from += chunk;
  while (to - from > chunk && all_ff(m.at + to - chunk, chunk)) to -= chunk;
  return {m.at + from, to - from};
}

// ---- launches
inline void run_block() {
  Block& b = the_block;
  b.alive = b.threads;
  b.arrived = 0;
  b.votes[0] = b.votes[1] = 0;
  b.ready = b.warps == 32 ? ~0u : (1u << b.warps) - 1;
  if (the_seed) {
    const unsigned rates[] = {0, 64, 4};
    b.switch_rate = rates[coin(3)];
  }
  for (int i = 0; i < b.warps; i++) {
    Warp& w = b.warp[i];
    int lanes = std::min(32, b.threads - i * 32);
    w.alive = w.ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    w.at_block = 0;
    w.bars = 0;
  }
  b.me = &b.fiber[0];  // only to set where pick() begins
  Fiber& first = pick();
  start_on_own_stack(first);
  cpu_switch(&b.main_sp, first.sp);
}
// Returns 0, or the code of a trap.
inline int launch_grid(const char* name, dim3 g, dim3 bd, size_t shared, void (*body)(void*), void* arg) {
  Block& b = the_block;
  if (!b.stacks) make_stacks();
  b.kernel = name;
  b.threads = bd.x * bd.y * bd.z;
  b.warps = (b.threads + 31) / 32;
  b.body = body;
  b.arg = arg;
  b.trap = 0;
  b.shared_overrun = false;
  b.free_stacks.clear();
  for (int i = b.threads; i-- > 0;) b.free_stacks.push_back(i);
  for (int i = 0; i < b.warps; i++) b.warp[i].index = i;
  for (int i = 0; i < b.threads; i++) {
    Fiber& f = b.fiber[i];
    f.tid = {i % bd.x, i / bd.x % bd.y, i / (bd.x * bd.y)};
    f.lane = i & 31;
    f.warp = &b.warp[i >> 5];
    reset(f);  // a kernel that gave up left them as they were
  }
  make_dynamic_shared(shared);
  // Static shared memory of all kernels is 0xff between launches. Within one, what its first block wrote is filled again
  // after each block; what other blocks wrote elsewhere, at the end: filling everything for every block costs too much.
  bool filled = shared_marker == (char)0xff;
  Bytes fixed = static_shared(), used = fixed;
  if (!filled) memset(fixed.at, 0xff, fixed.size);
  gridDim = g;
  blockDim = bd;
  uint64_t blocks = (uint64_t)g.x * g.y * g.z, at = 0, step = 1;
  if (the_seed && blocks > 1) {  // start anywhere, go on by a step that shares no factor with the number of blocks
    at = coin(blocks < 1u << 30 ? blocks : 1u << 30);
    do step = 1 + coin(blocks < 1u << 30 ? blocks : 1u << 30);
    while (std::__gcd(step, blocks) != 1);
  }
  for (uint64_t n = 0; n < blocks && !b.trap; n++, at = (at + step) % blocks) {
    blockIdx = {(unsigned)(at % g.x), (unsigned)(at / g.x % g.y), (unsigned)(at / g.x / g.y)};
    if (shared) memset(b.dynamic, 0xff, shared);
    run_block();
    if (n == 0) used = written(fixed);
    memset(used.at, 0xff, used.size);
#if !defined(__SANITIZE_ADDRESS__)
    if (!all_ff(b.dynamic + shared, SHARED_GUARD)) {
      b.shared_overrun = true;
      memset(b.dynamic + shared, 0xff, SHARED_GUARD);
    }
#endif
  }
  if (blocks > 1 && !all_ff(fixed.at, fixed.size)) memset(fixed.at, 0xff, fixed.size);
  return b.trap;
}
// From the argument array of cuLaunchKernel.
template <class... A, size_t... I>
int launch_args(const char* name, void (*k)(A...), dim3 g, dim3 b, size_t shared, void** a, std::index_sequence<I...>) {
  auto call = [&] { k(*reinterpret_cast<A*>(a[I])...); };
  return launch_grid(name, g, b, shared, [](void* p) { (*(decltype(call)*)p)(); }, &call);
}
template <class... A> int launch_args(const char* name, void (*k)(A...), dim3 g, dim3 b, size_t shared, void** a) {
  return launch_args(name, k, g, b, shared, a, std::index_sequence_for<A...>{});
}

// ---- kernels by name, for the emulated driver
struct Argument { size_t offset, size; bool pointer; };
struct Kernel {
  const char* name;
  int (*launch)(dim3, dim3, size_t, void**);
  std::vector<Argument> args;
  Kernel* next;
};
inline Kernel*& kernels() {
  static Kernel* first = nullptr;
  return first;
}
template <class... A> std::vector<Argument> arguments(void (*)(A...)) {
  std::vector<Argument> v{{0, sizeof(A), std::is_pointer_v<A>}...};
  const size_t align[] = {alignof(A)..., 1};
  size_t at = 0;
  for (size_t i = 0; i < v.size(); i++) {
    at = (at + align[i] - 1) / align[i] * align[i];
    v[i].offset = at;
    at += v[i].size;
  }
  return v;
}
struct Register {
  Kernel k;
  Register(const char* name, int (*launch)(dim3, dim3, size_t, void**), std::vector<Argument> args)
      : k{name, launch, std::move(args), kernels()} {
    for (Kernel* o = kernels(); o; o = o->next)
      if (!strcmp(o->name, name)) fprintf(stderr, "emulation: two kernels are named %s\n", name), abort();
    kernels() = &k;
  }
};
}  // namespace cpu
// Two steps, so that a name made by a macro is expanded first.
#define CPU_KERNEL(name) CPU_KERNEL_NAMED(name)
#define CPU_KERNEL_NAMED(name)                                                                                      \
  static cpu::Register cpu_register_##name(                                                                         \
      #name, [](dim3 g, dim3 b, size_t s, void** a) { return cpu::launch_args(#name, name, g, b, s, a); }, cpu::arguments(name))

// ---- barriers, votes and shuffles by their CUDA names
inline void __syncthreads() { cpu::block_sync(); }
inline int __syncthreads_count(int p) {
  unsigned set = cpu::block().gen & 1;
  cpu::block().votes[set] += p != 0;
  cpu::block_sync();
  return cpu::block().votes[set];
}
inline int __syncthreads_or(int p) { return __syncthreads_count(p) != 0; }
inline int __syncthreads_and(int p) { return __syncthreads_count(!p) == 0; }
inline void __syncwarp(uint32_t mask = ~0u) { cpu::warp_sync(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() { static long long t; return t += 100; }
[[noreturn]] inline void __trap() { cpu::trap(719); }
template <class T> T __shfl_sync(uint32_t m, T v, int l, int w = 32) {
  int i = cpu::me().lane;
  return cpu::shuffle(m, v, (i & ~(w - 1)) | (l & (w - 1)));
}
template <class T> T __shfl_xor_sync(uint32_t m, T v, int x, int w = 32) {
  int i = cpu::me().lane, j = i ^ x;
  return cpu::shuffle(m, v, j >= (i & ~(w - 1)) + w ? i : j);
}
template <class T> T __shfl_down_sync(uint32_t m, T v, unsigned d, int w = 32) {
  int i = cpu::me().lane;
  return cpu::shuffle(m, v, (i & (w - 1)) + (int)d < w ? i + (int)d : i);
}
template <class T> T __shfl_up_sync(uint32_t m, T v, unsigned d, int w = 32) {
  int i = cpu::me().lane;
  return cpu::shuffle(m, v, (i & (w - 1)) >= (int)d ? i - (int)d : i);
}
inline uint32_t __ballot_sync(uint32_t m, int p) {
  uint64_t u = p != 0;
  uint32_t members, r = 0;
  auto* s = cpu::exchange<1>(&u, m, &members);
  for (int i = 0; i < 32; i++)
    if (members >> i & 1) r |= (uint32_t)s[i][0] << i;
  return r;
}
inline int __any_sync(uint32_t m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(uint32_t m, int p) { return __ballot_sync(m, !p) == 0; }
template <class T> T __reduce_fold(uint32_t m, T v, T (*fold)(T, T)) {
  uint64_t u = (uint64_t)v;
  uint32_t members;
  auto* s = cpu::exchange<1>(&u, m, &members);
  bool first = true;
  T r{};
  for (int i = 0; i < 32; i++)
    if (members >> i & 1) r = first ? (T)s[i][0] : fold(r, (T)s[i][0]), first = false;
  return r;
}
inline unsigned __reduce_add_sync(uint32_t m, unsigned v) { return __reduce_fold<unsigned>(m, v, [](unsigned a, unsigned b) { return a + b; }); }
inline int __reduce_add_sync(uint32_t m, int v) { return __reduce_fold<int>(m, v, [](int a, int b) { return a + b; }); }
inline unsigned __reduce_max_sync(uint32_t m, unsigned v) { return __reduce_fold<unsigned>(m, v, [](unsigned a, unsigned b) { return a < b ? b : a; }); }
inline int __reduce_max_sync(uint32_t m, int v) { return __reduce_fold<int>(m, v, [](int a, int b) { return a < b ? b : a; }); }
inline unsigned __reduce_or_sync(uint32_t m, unsigned v) { return __reduce_fold<unsigned>(m, v, [](unsigned a, unsigned b) { return a | b; }); }
