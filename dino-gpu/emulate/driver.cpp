// An emulation of libcuda.so.1 without a GPU: devices, of which a process uses one, whose memory is host memory and whose
// kernels are the same .cu files, compiled for the CPU. It is strict where a real device forgives or fails by chance:
//   - work waits in its stream's queue until something synchronises, and synchronising one stream runs that stream and
//     what it depends on, nothing else; so a missing wait reads old data, every time
//   - cuStreamQuery and cuEventQuery are "not ready" eight times before they run what they ask for
//   - new device memory and the page-locked destination of a copy that has not run hold NaN patterns
//   - what a capturing stream forbids is refused and counted
//   - wrong pointers, writes outside allocations and use of freed memory are found, told on stderr ("emulation: ..."),
//     and answered with the code of the real driver; an illegal address loses the device for good
// A line on stderr never is the only sign, except for pageable copies, which are legal and only counted.
//
// Tests reach emulation_set and emulation_count by dlsym; emulation_set's names also work as variables in the
// environment, as EMULATION_FAIL_AFTER=100 or EMULATION_DEVICES=2. FAIL_CAPTURE=2 invalidates the third capture,
// FAIL_ALLOCATION=2 refuses the third allocation (of device memory or page-locked memory), FAIL_MODULE=2 the first two
// modules. EMULATION_REPORT=1 prints the counts when the process
// ends.
#define CUDA_CPU_MAIN
#include "api.h"
#include "api_memory.h"
#include "api_stream.h"
#include <cctype>

using namespace emulation;

namespace emulation {
struct Module { std::map<std::string, void*> functions; };
struct Function {
  cpu::Kernel* kernel;
  int max_dynamic = 48 << 10;
};
constexpr int MAX_DYNAMIC = 227 << 10;

// A pointer that a kernel gets: null, live device memory (or its end) or page-locked memory.
static bool pointer_ok(const cpu::Kernel& k, size_t index, const char* p) {
  if (!p || containing((DevicePtr)p) || is_pinned(p, 1)) return true;
  report("kernel %s: argument %zu, %p, is %s", k.name, index, (const void*)p,
      freed_at((DevicePtr)p) ? "freed device memory" : "neither device nor page-locked memory");
  return false;
}
static bool arguments_ok(const cpu::Kernel& k, const char* values) {
  bool good = true;
  for (size_t i = 0; i < k.args.size(); i++) {
    auto& a = k.args[i];
    if (a.pointer) {
      const char* p;
      memcpy(&p, values + a.offset, sizeof p);
      good &= pointer_ok(k, i, p);
    } else {
      // a structure may hold pointers; nothing but a pointer looks like an address in a freed allocation
      for (size_t at = 0; a.size > 8 && at + 8 <= a.size; at += 8) {
        const char* p;
        memcpy(&p, values + a.offset + at, sizeof p);
        if (freed_at((DevicePtr)p)) good &= pointer_ok(k, i, p);
      }
    }
  }
  return good;
}
static int run_kernel(cpu::Kernel& k, dim3 grid, dim3 block, size_t shared, char* values) {
  if (state.fail_after >= 0 && state.fail_after-- == 0) {
    report("kernel %s: the device is lost, as asked (code %lld)", k.name, state.fail_code);
    return (int)state.fail_code;
  }
  if (!arguments_ok(k, values)) return ILLEGAL_ADDRESS;
  std::vector<void*> args;
  for (auto& a : k.args) args.push_back(values + a.offset);
  counts.launches++;
  int code = k.launch(grid, block, shared, args.data());
  if (code) report("kernel %s gave up", k.name);
  if (cpu::block().shared_overrun) {
    report("kernel %s wrote past the end of its %zu bytes of dynamic shared memory", k.name, shared);
    counts.guard_violations++;
    code = ILLEGAL_ADDRESS;
  }
  // with few allocations at once, so that the kernel can be named; else at the next synchronization
  if (memory.live.size() <= 64 && !guards_intact(k.name)) code = ILLEGAL_ADDRESS;
  return code;
}
static bool image_known(const void* image) {
  uint32_t magic;
  memcpy(&magic, image, 4);
  const char* text = (const char*)image;
  return magic == 0xBA55ED50 || magic == 0x466243B1 || magic == 0x464C457F  // fatbin, its wrapper, cubin
         || !strncmp(text, "//", 2) || !strncmp(text, ".version", 8);       // PTX
}
}  // namespace emulation

// ---- start, device, context
static void read_environment();
API cuInit(unsigned flags) {
  Lock lock(mutex);
  static bool read = false;
  if (!read) read_environment();
  read = true;
  if (flags) return INVALID_VALUE;
  if (!state.devices) return NO_DEVICE;
  state.initialized = true;
  return OK;
}
API cuDriverGetVersion(int* v) { return v ? *v = 13000, OK : INVALID_VALUE; }
API cuDeviceGetCount(int* n) { BEGIN_ANYWHERE return *n = state.devices, OK; }
API cuDeviceGet(int* d, int i) { BEGIN_ANYWHERE return i < 0 || i >= state.devices ? INVALID_DEVICE : (*d = i, OK); }
#define BEGIN_DEVICE(d) BEGIN_ANYWHERE if ((d) < 0 || (d) >= state.devices) return INVALID_DEVICE;
API cuDeviceGetName(char* p, int n, int d) { BEGIN_DEVICE(d) return snprintf(p, n, "CPU emulation"), OK; }
API cuDeviceTotalMem_v2(size_t* n, int d) { BEGIN_DEVICE(d) return *n = memory.limit, OK; }
API cuDeviceGetUuid(void* u, int d) {
  BEGIN_DEVICE(d)
  memcpy(u, "CPU emulation \0\0", 16);
  ((char*)u)[15] = (char)d;
  return OK;
}
API cuDeviceGetUuid_v2(void* u, int d) { return cuDeviceGetUuid(u, d); }
API cuDeviceGetPCIBusId(char* p, int n, int d) { BEGIN_DEVICE(d) return snprintf(p, n, "0000:%02x:00.0", d), OK; }
API cuDeviceCanAccessPeer(int* can, int, int) { BEGIN_ANYWHERE return *can = 0, OK; }
API cuDeviceComputeCapability(int* major, int* minor, int d) {
  BEGIN_DEVICE(d) return *major = state.capability_major, *minor = state.capability_minor, OK;
}
API cuDeviceGetAttribute(int* v, int attribute, int d) {
  BEGIN_DEVICE(d)
  static const std::map<int, int> table = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},                // threads of a block, block dimensions
      {5, 0x7fffffff}, {6, 65535}, {7, 65535},                 // grid dimensions
      {8, 48 << 10}, {81, 228 << 10}, {97, MAX_DYNAMIC}, {111, 1024},  // shared memory: block, multiprocessor, opt-in, reserved
      {9, 64 << 10}, {10, 32}, {12, 65536}, {82, 65536},       // constant memory, warp, registers of a block and a multiprocessor
      {13, 1980000}, {14, 512}, {16, 4}, {36, 2619000}, {37, 6144}, {38, 50 << 20},  // clocks, multiprocessors (few), bus, L2
      {31, 1}, {39, 2048}, {40, 3}, {41, 1}, {78, 1}, {79, 1}, {80, 1}, {106, 32}, {115, 1}};
  auto i = table.find(attribute);
  *v = attribute == 75 ? state.capability_major : attribute == 76 ? state.capability_minor : i == table.end() ? 0 : i->second;
  return OK;
}
API cuDevicePrimaryCtxRetain(void** c, int d) {
  BEGIN_DEVICE(d)
  if (state.primary && d != state.device) return report("%s: device %d, while the process uses %d", __func__, d, state.device), NOT_SUPPORTED;
  state.device = d;
  state.primary++;
  *c = &state.context_token;
  return OK;
}
API cuDevicePrimaryCtxRelease_v2(int) {
  Lock lock(mutex);
  if (!state.primary) return INVALID_CONTEXT;
  if (--state.primary == 0 && !state.lost) {
    synchronise_all(__func__);
    if (!quarantine_intact(__func__)) return lose(ILLEGAL_ADDRESS);
  }
  return OK;
}
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned flags) { BEGIN_ANYWHERE return state.primary_flags = flags, OK; }
API cuDevicePrimaryCtxGetState(int d, unsigned* flags, int* active) {
  BEGIN_ANYWHERE return *flags = state.primary_flags, *active = state.primary && d == state.device, OK;
}
API cuCtxSetCurrent(void* c) {
  BEGIN_ANYWHERE
  auto& stack = this_thread().contexts;
  if (c && (c != &state.context_token || !state.primary)) return INVALID_CONTEXT;
  if (!stack.empty()) stack.pop_back();
  if (c) stack.push_back(c);
  return OK;
}
API cuCtxGetCurrent(void** c) {
  BEGIN_ANYWHERE
  auto& stack = this_thread().contexts;
  *c = stack.empty() ? nullptr : stack.back();
  return OK;
}
API cuCtxPushCurrent_v2(void* c) {
  BEGIN_ANYWHERE
  if (c != &state.context_token) return INVALID_CONTEXT;
  this_thread().contexts.push_back(c);
  return OK;
}
API cuCtxPopCurrent_v2(void** c) {
  BEGIN_ANYWHERE
  auto& stack = this_thread().contexts;
  if (stack.empty()) return INVALID_CONTEXT;
  if (c) *c = stack.back();
  stack.pop_back();
  return OK;
}
API cuCtxGetDevice(int* d) { BEGIN return *d = state.device, OK; }
API cuCtxGetApiVersion(void*, unsigned* v) { BEGIN_ANYWHERE return *v = 13000, OK; }
API cuCtxGetFlags(unsigned* f) { BEGIN return *f = state.primary_flags, OK; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) { BEGIN return *least = 0, *greatest = -5, OK; }
API cuCtxSynchronize() {
  BEGIN
  if (Capture* c = find_capture([](Capture&) { return true; })) return refuse(__func__, *c, CAPTURE_UNSUPPORTED, "a stream is capturing");
  int e = synchronise_all(__func__);
  return e || quarantine_intact(__func__) ? e : lose(ILLEGAL_ADDRESS);
}

// ---- modules, functions, launches
API cuModuleLoadData(void** m, const void* image) {
  BEGIN UNSAFE
  if (!image) return INVALID_VALUE;
  if (!image_known(image)) return report("%s: neither fatbin, cubin nor PTX", __func__), INVALID_IMAGE;
  if (state.fail_module > 0) return state.fail_module--, report("%s: the image is refused, as asked", __func__), INVALID_IMAGE;
  *m = new Module;
  state.modules.insert(*m);
  return OK;
}
API cuModuleLoadDataEx(void** m, const void* image, unsigned, void*, void*) { return cuModuleLoadData(m, image); }
API cuModuleLoadFatBinary(void** m, const void* image) { return cuModuleLoadData(m, image); }
API cuModuleUnload(void* m) {
  BEGIN UNSAFE
  if (!state.modules.erase(m)) return INVALID_HANDLE;
  for (auto& [name, f] : ((Module*)m)->functions) state.functions.erase(f);
  return OK;
}
API cuModuleGetFunction(void** f, void* m, const char* name) {
  BEGIN
  if (!known(state.modules, m)) return INVALID_HANDLE;
  auto& made = ((Module*)m)->functions;
  for (auto* k = cpu::kernels(); k && !made.count(name); k = k->next)
    if (!strcmp(k->name, name)) state.functions.insert(made[name] = new Function{k});
  if (!made.count(name)) return NOT_FOUND;
  *f = made[name];
  return OK;
}
API cuModuleGetGlobal_v2(DevicePtr*, size_t*, void*, const char*) { BEGIN return NOT_FOUND; }
API cuFuncSetAttribute(void* f, int attribute, int v) {
  BEGIN
  if (!known(state.functions, f)) return INVALID_HANDLE;
  if (attribute != 8) return OK;  // 8: the largest dynamic shared memory
  if (v < 0 || v > MAX_DYNAMIC) return INVALID_VALUE;
  ((Function*)f)->max_dynamic = v;
  return OK;
}
API cuFuncGetAttribute(int* v, int attribute, void* f) {
  BEGIN
  if (!known(state.functions, f)) return INVALID_HANDLE;
  *v = attribute == 0 ? 1024 : attribute == 4 ? 32 : attribute == 8 ? ((Function*)f)->max_dynamic : 0;
  return OK;
}
API cuFuncSetCacheConfig(void* f, int) { BEGIN return known(state.functions, f) ? OK : INVALID_HANDLE; }
API cuFuncGetParamInfo(void* f, size_t index, size_t* offset, size_t* size) {
  BEGIN
  if (!known(state.functions, f)) return INVALID_HANDLE;
  auto& args = ((Function*)f)->kernel->args;
  if (index >= args.size()) return INVALID_VALUE;
  if (offset) *offset = args[index].offset;
  if (size) *size = args[index].size;
  return OK;
}
API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                   void** args, void** extra) {
  BEGIN
  if (!known(state.functions, f)) return INVALID_HANDLE;
  auto& fn = *(Function*)f;
  cpu::Kernel* k = fn.kernel;
  if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || !bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64 ||
      (uint64_t)bx * by * bz > 1024 || (int)shared > fn.max_dynamic || shared > (unsigned)MAX_DYNAMIC) {
    report("kernel %s: a launch of grid (%u,%u,%u), block (%u,%u,%u), %u bytes of dynamic shared memory (limit %d) is not possible", k->name,
        gx, gy, gz, bx, by, bz, shared, fn.max_dynamic);
    return INVALID_VALUE;
  }
  if (extra) return NOT_SUPPORTED;
  if (!args && !k->args.empty()) return INVALID_VALUE;
  size_t bytes = k->args.empty() ? 0 : k->args.back().offset + k->args.back().size;
  // the values as they are now; aligned as structures may need
  struct Values { std::unique_ptr<char, void (*)(void*)> p; };
  auto values = std::make_shared<Values>(Values{{(char*)aligned_alloc(64, (bytes + 127) / 64 * 64), free}});
  for (size_t i = 0; i < k->args.size(); i++) memcpy(values->p.get() + k->args[i].offset, args[i], k->args[i].size);
  dim3 grid(gx, gy, gz), block(bx, by, bz);
  return submit(stream, __func__, {[=] { return run_kernel(*k, grid, block, shared, values->p.get()); }, {}, {}});
}
API cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**) {
  BEGIN return NOT_SUPPORTED;  // blocks run one after another
}
API cuLaunchHostFunc(void* stream, void (*f)(void*), void* arg) {
  BEGIN return submit(stream, __func__, {[=] { return f(arg), OK; }, {}, {}});
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int threads, size_t shared) {
  BEGIN
  if (!known(state.functions, f) || threads < 1 || threads > 1024) return INVALID_VALUE;
  *n = (int)std::min<size_t>({32, size_t(2048 / ((threads + 31) / 32 * 32)), (228 << 10) / (shared + 1024)});
  return OK;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* f, int threads, size_t shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(n, f, threads, shared);
}
API cuProfilerStart() { return OK; }
API cuProfilerStop() { return OK; }

// ---- errors
struct ErrorText { int code; const char *name, *text; };
static const ErrorText error_texts[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
API cuGetErrorString(int code, const char** s) {
  for (auto& e : error_texts)
    if (e.code == code) return *s = e.text, OK;
  return *s = nullptr, INVALID_VALUE;
}
API cuGetErrorName(int code, const char** s) {
  for (auto& e : error_texts)
    if (e.code == code) return *s = e.name, OK;
  return *s = nullptr, INVALID_VALUE;
}

// ---- for tests, and for the emulations of other libraries
// "recover" (any value) gives the lost device back, so that one process can test several errors.
EXPORT void emulation_set(const char* what, long long v) {
  Lock lock(mutex);
  std::string w = what;
  if (w == "memory_limit") memory.limit = (size_t)v;
  else if (w == "fail_after") state.fail_after = v;
  else if (w == "fail_code") state.fail_code = v;
  else if (w == "fail_capture") state.fail_capture = v;
  else if (w == "fail_module") state.fail_module = v;
  else if (w == "fail_allocation") state.fail_allocation = v;
  else if (w == "devices") state.devices = v > 0 ? (int)v : 0;
  else if (w == "capability_major") state.capability_major = (int)v;
  else if (w == "capability_minor") state.capability_minor = (int)v;
  else if (w == "seed") cpu::seed() = (uint64_t)v;
  else if (w == "memset_is_async") state.memset_is_async = v;
  else if (w == "recover") state.lost = 0, state.fail_after = -1;
  else report("emulation_set: there is no setting %s", what);
}
EXPORT long long emulation_count(const char* what) {
  Lock lock(mutex);
  const std::map<std::string, long long> all = {
      {"launches", counts.launches}, {"graph_launches", counts.graph_launches}, {"allocations", counts.allocations},
      {"frees", counts.frees}, {"synchronizations", counts.synchronizations}, {"refused_in_capture", counts.refused_in_capture},
      {"pageable_copies", counts.pageable_copies}, {"guard_violations", counts.guard_violations}, {"live_bytes", counts.live_bytes},
      {"peak_bytes", counts.peak_bytes}, {"lost", state.lost}};
  auto i = all.find(what);
  if (i == all.end()) return report("emulation_count: there is no counter %s", what), -1;
  if (!strcmp(what, "guard_violations")) return quarantine_intact(__func__), counts.guard_violations;
  return i->second;
}
// Adds f(arg) to a stream or its capture; `drop` is called when the work can never run again.
EXPORT int emulation_enqueue(void* stream, void (*f)(void*), void* arg, void (*drop)(void*)) {
  std::shared_ptr<void> owner(arg, [drop](void* p) { if (drop) drop(p); });
  BEGIN return submit(stream, __func__, {[owner, f] { return f(owner.get()), OK; }, {}, {}});
}
// The same for work that other processes take part in. f is false when one of them has kept it waiting for some milliseconds: it
// is called again, and what it is part of waits. Works of one serial, not 0, must be in order: where two streams have no event
// between them, the answer is NOT_PERMITTED.
EXPORT int emulation_enqueue_serial(void* stream, long long serial, int (*f)(void*), void* arg, void (*drop)(void*)) {
  std::shared_ptr<void> owner(arg, [drop](void* p) { if (drop) drop(p); });
  BEGIN return submit(stream, __func__, {[owner, f] { return f(owner.get()) ? OK : NOT_YET; }, {}, {}, serial});
}
// Whether the calling thread could allocate now: it has a context, no capture forbids it, and the device is not lost.
EXPORT int emulation_safe(const char* call) {
  BEGIN return unsafe_call(call);
}
EXPORT int emulation_inside(const void* p, size_t bytes) {
  Lock lock(mutex);
  return usable(__func__, (DevicePtr)p, bytes);
}
EXPORT void emulation_lose(int code) {
  Lock lock(mutex);
  lose(code);
}
static void print_counts() {
  if (!quarantine_intact("at the end")) report("freed memory was written");
  report("launches %lld, graph launches %lld, allocations %lld, frees %lld, synchronizations %lld, refused in capture %lld, "
      "pageable copies %lld, guard violations %lld, live bytes %lld, peak bytes %lld",
      counts.launches, counts.graph_launches, counts.allocations, counts.frees, counts.synchronizations, counts.refused_in_capture,
      counts.pageable_copies, counts.guard_violations, counts.live_bytes, counts.peak_bytes);
}
// At the first cuInit: a constructor could run before what it sets exists.
static void read_environment() {
  for (const char* what : {"memory_limit", "fail_after", "fail_code", "fail_capture", "fail_allocation", "fail_module", "devices", "capability_major", "capability_minor", "memset_is_async"}) {
    std::string name = std::string("EMULATION_") + what;
    for (char& c : name) c = (char)toupper(c);
    if (const char* v = getenv(name.c_str())) emulation_set(what, strtoll(v, nullptr, 10));
  }
  if (getenv("EMULATION_REPORT")) atexit(print_counts);
}

// Last: what the kernels define must not reach the code above.
#include KERNELS
