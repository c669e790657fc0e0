// The driver's functions on memory.
#pragma once
#include "api.h"

namespace emulation {
enum Kind { DEVICE, PINNED, PAGEABLE };
inline Kind kind_of(const void* p, size_t n) {
  return is_device((DevicePtr)p) ? DEVICE : is_pinned(p, n) ? PINNED : PAGEABLE;
}
// When the copy runs, its memory may be gone: a graph keeps addresses, and frees may come before a synchronization.
inline bool still_there(const char* call, const void* p, size_t n, Kind k) {
  if (k == DEVICE) return inside((DevicePtr)p, n) || (usable(call, (DevicePtr)p, n), false);
  if (k == PAGEABLE || is_pinned(p, n)) return true;
  report("%s: page-locked memory %p was freed before the copy ran", call, p);
  return false;
}
// One copy in stream order; `blocking` is the form that returns when the copy is done.
inline int copy(const char* call, void* to, Kind to_kind, const void* from, Kind from_kind, size_t n, void* stream, bool blocking) {
  if (!n) return OK;
  if (!to || !from) return INVALID_VALUE;
  if (to_kind == DEVICE && !usable(call, (DevicePtr)to, n)) return INVALID_VALUE;
  if (from_kind == DEVICE && !usable(call, (DevicePtr)from, n)) return INVALID_VALUE;
  Stream* s = find(stream);
  if (!s) return INVALID_HANDLE;
  bool pageable = to_kind == PAGEABLE || from_kind == PAGEABLE;
  if (blocking)
    if (int e = unsafe_call(call)) return e;
  if (pageable && !blocking) counts.pageable_copies++;
  if (pageable && s->capture) return refuse(call, *s->capture, CAPTURE_UNSUPPORTED, "pageable host memory while the stream is capturing");
  Work w;
  if (from_kind == PAGEABLE && !blocking) {  // the driver reads it before the call returns
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + n);
    w.run = [=] { return still_there(call, to, n, to_kind) ? memmove(to, staged->data(), n), OK : ILLEGAL_ADDRESS; };
  } else {
    if (from_kind == PINNED) w.reads = {(char*)from, n};
    if (to_kind == PINNED) w.writes = {(char*)to, n};
    w.run = [=] {
      if (!still_there(call, to, n, to_kind) || !still_there(call, from, n, from_kind)) return (int)ILLEGAL_ADDRESS;
      return memmove(to, from, n), (int)OK;
    };
  }
  if (int e = submit(stream, call, std::move(w))) return e;
  return blocking || to_kind == PAGEABLE ? synchronise(*s, call) : OK;
}
template <class T> int fill(const char* call, DevicePtr p, T v, size_t n, void* stream, bool blocking) {
  if (!n) return OK;
  if (p % sizeof(T) || !usable(call, p, n * sizeof(T))) return INVALID_VALUE;
  if (blocking)
    if (int e = unsafe_call(call)) return e;
  auto run = [=] {
    if (!still_there(call, (void*)p, n * sizeof(T), DEVICE)) return (int)ILLEGAL_ADDRESS;
    std::fill_n((T*)p, n, v);
    return (int)OK;
  };
  if (int e = submit(stream, call, {run, {}, {}})) return e;
  return blocking && !state.memset_is_async ? synchronise(*find(stream), call) : OK;
}
inline int free_device(const char* call, DevicePtr p) {
  auto i = memory.live.find((char*)p);
  if (i == memory.live.end() || i->second.leaving) {
    report("%s: %p is not the start of live device memory%s", call, (void*)p, freed_at(p) ? ": freed before" : "");
    return INVALID_VALUE;
  }
  return OK;
}
// Whether this allocation is the one that a test wants refused.
inline bool refused(const char* call) {
  bool now = state.fail_allocation >= 0 && state.fail_allocation-- == 0;
  if (now) report("%s: no memory, as asked", call);
  return now;
}
inline int allocate_pinned(void** p, size_t n) {
  if (!n || !p) return INVALID_VALUE;
  if (refused(__func__)) return OUT_OF_MEMORY;
  if (!(*p = aligned_alloc(4096, (n + 4095) & ~size_t(4095)))) return OUT_OF_MEMORY;
  memset(*p, 0xff, n);
  memory.pinned[(char*)*p] = n;
  return OK;
}
}  // namespace emulation

// ---- device memory
API cuMemAlloc_v2(emulation::DevicePtr* p, size_t n) { BEGIN UNSAFE return emulation::refused(__func__) ? (int)emulation::OUT_OF_MEMORY : emulation::allocate(n, p); }
API cuMemFree_v2(emulation::DevicePtr p) {
  using namespace emulation;
  BEGIN UNSAFE
  if (!p) return OK;
  if (int e = free_device(__func__, p)) return e;
  if (int e = synchronise_all(__func__)) return e;
  return release(p, __func__) && quarantine_intact(__func__) ? OK : lose(ILLEGAL_ADDRESS);
}
// The address is known at once; as on a real device it may be used in other streams only after this one got there,
// which is not checked.
API cuMemAllocAsync(emulation::DevicePtr* p, size_t n, void* stream) {
  using namespace emulation;
  BEGIN
  Stream* s = find(stream);
  if (!s) return INVALID_HANDLE;
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_UNSUPPORTED, "allocation nodes are not emulated");
  return allocate(n, p);
}
API cuMemFreeAsync(emulation::DevicePtr p, void* stream) {
  using namespace emulation;
  BEGIN
  Stream* s = find(stream);
  if (!s) return INVALID_HANDLE;
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_UNSUPPORTED, "free nodes are not emulated");
  if (!p) return OK;
  if (int e = free_device(__func__, p)) return e;
  memory.live[(char*)p].leaving = true;
  return submit(stream, __func__, {[p] { return release(p, "cuMemFreeAsync") ? OK : ILLEGAL_ADDRESS; }, {}, {}});
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  BEGIN
  *total = emulation::memory.limit;
  *free = *total - std::min(*total, (size_t)emulation::counts.live_bytes);
  return emulation::OK;
}
API cuMemGetAddressRange_v2(emulation::DevicePtr* base, size_t* size, emulation::DevicePtr p) {
  BEGIN
  if (!emulation::is_device(p)) return emulation::NOT_FOUND;
  auto* a = emulation::containing(p);
  if (base) *base = (emulation::DevicePtr)a->at;
  if (size) *size = a->size;
  return emulation::OK;
}

// ---- page-locked host memory
API cuMemAllocHost_v2(void** p, size_t n) { BEGIN UNSAFE return emulation::allocate_pinned(p, n); }
API cuMemHostAlloc(void** p, size_t n, unsigned) { BEGIN UNSAFE return emulation::allocate_pinned(p, n); }
API cuMemFreeHost(void* p) {
  using namespace emulation;
  BEGIN UNSAFE
  if (!memory.pinned.count((char*)p) || memory.registered.count((char*)p)) return INVALID_VALUE;
  if (int e = synchronise_all(__func__)) return e;
  memory.pinned.erase((char*)p);
  free(p);
  return OK;
}
API cuMemHostRegister_v2(void* p, size_t n, unsigned) {
  using namespace emulation;
  BEGIN UNSAFE
  if (!p || !n) return INVALID_VALUE;
  if (is_pinned(p, 1)) return ALREADY_REGISTERED;
  memory.pinned[(char*)p] = n;
  memory.registered.insert((char*)p);
  return OK;
}
API cuMemHostUnregister(void* p) {
  using namespace emulation;
  BEGIN UNSAFE
  if (!memory.registered.count((char*)p)) return NOT_REGISTERED;
  if (int e = synchronise_all(__func__)) return e;
  memory.registered.erase((char*)p);
  memory.pinned.erase((char*)p);
  return OK;
}
API cuMemHostGetDevicePointer_v2(emulation::DevicePtr* d, void* p, unsigned) {
  BEGIN return emulation::is_pinned(p, 1) ? *d = (emulation::DevicePtr)p, emulation::OK : emulation::INVALID_VALUE;
}

// ---- copies. Host memory that the driver knows is page-locked, all other is pageable.
#define HOST(p) emulation::is_pinned(p, n) ? emulation::PINNED : emulation::PAGEABLE
#define COPY(to, to_kind, from, from_kind, stream, blocking) \
  BEGIN return emulation::copy(__func__, (void*)(to), to_kind, (const void*)(from), from_kind, n, stream, blocking);
API cuMemcpyHtoDAsync_v2(emulation::DevicePtr d, const void* h, size_t n, void* s) { COPY(d, emulation::DEVICE, h, HOST(h), s, false) }
API cuMemcpyDtoHAsync_v2(void* h, emulation::DevicePtr d, size_t n, void* s) { COPY(h, HOST(h), d, emulation::DEVICE, s, false) }
API cuMemcpyDtoDAsync_v2(emulation::DevicePtr d, emulation::DevicePtr f, size_t n, void* s) { COPY(d, emulation::DEVICE, f, emulation::DEVICE, s, false) }
API cuMemcpyHtoD_v2(emulation::DevicePtr d, const void* h, size_t n) { COPY(d, emulation::DEVICE, h, HOST(h), nullptr, true) }
API cuMemcpyDtoH_v2(void* h, emulation::DevicePtr d, size_t n) { COPY(h, HOST(h), d, emulation::DEVICE, nullptr, true) }
API cuMemcpyDtoD_v2(emulation::DevicePtr d, emulation::DevicePtr f, size_t n) { COPY(d, emulation::DEVICE, f, emulation::DEVICE, nullptr, true) }
API cuMemcpyAsync(emulation::DevicePtr to, emulation::DevicePtr from, size_t n, void* s) {
  COPY(to, emulation::kind_of((void*)to, n), from, emulation::kind_of((void*)from, n), s, false)
}
API cuMemcpy(emulation::DevicePtr to, emulation::DevicePtr from, size_t n) {
  COPY(to, emulation::kind_of((void*)to, n), from, emulation::kind_of((void*)from, n), nullptr, true)
}
#undef COPY
#undef HOST

// ---- fills
API cuMemsetD8Async(emulation::DevicePtr p, unsigned char v, size_t n, void* s) { BEGIN return emulation::fill<uint8_t>(__func__, p, v, n, s, false); }
API cuMemsetD16Async(emulation::DevicePtr p, unsigned short v, size_t n, void* s) { BEGIN return emulation::fill<uint16_t>(__func__, p, v, n, s, false); }
API cuMemsetD32Async(emulation::DevicePtr p, unsigned v, size_t n, void* s) { BEGIN return emulation::fill<uint32_t>(__func__, p, v, n, s, false); }
API cuMemsetD8_v2(emulation::DevicePtr p, unsigned char v, size_t n) { BEGIN return emulation::fill<uint8_t>(__func__, p, v, n, nullptr, true); }
API cuMemsetD16_v2(emulation::DevicePtr p, unsigned short v, size_t n) { BEGIN return emulation::fill<uint16_t>(__func__, p, v, n, nullptr, true); }
API cuMemsetD32_v2(emulation::DevicePtr p, unsigned v, size_t n) { BEGIN return emulation::fill<uint32_t>(__func__, p, v, n, nullptr, true); }
