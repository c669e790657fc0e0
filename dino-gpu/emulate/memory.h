// The emulated driver's memory: device allocations with guard zones and a quarantine of freed ones, and the table of
// page-locked host memory. Device memory is host memory, at its own address.
#pragma once
// The library's headers first: CUDA's keywords, such as __noinline__, mean something else in them.
#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include "cuda_cpu.h"

namespace emulation {
typedef unsigned long long DevicePtr;
// the CUresult values used
enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
  INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
  OUT_OF_RESOURCES = 701, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, LAUNCH_FAILED = 719, NOT_PERMITTED = 800, NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_MERGE = 902, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904,
  CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908,
};

constexpr size_t GUARD = 512, QUARANTINE = size_t(64) << 20;

// What tests and the report read.
struct Counts {
  long long launches = 0, graph_launches = 0, allocations = 0, frees = 0, synchronizations = 0, refused_in_capture = 0,
            pageable_copies = 0, guard_violations = 0, live_bytes = 0, peak_bytes = 0;
};
inline Counts counts;

template <class... A> void report(const char* format, A... a) {
  fprintf(stderr, "emulation: ");
  fprintf(stderr, format, a...);
  fputc('\n', stderr);
}

struct Allocation {
  char* at;          // what the program got
  size_t size, raw;  // its bytes, and those of the entire block that begins GUARD before it
  bool leaving;      // freed in stream order, though that point is not reached yet
};
struct Memory {
  std::map<char*, Allocation> live;
  std::deque<Allocation> freed;  // oldest first
  size_t freed_bytes = 0, limit = size_t(4) << 30;
  std::map<char*, size_t> pinned;
  std::set<char*> registered;  // those of `pinned` that belong to the program
};
// Never destroyed: the host program may still free memory while it exits.
inline Memory& memory = *new Memory;

inline void poison(char* p, size_t n) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(p, n);
#else
  memset(p, 0xff, n);
#endif
}
// Bytes that should still hold poison; restores them, so that one write is told once.
inline bool overwritten([[maybe_unused]] char* p, [[maybe_unused]] size_t n, [[maybe_unused]] size_t* first) {
#if !defined(__SANITIZE_ADDRESS__)
  if (!cpu::all_ff(p, n)) {
    for (*first = 0; p[*first] == (char)0xff;) ++*first;
    memset(p, 0xff, n);
    return true;
  }
#endif
  return false;
}
inline size_t tail(const Allocation& a) { return a.raw - GUARD - a.size; }

// Looks at the guard zones of one allocation.
inline bool intact(const Allocation& a, const char* when) {
  size_t i;
  bool good = true;
  if (overwritten(a.at - GUARD, GUARD, &i)) {
    report("%s: device memory was written %zu bytes before the allocation %p of %zu bytes", when, GUARD - i, (void*)a.at, a.size);
    good = false;
  }
  if (overwritten(a.at + a.size, tail(a), &i)) {
    report("%s: device memory was written %zu bytes past the end of the allocation %p of %zu bytes", when, i, (void*)a.at, a.size);
    good = false;
  }
  if (!good) counts.guard_violations++;
  return good;
}
inline bool guards_intact(const char* when) {
  bool good = true;
  for (auto& [at, a] : memory.live) good &= intact(a, when);
  return good;
}
inline bool still_poisoned(const Allocation& a, const char* when) {
  size_t i;
  if (!overwritten(a.at - GUARD, a.raw, &i)) return true;
  report("%s: freed device memory was written, %lld bytes into the former allocation %p of %zu bytes", when,
      (long long)i - (long long)GUARD, (void*)a.at, a.size);
  counts.guard_violations++;
  return false;
}
inline bool quarantine_intact(const char* when) {
  bool good = true;
  for (auto& a : memory.freed) good &= still_poisoned(a, when);
  return good;
}

inline int allocate(size_t n, DevicePtr* out) {
  if (!n || !out) return INVALID_VALUE;
  if (n > memory.limit || counts.live_bytes + n > memory.limit) return OUT_OF_MEMORY;
  Allocation a{nullptr, n, GUARD + (n + 511) / 512 * 512 + GUARD, false};
  char* raw = (char*)aligned_alloc(512, a.raw);
  if (!raw) return OUT_OF_MEMORY;
  a.at = raw + GUARD;
  memset(a.at, 0xff, n);  // NaN: unwritten device memory shows
  poison(raw, GUARD);
  poison(a.at + n, tail(a));
  memory.live[a.at] = a;
  counts.allocations++;
  counts.live_bytes += n;
  counts.peak_bytes = std::max(counts.peak_bytes, counts.live_bytes);
  *out = (DevicePtr)a.at;
  return OK;
}
inline Allocation* containing(DevicePtr p) {
  auto i = memory.live.upper_bound((char*)p);
  if (i == memory.live.begin()) return nullptr;
  --i;
  return (char*)p <= i->second.at + i->second.size ? &i->second : nullptr;
}
inline const Allocation* freed_at(DevicePtr p) {
  for (auto& a : memory.freed)
    if ((char*)p >= a.at && (char*)p < a.at + a.size) return &a;
  return nullptr;
}
// An entire range in one live allocation.
inline bool inside(DevicePtr p, size_t n) {
  Allocation* a = containing(p);
  return a && n <= a->size - (size_t)((char*)p - a->at);
}
inline bool is_device(DevicePtr p) {
  Allocation* a = containing(p);
  return a && (char*)p < a->at + a->size;
}
// The same with a line on stderr that reports what is wrong.
inline bool usable(const char* call, DevicePtr p, size_t n) {
  Allocation* a = containing(p);
  if (a && !a->leaving && inside(p, n)) return true;
  if (a && a->leaving) report("%s: use of device memory already freed in stream order: %p", call, (void*)p);
  else if (a) report("%s: %zu bytes at %p reach past the end of the allocation %p of %zu bytes", call, n, (void*)p, (void*)a->at, a->size);
  else if (freed_at(p)) report("%s: use of freed device memory: %p", call, (void*)p);
  else report("%s: %p is not device memory", call, (void*)p);
  return false;
}
// Keeps the memory, poisoned, until newer frees push it out. False: somebody wrote where he must not.
inline bool release(DevicePtr p, const char* when) {
  auto i = memory.live.find((char*)p);
  Allocation a = i->second;
  bool good = intact(a, when);
  memory.live.erase(i);
  counts.frees++;
  counts.live_bytes -= (long long)a.size;
  poison(a.at - GUARD, a.raw);
  memory.freed.push_back(a);
  memory.freed_bytes += a.raw;
  while (memory.freed_bytes > QUARANTINE && memory.freed.size() > 1) {
    Allocation old = memory.freed.front();
    good &= still_poisoned(old, when);
    memory.freed.pop_front();
    memory.freed_bytes -= old.raw;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(old.at - GUARD, old.raw);
#endif
    free(old.at - GUARD);
  }
  return good;
}

// ---- page-locked host memory
inline bool is_pinned(const void* p, size_t n) {
  auto i = memory.pinned.upper_bound((char*)p);
  if (i == memory.pinned.begin()) return false;
  --i;
  return (char*)p + n <= i->first + i->second;
}

// Page-locked memory that queued work has still to read: a later copy to it must not scramble it yet.
struct HostRange {
  char* at = nullptr;
  size_t size = 0;
  bool overlaps(const HostRange& o) const { return size && o.size && at < o.at + o.size && o.at < at + size; }
};
inline std::list<std::weak_ptr<HostRange>>& pending_reads = *new std::list<std::weak_ptr<HostRange>>;
inline std::shared_ptr<HostRange> note_read(const HostRange& r) {
  if (!r.size) return nullptr;
  auto p = std::make_shared<HostRange>(r);
  pending_reads.push_back(p);
  return p;
}
// The destination of a copy that waits in a queue: what the program reads there too early is NaN.
inline void scramble(const HostRange& r) {
  if (!r.size) return;
  for (auto i = pending_reads.begin(); i != pending_reads.end();) {
    auto p = i->lock();
    if (p && p->overlaps(r)) return;
    if (p) ++i;
    else i = pending_reads.erase(i);
  }
  memset(r.at, 0xff, r.size);
}
}  // namespace emulation
