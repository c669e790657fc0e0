// An emulation of libnccl.so.2 on one machine: a rank is a process with the emulated driver, and what ranks send each other
// goes through memory that they share. It has what a trainer needs that forms its sums itself: gather, broadcast, send and
// receive, of bytes and f32. Work is queued on the emulated driver's streams or their captures.
//
// Strict where the real library hangs, corrupts memory or depends on luck:
//   - kind, count, type and root of every call are compared over ranks when the work runs, by every pair of ranks; a send is
//     done when it was received. What does not fit gives ncclInvalidUsage by ncclCommGetAsyncError, on all ranks
//   - a rank whose process ended, which closed its communicator, or which is waited for longer than EMULATION_NCCL_TIMEOUT
//     milliseconds (20000) gives ncclRemoteError, on all ranks. Results of work that failed are NaN patterns, and later calls
//     get the error
//   - pointers are checked against live device memory at the call and again when the work runs; memory of one call, or one
//     group, that overlaps is refused
//   - calls on one communicator in two streams need an event between them
//   - a process is one rank of a communicator. Where a process sees several devices, each rank must have one of its own
// Not emulated: more than 32 ranks, several streams for one communicator in one group, and initialization within a group.
// Where a group has calls of several communicators, those of one come after those of the other.
// EMULATION_REPORT=1 prints calls and bytes when a communicator is destroyed.
#include "nccl_ranks.h"
#include <cstdlib>
#include <functional>
#include <random>
#include <sched.h>
#include <vector>

// of the emulated driver
extern "C" int emulation_enqueue_serial(void* stream, long long serial, int (*f)(void*), void* arg, void (*drop)(void*));
extern "C" int emulation_inside(const void* p, size_t bytes);
extern "C" int emulation_safe(const char* call);
extern "C" void emulation_lose(int code);
extern "C" int cuCtxGetDevice(int* device);
extern "C" int cuCtxSynchronize();
extern "C" int cuDeviceGetCount(int* n);

#define API extern "C" __attribute__((visibility("default")))

using namespace nccl;

namespace nccl {
// ---- work
struct Part {
  int peer;
  bool out;
  Call call;
  const char* from;
  char* to;
  size_t bytes;
};
struct Range {
  const char* at;
  size_t bytes;
  bool overlaps(const Range& o) const { return bytes && o.bytes && at < o.at + o.bytes && o.at < at + bytes; }
};
// How far the parts to or from one peer are.
struct Flow {
  std::vector<const Part*> parts;
  size_t at = 0, done = 0;  // the part, and bytes of it, its call first
  Call got{};
};
struct Operation {
  CommPtr comm;
  std::string name;
  std::vector<Part> parts;
  struct Own { char* to; const char* from; size_t bytes; };
  std::vector<Own> own;  // what stays on this rank
  std::vector<Range> reads, writes;
  // while it runs
  bool begun = false;
  std::vector<Flow> out, in;
  Clock::time_point moved;
};

// Moves what the ring has room for, or has; whether that was anything.
bool move(Operation& o, int peer, bool out) {
  Comm& c = *o.comm;
  Flow& f = (out ? o.out : o.in)[peer];
  Channel& ch = out ? c.channel(c.rank, peer) : c.channel(peer, c.rank);
  const size_t head = sizeof(Call);
  bool moved = false;
  for (; f.at < f.parts.size(); f.at++, f.done = 0) {
    const Part& p = *f.parts[f.at];
    while (f.done < head + p.bytes) {
      uint64_t written = ch.written, taken = ch.taken, here = out ? written : taken;
      bool call = f.done < head;
      size_t n = out ? RING - (written - taken) : written - taken;
      n = std::min({n, RING - here % RING, (call ? head : head + p.bytes) - f.done});
      if (!n) return moved;
      char* in_ring = ch.ring + here % RING;
      if (out) memcpy(in_ring, call ? (const char*)&p.call + f.done : p.from + (f.done - head), n);
      else memcpy(call ? (char*)&f.got + f.done : p.to + (f.done - head), in_ring, n);
      (out ? ch.written : ch.taken) = here + n;
      f.done += n;
      moved = true;
      if (!call) (out ? c.sent : c.received) += (long long)n;
      if (!out && f.done == head && !(f.got == p.call)) {
        c.fail(wrong(INVALID_USAGE, "rank %d calls %s, rank %d calls %s: a real one hangs here", c.rank, describe(p.call, false).c_str(), peer,
            describe(f.got, true).c_str()));
        c.told = true;
        return moved;
      }
    }
  }
  return moved;
}
// A peer is done with when it took what was sent and sent what was to come.
bool done_with(Operation& o, int peer) {
  Flow &out = o.out[peer], &in = o.in[peer];
  if (out.at < out.parts.size() || in.at < in.parts.size()) return false;
  Channel& ch = o.comm->channel(o.comm->rank, peer);
  return out.parts.empty() || ch.taken == ch.written;
}
bool advance(Operation& o) {
  bool moved = false;
  for (int r = 0; r < o.comm->ranks && !o.comm->failed(); r++) {
    moved |= move(o, r, true);
    moved |= move(o, r, false);
  }
  return moved;
}
bool finished(Operation& o) {
  for (int r = 0; r < o.comm->ranks; r++)
    if (!done_with(o, r)) return false;
  return true;
}
bool memory_ok(const Operation& o) {
  for (auto* ranges : {&o.reads, &o.writes})
    for (auto& r : *ranges)
      if (r.bytes && !emulation_inside(r.at, r.bytes)) return false;
  return true;
}
void begin(Operation& o) {
  Comm& c = *o.comm;
  o.out.assign(c.ranks, {}), o.in.assign(c.ranks, {});
  for (auto& p : o.parts) (p.out ? o.out : o.in)[p.peer].parts.push_back(&p);
  for (auto& own : o.own)
    if (own.bytes) memmove(own.to, own.from, own.bytes);
  o.moved = Clock::now();
  o.begun = true;
  c.running = &o;
}
int end(Operation& o, bool good) {
  Comm& c = *o.comm;
  if (!good)
    for (auto& w : o.writes)
      if (w.bytes) memset((char*)w.at, 0xff, w.bytes);
  if (!good && !c.told) wrong(c.failed(), "%s: rank %d gives up: %s", o.name.c_str(), c.rank, result_texts[c.failed()]);
  c.told |= !good;
  c.runs++;
  c.running = nullptr;
  o.begun = false;
  return 1;
}
// The peers it waits for; `only_gone`: those that can never come.
std::string missing(Operation& o, bool only_gone) {
  Comm& c = *o.comm;
  std::string text;
  for (int r = 0; r < c.ranks; r++)
    if (r != c.rank && !done_with(o, r) && (!only_gone || gone(c.file, r))) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}
// 1: done, well or not; 0: others have not got that far.
int run(Operation& o) {
  Comm& c = *o.comm;
  if (c.destroyed) return wrong(0, "%s: rank %d: it runs after its communicator was destroyed", o.name.c_str(), c.rank), emulation_lose(700), 1;
  if (!o.begun) {
    if (c.running) return c.fail(wrong(INVALID_USAGE, "%s: rank %d: it begins while %s runs", o.name.c_str(), c.rank, c.running->name.c_str())), 1;
    if (!memory_ok(o)) return c.fail(REMOTE_ERROR), emulation_lose(700), 1;
    if (c.failed()) return end(o, false);
    begin(o);
  }
  auto since = Clock::now();
  for (int idle = 0;; idle++) {
    bool moved = advance(o);
    if (finished(o)) return end(o, true);
    if (c.failed()) return end(o, false);
    auto now = Clock::now();
    if (moved) {
      o.moved = since = now;
      idle = 0;
    } else if (now - since > Milliseconds(PATIENCE)) {
      break;
    }
    // the ranks share the machine's cores
    if (idle < 50) sched_yield();
    else usleep(idle < 100 ? 50 : 500);
  }
  std::string lost = missing(o, true);
  if (!lost.empty()) {
    // what they did last may have come since
    if (advance(o) || finished(o)) return 0;
    c.fail(wrong(REMOTE_ERROR, "%s: rank %d waits for rank %s, which is gone: a real one hangs here", o.name.c_str(), c.rank, lost.c_str()));
  } else if (Clock::now() - o.moved > Milliseconds(c.timeout)) {
    c.fail(wrong(REMOTE_ERROR, "%s: rank %d waits longer than %d ms for rank %s: a real one hangs here", o.name.c_str(), c.rank, c.timeout,
        missing(o, false).c_str()));
  } else {
    return 0;
  }
  c.told = true;
  return end(o, false);
}

// ---- calls and groups
struct Pending {
  std::unique_ptr<Operation> operation;
  void* stream;
};
struct Group {
  int depth = 0, error = 0;
  std::vector<Pending> calls;
};
thread_local Group group;

int memory_apart(const Operation& o) {
  for (size_t w = 0; w < o.writes.size(); w++) {
    auto overlaps = [&](const Range& r) { return o.writes[w].overlaps(r); };
    if (std::any_of(o.reads.begin(), o.reads.end(), overlaps) || std::any_of(o.writes.begin() + (long)w + 1, o.writes.end(), overlaps))
      return wrong(INVALID_ARGUMENT, "%s: what is received overlaps what is sent or received with it", o.name.c_str());
  }
  return SUCCESS;
}
// What a rank sends itself is matched in the process.
int match_own(Operation& o) {
  std::vector<Part> sends, receives, others;
  for (auto& p : o.parts) (p.peer != o.comm->rank ? others : p.out ? sends : receives).push_back(p);
  bool good = sends.size() == receives.size();
  for (size_t i = 0; good && i < sends.size(); i++) {
    good = sends[i].call == receives[i].call;
    o.own.push_back({receives[i].to, sends[i].from, sends[i].bytes});
  }
  o.parts = std::move(others);
  if (good) return SUCCESS;
  return wrong(INVALID_USAGE, "%s: rank %d does not receive, in the same group, what it sends itself", o.name.c_str(), o.comm->rank);
}
int submit(std::unique_ptr<Operation> o, void* stream) {
  CommPtr c = o->comm;
  std::string name = o->name;
  int e = emulation_enqueue_serial(
      stream, c->serial, [](void* p) { return run(*(Operation*)p); }, o.release(),
      [](void* p) {
        auto* o = (Operation*)p;
        if (o->comm->running == o) o->comm->running = nullptr;
        delete o;
      });
  if (e == NOT_PERMITTED) return wrong(INVALID_USAGE, "%s: rank %d: its communicator is in use by another stream", name.c_str(), c->rank);
  return e ? wrong(CUDA_ERROR, "%s: rank %d: the driver refused the work with %d", name.c_str(), c->rank, e) : (int)SUCCESS;
}
// Collectives in their order, then all sends and receives of a communicator at once.
int launch(std::vector<Pending> calls) {
  std::vector<Pending> ready;
  std::vector<CommPtr> all;
  for (auto& p : calls)
    if (std::find(all.begin(), all.end(), p.operation->comm) == all.end()) all.push_back(p.operation->comm);
  for (auto& c : all) {
    Pending together{nullptr, nullptr};
    void* stream = nullptr;
    bool first = true;
    for (auto& p : calls) {
      if (!p.operation || p.operation->comm != c) continue;
      if (!first && p.stream != stream)
        return wrong(INVALID_USAGE, "ncclGroupEnd: several streams for one communicator in a group are not emulated");
      stream = p.stream, first = false;
      if (p.operation->parts.empty() || p.operation->parts[0].call.kind != SEND) {
        ready.push_back(std::move(p));
      } else if (!together.operation) {
        together = std::move(p);
      } else {
        Operation &to = *together.operation, &from = *p.operation;
        if (to.name != from.name) to.name = "ncclSend and ncclRecv";
        to.parts.insert(to.parts.end(), from.parts.begin(), from.parts.end());
        to.reads.insert(to.reads.end(), from.reads.begin(), from.reads.end());
        to.writes.insert(to.writes.end(), from.writes.begin(), from.writes.end());
        p.operation = nullptr;
      }
    }
    if (!together.operation) continue;
    if (int e = match_own(*together.operation)) return e;
    if (int e = memory_apart(*together.operation)) return e;
    ready.push_back(std::move(together));
  }
  for (auto& p : ready) {
    if (p.operation->comm->aborted || p.operation->comm->destroyed)
      return wrong(INVALID_ARGUMENT, "ncclGroupEnd: a communicator was closed before");
    if (int e = submit(std::move(p.operation), p.stream)) return e;
  }
  return SUCCESS;
}
int refused(int code) {
  if (group.depth && !group.error) group.error = code;
  return code;
}
// A call: `fill` checks its arguments and sets the parts and the memory of the operation.
int add(const char* name, void* handle, void* stream, size_t count, int type, int root, const std::function<int(Comm&, Operation&, size_t)>& fill) {
  CommPtr c = find(handle);
  if (!c) return refused(wrong(INVALID_ARGUMENT, "%s: not a communicator, or closed before", name));
  if (int e = c->failed()) return refused(wrong(e, "%s: rank %d: the communicator has failed: %s", name, c->rank, result_texts[e]));
  if (type != UINT8 && type != FLOAT32) return refused(wrong(INVALID_ARGUMENT, "%s: rank %d: type %d is not emulated", name, c->rank, type));
  if (root < 0 || root >= c->ranks) return refused(wrong(INVALID_ARGUMENT, "%s: rank %d: there is no rank %d", name, c->rank, root));
  if (count >> 40) return refused(wrong(INVALID_ARGUMENT, "%s: rank %d: a count of %zu", name, c->rank, count));
  auto o = std::make_unique<Operation>();
  o->comm = c;
  o->name = name;
  size_t width = type == FLOAT32 ? 4 : 1;
  if (int e = fill(*c, *o, count * width)) return refused(e);
  for (auto* ranges : {&o->reads, &o->writes})
    for (auto& r : *ranges)
      if (r.bytes && ((uintptr_t)r.at % width || !emulation_inside(r.at, r.bytes)))
        return refused(wrong(INVALID_ARGUMENT, "%s: rank %d: %zu bytes at %p are not in live device memory, or not aligned", name, c->rank,
            r.bytes, (const void*)r.at));
  c->calls++;
  std::vector<Pending> calls;
  auto& list = group.depth ? group.calls : calls;
  list.push_back({std::move(o), stream});
  return group.depth ? (int)SUCCESS : launch(std::move(calls));
}
void print_counts(const char* call, const Comm& c) {
  if (getenv("EMULATION_REPORT"))
    fprintf(stderr, "emulation: %s: rank %d of %d: calls %lld, runs %lld, bytes sent %lld, bytes received %lld\n", call, c.rank, c.ranks,
        c.calls.load(), c.runs.load(), c.sent.load(), c.received.load());
}
}  // namespace nccl

API int ncclGetVersion(int* v) { return v ? *v = 22705, (int)SUCCESS : wrong(INVALID_ARGUMENT, "ncclGetVersion: null"); }
API const char* ncclGetErrorString(int code) { return code >= SUCCESS && code <= IN_PROGRESS ? result_texts[code] : "unknown result code"; }
API const char* ncclGetLastError(void*) { return last_error; }

// As with the real library, the process that makes an id must live until all ranks have joined.
API int ncclGetUniqueId(UniqueId* id) {
  if (!id) return wrong(INVALID_ARGUMENT, "%s: null", __func__);
  static std::random_device& random = *new std::random_device;
  std::lock_guard<std::mutex> lock(mutex);
  *id = {};
  memcpy(id->magic, MAGIC, sizeof MAGIC);
  id->process = getpid();
  id->nonce = (uint64_t)random() << 32 | random();
  id->file = memfd_create("emulated NCCL", MFD_CLOEXEC);
  if (id->file < 0 || ftruncate(id->file, (off_t)shared_bytes(MOST)) ||
      pwrite(id->file, &id->nonce, sizeof id->nonce, offsetof(Shared, nonce)) != sizeof id->nonce)
    return wrong(SYSTEM_ERROR, "%s: no memory to share: %s", __func__, strerror(errno));
  files[id->nonce] = id->file;
  return SUCCESS;
}
API int ncclCommInitRank(void** out, int ranks, UniqueId id, int rank) {
  if (!out) return wrong(INVALID_ARGUMENT, "%s: null", __func__);
  *out = nullptr;
  if (ranks < 1 || ranks > MOST || rank < 0 || rank >= ranks) return wrong(INVALID_ARGUMENT, "%s: rank %d of %d", __func__, rank, ranks);
  if (memcmp(id.magic, MAGIC, sizeof MAGIC))
    return wrong(INVALID_ARGUMENT, "%s: rank %d: not an id that ncclGetUniqueId made here", __func__, rank);
  if (group.depth) return wrong(INVALID_USAGE, "%s: within a group it is not emulated", __func__);
  // it allocates memory of the current device
  int device = 0, devices = 0;
  if (int e = emulation_safe(__func__)) return wrong(CUDA_ERROR, "%s: rank %d: the driver refuses with %d", __func__, rank, e);
  if (cuCtxGetDevice(&device) || cuDeviceGetCount(&devices)) return wrong(CUDA_ERROR, "%s: rank %d: no device", __func__, rank);
  auto c = std::make_shared<Comm>();
  c->rank = rank, c->ranks = ranks;
  if (const char* t = getenv("EMULATION_NCCL_TIMEOUT")) {
    c->timeout = atoi(t);
    if (c->timeout < 1) return wrong(INVALID_USAGE, "%s: EMULATION_NCCL_TIMEOUT is milliseconds, not %s", __func__, t);
  }
  if (int e = open_shared(*c, id)) return e;
  if (int e = enter(*c, device, devices)) return e;
  if (int e = wait_for_all(*c)) return e;
  static std::atomic<long long> serials{0};
  c->serial = ++serials;
  std::lock_guard<std::mutex> lock(mutex);
  comms[c.get()] = c;
  *out = c.get();
  return SUCCESS;
}
// Frees device memory, which waits for all work of the device.
API int ncclCommDestroy(void* handle) {
  if (group.depth) return wrong(INVALID_USAGE, "%s: within a group it is not emulated", __func__);
  CommPtr c = take(handle);
  if (!c) return wrong(INVALID_ARGUMENT, "%s: not a communicator, or closed before", __func__);
  int e = cuCtxSynchronize();
  c->destroyed = true;
  lock_byte(c->file, c->rank, F_UNLCK, F_SETLK);
  print_counts(__func__, *c);
  return e ? wrong(CUDA_ERROR, "%s: rank %d: the driver fails with %d", __func__, c->rank, e) : (int)SUCCESS;
}
// Does not wait: it may come from another thread while one waits for work that never ends.
API int ncclCommAbort(void* handle) {
  CommPtr c = take(handle);
  if (!c) return wrong(INVALID_ARGUMENT, "%s: not a communicator, or closed before", __func__);
  c->aborted = true;
  c->fail(REMOTE_ERROR);
  lock_byte(c->file, c->rank, F_UNLCK, F_SETLK);
  print_counts(__func__, *c);
  return SUCCESS;
}
API int ncclCommGetAsyncError(void* handle, int* code) {
  CommPtr c = find(handle);
  if (!c || !code) return wrong(INVALID_ARGUMENT, "%s: not a communicator, or closed before, or null", __func__);
  *code = c->failed();
  return SUCCESS;
}
API int ncclGroupStart() {
  group.depth++;
  return SUCCESS;
}
API int ncclGroupEnd() {
  if (!group.depth) return wrong(INVALID_USAGE, "%s: without ncclGroupStart", __func__);
  if (--group.depth) return SUCCESS;
  int e = group.error;
  auto calls = std::move(group.calls);
  group.calls.clear();
  group.error = 0;
  return e ? wrong(e, "%s: a call of the group was refused, so none is made", __func__) : launch(std::move(calls));
}

API int ncclAllGather(const void* send, void* receive, size_t count, int type, void* comm, void* stream) {
  return add(__func__, comm, stream, count, type, 0, [&](Comm& c, Operation& o, size_t n) {
    auto* from = (const char*)send;
    auto* to = (char*)receive;
    Call call{GATHER, type, 0, 0, count};
    for (int r = 0; r < c.ranks; r++) {
      if (r == c.rank) continue;
      o.parts.push_back({r, true, call, from, nullptr, n});
      o.parts.push_back({r, false, call, nullptr, to + r * n, n});
    }
    o.writes.push_back({to, n * c.ranks});
    if (from == to + c.rank * n) return (int)SUCCESS;  // in place
    o.own.push_back({to + c.rank * n, from, n});
    o.reads.push_back({from, n});
    return memory_apart(o);
  });
}
API int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* comm, void* stream) {
  return add(__func__, comm, stream, count, type, root, [&](Comm& c, Operation& o, size_t n) {
    auto* from = (const char*)send;
    auto* to = (char*)receive;
    Call call{BROADCAST, type, root, 0, count};
    for (int r = 0; r < c.ranks; r++) {  // who has nothing to send sends the call, so that all are compared
      if (r == c.rank) continue;
      o.parts.push_back({r, true, call, from, nullptr, c.rank == root ? n : 0});
      o.parts.push_back({r, false, call, nullptr, to, r == root ? n : 0});
    }
    o.writes.push_back({to, n});
    if (c.rank != root || from == to) return (int)SUCCESS;
    o.own.push_back({to, from, n});
    o.reads.push_back({from, n});
    return memory_apart(o);
  });
}
API int ncclSend(const void* send, size_t count, int type, int peer, void* comm, void* stream) {
  return add(__func__, comm, stream, count, type, peer, [&](Comm&, Operation& o, size_t n) {
    o.parts.push_back({peer, true, {SEND, type, 0, 0, count}, (const char*)send, nullptr, n});
    o.reads.push_back({(const char*)send, n});
    return SUCCESS;
  });
}
API int ncclRecv(void* receive, size_t count, int type, int peer, void* comm, void* stream) {
  return add(__func__, comm, stream, count, type, peer, [&](Comm&, Operation& o, size_t n) {
    o.parts.push_back({peer, false, {SEND, type, 0, 0, count}, nullptr, (char*)receive, n});
    o.writes.push_back({(char*)receive, n});
    return SUCCESS;
  });
}
