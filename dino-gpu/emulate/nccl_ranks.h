// The ranks of the emulated NCCL: the memory they share, how they join, and how they notice that one is gone.
#pragma once
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace nccl {
enum Result { SUCCESS, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, IN_PROGRESS };
inline const char* const result_texts[] = {
    "no error",
    "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "internal error - please report this issue to the NCCL developers",
    "invalid argument (run with NCCL_DEBUG=WARN for details)",
    "invalid usage (run with NCCL_DEBUG=WARN for details)",
    "remote process exited or there was a network error",
    "NCCL operation in progress",
};
enum { UINT8 = 1, FLOAT32 = 7 };
constexpr int MOST = 32;            // ranks
constexpr size_t RING = 256 << 10;  // bytes between one rank and another that are sent and not yet received
constexpr int PATIENCE = 5;         // milliseconds that work waits before it lets the driver answer or look elsewhere
constexpr int NOT_PERMITTED = 800;  // the driver's word for work out of order
typedef std::chrono::steady_clock Clock;
typedef std::chrono::milliseconds Milliseconds;

inline char last_error[1024];
template <class... A> int wrong(int code, const char* format, A... a) {
  static std::mutex& one = *new std::mutex;
  std::lock_guard<std::mutex> lock(one);
  snprintf(last_error, sizeof last_error, format, a...);
  fprintf(stderr, "emulation: %s\n", last_error);
  return code;
}

// ---- what ranks share
// What must be the same on all ranks that take part.
enum Kind { GATHER, BROADCAST, SEND };
struct Call {
  int32_t kind, type, root;
  uint32_t unused;
  uint64_t count;
  bool operator==(const Call& o) const { return kind == o.kind && type == o.type && root == o.root && count == o.count; }
};
inline std::string describe(const Call& c, bool sends) {
  const char* names[] = {"ncclAllGather", "ncclBroadcast", sends ? "ncclSend" : "ncclRecv"};
  std::string text = c.kind >= 0 && c.kind <= SEND ? names[c.kind] : "something unknown";
  text += " of " + std::to_string(c.count) + (c.type == FLOAT32 ? " f32" : " bytes");
  return c.kind == BROADCAST ? text + " from rank " + std::to_string(c.root) : text;
}
// One direction between two ranks: calls, each with its bytes, one after the other.
struct Channel {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> taken;
  alignas(64) char ring[RING];
};
struct Slot {
  std::atomic<int> process;
  int device, devices;
};
struct Shared {
  uint64_t nonce;
  int ranks, joined;                  // as the first rank that came knows it, and how many came
  std::atomic<int> complete, failed;  // all ranks came; the error that everybody has from then on
  Slot slots[MOST];
  alignas(4096) Channel channels[];  // by sender, then receiver
};
inline size_t shared_bytes(int ranks) { return sizeof(Shared) + size_t(ranks) * ranks * sizeof(Channel); }

// The memory is a file without a name, so nothing can be left behind: it goes with the last process that has it open. A rank
// keeps a lock on the byte of its number while its process lives and its communicator is open, which others can ask for at
// any time: unlike a process id it ends with the process, is never given to another and is not kept by a zombie. (A process
// loses such locks when it closes the file anywhere, so it opens it once.) The byte after those of all ranks is locked to join.
inline bool lock_byte(int file, int byte, int type, int how) {
  struct flock l {};
  l.l_type = (short)type, l.l_whence = SEEK_SET, l.l_start = byte, l.l_len = 1;
  int e;
  do e = fcntl(file, how, &l);
  while (e && errno == EINTR);
  return !e && (how != F_GETLK || l.l_type != F_UNLCK);
}
inline bool gone(int file, int rank) { return !lock_byte(file, rank, F_WRLCK, F_GETLK); }
struct Joining {
  static inline std::mutex& here = *new std::mutex;  // a file's locks do not exclude threads of one process
  int file;
  Joining(int f) : file(f) {
    here.lock();
    lock_byte(file, MOST, F_WRLCK, F_SETLKW);
  }
  ~Joining() {
    lock_byte(file, MOST, F_UNLCK, F_SETLK);
    here.unlock();
  }
};

struct UniqueId {
  char magic[16];
  int process, file;
  uint64_t nonce;
  char unused[96];
};
static_assert(sizeof(UniqueId) == 128);
inline const char MAGIC[16] = "emulated NCCL 1";

struct Comm {
  Shared* shared = nullptr;
  size_t bytes = 0;
  int file = -1, rank = 0, ranks = 0, timeout = 20000;
  long long serial = 0;
  std::atomic<bool> destroyed{false}, aborted{false};
  std::atomic<long long> calls{0}, runs{0}, sent{0}, received{0};
  struct Operation* running = nullptr;  // used under the driver's lock only, as all that work does
  bool told = false;
  ~Comm() {
    if (shared) munmap((void*)shared, bytes);
    if (file >= 0) close(file);
  }
  Channel& channel(int from, int to) { return shared->channels[from * ranks + to]; }
  int failed() const { return shared->failed; }
  int fail(int code) {
    int none = 0;
    shared->failed.compare_exchange_strong(none, code);
    return code;
  }
};
typedef std::shared_ptr<Comm> CommPtr;
// The communicators that are open, so that a closed one is refused without being read; the files of ids made here, and the
// ids used here.
inline std::mutex& mutex = *new std::mutex;
inline std::map<void*, CommPtr>& comms = *new std::map<void*, CommPtr>;
inline std::map<uint64_t, int>& files = *new std::map<uint64_t, int>;
inline std::set<uint64_t>& used = *new std::set<uint64_t>;

inline CommPtr find(void* handle) {
  std::lock_guard<std::mutex> lock(mutex);
  auto i = comms.find(handle);
  return i == comms.end() ? nullptr : i->second;
}
inline CommPtr take(void* handle) {
  std::lock_guard<std::mutex> lock(mutex);
  auto i = comms.find(handle);
  if (i == comms.end()) return nullptr;
  CommPtr c = i->second;
  comms.erase(i);
  return c;
}

// ---- joining
inline int open_shared(Comm& c, const UniqueId& id) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (!used.insert(id.nonce).second)
      return wrong(INVALID_USAGE, "ncclCommInitRank: rank %d: this process has used the id before; a rank is a process here", c.rank);
    auto made = files.find(id.nonce);
    if (id.process == getpid() && made != files.end()) {
      c.file = made->second;
      files.erase(made);
    }
  }
  std::string path = "/proc/" + std::to_string(id.process) + "/fd/" + std::to_string(id.file);
  if (c.file < 0) c.file = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  c.bytes = shared_bytes(c.ranks);
  struct stat info;
  auto unknown = [&] { return wrong(SYSTEM_ERROR, "ncclCommInitRank: rank %d: process %d, which made the id, is gone", c.rank, id.process); };
  if (c.file < 0 || fstat(c.file, &info) || info.st_size < (off_t)c.bytes) return unknown();
  void* at = mmap(nullptr, c.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c.file, 0);
  if (at == MAP_FAILED) return wrong(SYSTEM_ERROR, "ncclCommInitRank: rank %d: %zu bytes cannot be mapped", c.rank, c.bytes);
  c.shared = (Shared*)at;
  return c.shared->nonce == id.nonce ? (int)SUCCESS : unknown();
}
inline int enter(Comm& c, int device, int devices) {
  Shared& s = *c.shared;
  Slot& own = s.slots[c.rank];
  Joining one(c.file);
  if (s.complete) return wrong(INVALID_USAGE, "ncclCommInitRank: rank %d: the communicator of this id has all its %d ranks", c.rank, s.ranks);
  if (s.failed) return wrong(s.failed, "ncclCommInitRank: rank %d: the others gave up before", c.rank);
  if (!s.ranks) s.ranks = c.ranks;
  if (s.ranks != c.ranks) return c.fail(wrong(INVALID_USAGE, "ncclCommInitRank: rank %d joins %d ranks, others join %d", c.rank, c.ranks, s.ranks));
  if (own.process)
    return c.fail(wrong(INVALID_USAGE, "ncclCommInitRank: rank %d is there twice, as process %d and %d", c.rank, own.process.load(), getpid()));
  if (!lock_byte(c.file, c.rank, F_WRLCK, F_SETLK)) return c.fail(wrong(SYSTEM_ERROR, "ncclCommInitRank: rank %d: no lock", c.rank));
  own.device = device, own.devices = devices;
  own.process = getpid();
  if (++s.joined < c.ranks) return SUCCESS;
  for (int r = 0; r < c.ranks; r++)
    if (r != c.rank && devices > 1 && s.slots[r].devices > 1 && s.slots[r].device == device)
      return c.fail(wrong(INVALID_USAGE, "ncclCommInitRank: ranks %d and %d are both on device %d", r, c.rank, device));
  s.complete = 1;
  return SUCCESS;
}
inline int wait_for_all(Comm& c) {
  Shared& s = *c.shared;
  auto end = Clock::now() + Milliseconds(c.timeout);
  for (; !s.complete; std::this_thread::sleep_for(Milliseconds(1))) {
    if (s.failed) return wrong(s.failed, "ncclCommInitRank: rank %d: another rank gave up: %s", c.rank, result_texts[s.failed]);
    Joining one(c.file);  // so that it is not complete for some and failed for others
    if (s.complete || s.failed) continue;
    for (int r = 0; r < c.ranks; r++)
      if (r != c.rank && s.slots[r].process && gone(c.file, r))
        return c.fail(wrong(REMOTE_ERROR, "ncclCommInitRank: rank %d: rank %d, process %d, is gone", c.rank, r, s.slots[r].process.load()));
    if (Clock::now() > end)
      return c.fail(wrong(SYSTEM_ERROR, "ncclCommInitRank: rank %d: after %d ms only %d of %d ranks came", c.rank, c.timeout, s.joined, c.ranks));
  }
  return SUCCESS;
}
}  // namespace nccl
