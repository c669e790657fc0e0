// Asserts what the emulated NCCL promises:  nccl_selftest LIBCUDA LIBNCCL  (built with selftest.cu as its kernels)
// A rank is a child of this process, which makes the ids.
#include "selftest.h"
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <functional>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

enum { CUDA_ERROR = 1, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR };
enum { UINT8 = 1, FLOAT32 = 7 };
struct Id { char bytes[128]; };
static void* lib;
template <class... A> int nc(const char* name, A... a) {
  void* f = dlsym(lib, name);
  if (!f) printf("no function %s\n", name), exit(1);
  return ((int (*)(A...))f)(a...);
}
static int gather(const void* from, void* to, size_t n, int type, P comm, P s) { return nc("ncclAllGather", from, to, n, type, comm, s); }
static int broadcast(const void* from, void* to, size_t n, int type, int root, P comm, P s) { return nc("ncclBroadcast", from, to, n, type, root, comm, s); }
static int send(const void* from, size_t n, int type, int peer, P comm, P s) { return nc("ncclSend", from, n, type, peer, comm, s); }
static int receive(void* to, size_t n, int type, int peer, P comm, P s) { return nc("ncclRecv", to, n, type, peer, comm, s); }
static int begin() { return nc("ncclGroupStart"); }
static int end() { return nc("ncclGroupEnd"); }
static int error(P comm) { int e = -1; DO(nc("ncclCommGetAsyncError", comm, &e)); return e; }
static int destroy(P comm) { return nc("ncclCommDestroy", comm); }
static bool said(const char* text) {
  auto last = ((const char* (*)(P))dlsym(lib, "ncclGetLastError"))(nullptr);
  return strstr(last, text) || (printf("the last error is: %s\n", last), false);
}

// What the processes share: how many checks there were, and a meeting point that has nothing to do with what is tested.
struct Together { std::atomic<int> checks, met; };
static Together* together;
static Id ids[4];
static int rank, ranks;
static void meet(int times) {  // the times-th meeting of all ranks
  together->met++;
  while (together->met < times * ranks) usleep(200);
}
static void milliseconds(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }
static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
static P join(int id = 0) { P c = nullptr; DO(nc("ncclCommInitRank", &c, ranks, ids[id], rank)); return c; }
static void start(int device_) {
  P c;
  DO(cu("cuInit", 0u));
  DO(cu("cuDevicePrimaryCtxRetain", &c, device_));
  DO(cu("cuCtxSetCurrent", c));
  DO(cu("cuModuleLoadData", &module_, (const void*)"//\n.version 9.0\n"));
}
// f on n ranks, in processes of their own; a rank of `killed` ends by SIGKILL.
static void on(int n, int timeout, std::function<void()> f, int killed = -1, int devices = 1, int device_ = 0) {
  for (auto& id : ids) DO(nc("ncclGetUniqueId", (P)&id));
  together->met = 0;
  fflush(stdout);
  std::vector<pid_t> all;
  for (int r = 0; r < n; r++) {
    all.push_back(fork());
    if (all.back()) continue;
    alarm(60);
    failures = checks = 0;
    rank = r, ranks = n;
    setenv("EMULATION_NCCL_TIMEOUT", std::to_string(timeout).c_str(), 1);
    set("devices", devices);
    start(device_ < 0 ? r : device_);
    f();
    if (failures) printf("in rank %d of %d\n", rank, ranks);
    together->checks += checks;
    fflush(stdout);
    _exit(failures != 0);
  }
  for (int r = 0; r < n; r++) {
    int status = 0;
    waitpid(all[r], &status, 0);
    CHECK(r == killed ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}
static void nan_all(float* p, size_t n) {
  int numbers = 0;
  for (float v : get(p, n)) numbers += !std::isnan(v);
  CHECK(numbers == 0);
}
// n numbers of a rank in device memory, at the end of what stands in the stream
static float* numbers(size_t n, int of, P s) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; i++) v[i] = (float)(of * 1000 + (int)(i % 977));
  float* p = device(n);
  DO(up(p, v.data(), n, s));
  return p;
}
static bool is(const std::vector<float>& v, size_t at, size_t n, int of) {
  for (size_t i = 0; i < n; i++)
    if (v[at + i] != (float)(of * 1000 + (int)(i % 977))) return printf("number %zu is %g, of rank %d\n", i, v[at + i], of), false;
  return true;
}

static void test_calls() {
  P c = join(), s = stream();
  for (size_t n : {1000, 200001}) {  // the second is more than the ranks share memory for
    float *x = numbers(n, rank, s), *y = device(n * ranks);
    DO(gather(x, y, n, FLOAT32, c, s));
    nan_all(y, n);
    DO(sync(s));
    auto v = get(y, n * ranks);
    for (int r = 0; r < ranks; r++) CHECK(is(v, r * n, n, r));
    DO(fill(y, 0, n * ranks, s));
    DO(cu("cuMemcpyDtoDAsync_v2", (Ptr)(y + rank * n), (Ptr)x, n * 4, s));
    DO(gather(y + rank * n, y, n, FLOAT32, c, s));  // in place
    DO(sync(s));
    v = get(y, n * ranks);
    for (int r = 0; r < ranks; r++) CHECK(is(v, r * n, n, r));
    for (int root = 0; root < ranks; root++) {
      float* z = device(n);
      DO(broadcast(x, root % 2 ? x : z, n, FLOAT32, root, c, s));
      DO(sync(s));
      CHECK(is(get(root % 2 ? x : z, n), 0, n, root));
      if (root % 2) {
        DO(release(x));
        x = numbers(n, rank, s);
      }
      DO(release(z));
    }
    // to the next rank, from the one before, of as many numbers as the sender's rank adds; alone, to itself
    int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
    DO(fill(y, -1, n, s));
    DO(sync(s));
    DO(begin());
    DO(send(x, n - 10 + rank, FLOAT32, next, c, s));
    DO(receive(y, n - 10 + before, FLOAT32, before, c, s));
    DO(end());
    CHECK(get(y, 1)[0] == -1);
    DO(sync(s));
    v = get(y, n);
    CHECK(is(v, 0, n - 10 + before, before) && v[n - 10 + before] == -1);
    // all to all, two messages each, in a group with a collective, within a group
    float *out = numbers(n, rank, s), *in = device(n * ranks), *all = device(64 * ranks);
    DO(begin());
    DO(begin());
    for (int r = 0; r < ranks; r++) {
      DO(send(out, 300, FLOAT32, r, c, s));
      DO(receive(in + r * n, 300, FLOAT32, r, c, s));
      DO(receive(in + r * n + 300, n - 300, FLOAT32, r, c, s));
      DO(send(out + 300, n - 300, FLOAT32, r, c, s));
    }
    DO(end());
    DO(gather(out, all, 64, FLOAT32, c, s));
    DO(end());
    DO(sync(s));
    v = get(in, n * ranks);
    auto w = get(all, 64 * ranks);
    for (int r = 0; r < ranks; r++) CHECK(is(v, r * n, n, r) && is(w, r * 64, 64, r));
    for (float* p : {x, y, out, in, all}) DO(release(p));
  }
  // bytes, any number of them, at any address; and the legacy stream
  float *x = device(100), *y = device(1000);
  DO(cu("cuMemsetD8Async", (Ptr)x, (unsigned char)(65 + rank), (size_t)101, P(nullptr)));
  DO(gather((char*)x, (char*)y + 3, 101, UINT8, c, nullptr));
  DO(gather(x, y, 0, FLOAT32, c, nullptr));
  DO(cu("cuCtxSynchronize"));
  auto v = get(y, 1000);
  for (int i = 0; i < 101 * ranks; i++) CHECK(((char*)v.data())[3 + i] == 65 + i / 101);
  // two ranks, while the third does something else
  if (ranks == 3) {
    if (rank == 0) DO(send(x, 25, FLOAT32, 1, c, s));
    if (rank == 1) DO(receive(y, 25, FLOAT32, 0, c, s));
    DO(sync(s));
    if (rank == 1) CHECK(((char*)get(y, 1).data())[0] == 65);
  }
  IS(error(c), 0);
  DO(destroy(c));
  IS(destroy(c), INVALID_ARGUMENT);
  IS(gather(x, y, 1, FLOAT32, c, s), INVALID_ARGUMENT);
}

// Two streams in one graph, each with a kernel and a call, joined by events.
static void test_graph(int seed) {
  P c = join(), a = stream(), b = stream(), e = event(), e2 = event(), graph, exec;
  const size_t n = 70000;
  float *x = device(n), *y = device(n * ranks), *z = device(n), *w = device(n), *h = pinned(n), *g = pinned(n * ranks), *last = pinned(n);
  int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
  DO(cu("cuStreamBeginCapture_v2", a, 1));
  DO(up(x, h, n, a));
  DO(launch("add", 274, 256, a, x, (float)rank, (int)n));
  DO(cu("cuEventRecord", e, a));
  DO(cu("cuStreamWaitEvent", b, e, 0u));
  DO(gather(x, y, n, FLOAT32, c, b));
  DO(launch("add", 274, 256, b, y, 100.f, (int)n));
  DO(cu("cuEventRecord", e2, b));
  DO(launch("scale", 274, 256, a, x, z, 2.f, (int)n));
  DO(cu("cuStreamWaitEvent", a, e2, 0u));
  DO(begin());
  DO(send(z, n, FLOAT32, next, c, a));
  DO(receive(w, n, FLOAT32, before, c, a));
  DO(end());
  DO(down(last, w, n, a));
  DO(down(g, y, n * ranks, a));
  DO(cu("cuStreamEndCapture", a, &graph));
  DO(cu("cuGraphInstantiateWithFlags", &exec, graph, 0ull));
  nan_all(y, n);
  set("seed", seed ? seed + rank : 0);
  for (int i = 0; i < 3; i++) {
    for (size_t k = 0; k < n; k++) h[k] = (float)(10 * rank + i);
    DO(cu("cuGraphLaunch", exec, a));
    CHECK(std::isnan(g[0]) && std::isnan(last[0]));
    if (i == 1) {  // one that asks, while the last rank is late
      DO(cu("cuEventRecord", e, a));
      if (rank == ranks - 1) milliseconds(400);
      int polls = 0, code;
      double longest = 0;
      for (double t = now(); (code = cu("cuEventQuery", e)) == 600; t = now()) polls++, longest = std::max(longest, now() - t), usleep(500);
      IS(code, 0);
      CHECK(longest < 0.3 && (rank == ranks - 1 || ranks == 1 || polls > 12));
    } else {
      DO(sync(a));
    }
    for (int r = 0; r < ranks; r++)
      for (size_t k : {size_t(0), n / 2, n - 1}) CHECK(g[r * n + k] == 11 * r + i + (r == 0 ? 100 : 0));
    CHECK(last[0] == 2 * (11 * before + i) && last[n - 1] == last[0]);
  }
  set("seed", 0);
  // in two streams without an event between: in a capture, and when queued
  DO(cu("cuStreamBeginCapture_v2", a, 1));
  DO(cu("cuEventRecord", e, a));
  DO(cu("cuStreamWaitEvent", b, e, 0u));
  DO(gather(x, y, n, FLOAT32, c, b));
  IS(gather(x, y, n, FLOAT32, c, a), INVALID_USAGE);
  IS(cu("cuStreamEndCapture", a, &graph), 901);
  P other = stream();
  DO(cu("cuGraphLaunch", exec, a));
  IS(gather(x, y, n, FLOAT32, c, b), INVALID_USAGE);
  CHECK(said("another stream"));
  DO(cu("cuEventRecord", e, a));
  DO(cu("cuStreamWaitEvent", other, e, 0u));
  DO(cu("cuEventRecord", e2, other));
  DO(cu("cuStreamWaitEvent", b, e2, 0u));
  DO(gather(x, y, n, FLOAT32, c, b));  // by way of a third
  IS(cu("cuGraphLaunch", exec, a), 800);
  DO(sync(b));
  DO(cu("cuGraphLaunch", exec, a));  // the host waited
  DO(sync(a));
  // a graph that outlives its communicator
  DO(destroy(c));
  DO(cu("cuGraphLaunch", exec, a));
  IS(sync(a), 700);
}

// Two communicators with their ranks in opposite orders, whose work every rank waits for in another order.
static void test_two() {
  P one = join(0), a = stream(), b = stream();
  int turned = ranks - 1 - rank;
  P two = nullptr;
  DO(nc("ncclCommInitRank", &two, ranks, ids[1], turned));
  float *x = numbers(50, rank, a), *y = device(50 * ranks), *z = device(50 * ranks);
  DO(sync(a));
  for (int i = 0; i < 3; i++) {
    DO(gather(x, y, 50, FLOAT32, one, a));
    DO(gather(x, z, 50, FLOAT32, two, b));
    DO(broadcast(y, y, 50, FLOAT32, 0, two, b));
    DO(sync(rank % 2 ? a : b));
    DO(cu("cuCtxSynchronize"));
    auto v = get(y, 50 * ranks), w = get(z, 50 * ranks);
    for (int r = 1; r < ranks; r++) CHECK(is(v, r * 50, 50, r) && is(w, r * 50, 50, ranks - 1 - r));
    CHECK(is(w, 0, 50, ranks - 1));
  }
  DO(destroy(one));
  DO(fill(z, -1, 50 * ranks, a));
  DO(sync(a));
  DO(gather(x, z, 50, FLOAT32, two, a));
  DO(destroy(two));  // waits for what is queued
  CHECK(is(get(z, 50 * ranks), 0, 50, ranks - 1));
}

// Calls that do not fit together; in each the ranks are two.
static void test_mismatch(int which) {
  P c = join(), s = stream();
  float *x = numbers(100, rank, s), *y = device(200), *z = device(200);
  bool first = rank == 0;
  std::function<int()> calls[] = {
      [&] { return gather(x, y, first ? 10 : 11, FLOAT32, c, s); },
      [&] { return gather(x, y, 40, first ? UINT8 : FLOAT32, c, s); },
      [&] { return broadcast(x, y, 10, FLOAT32, rank, c, s); },
      [&] { return first ? gather(x, y, 10, FLOAT32, c, s) : broadcast(x, y, 10, FLOAT32, 0, c, s); },
      [&] { return first ? send(x, 10, FLOAT32, 1, c, s) : receive(y, 9, FLOAT32, 0, c, s); },
      [&] { return first ? send(x, 10, FLOAT32, 1, c, s) : gather(x, y, 10, FLOAT32, c, s); }};
  DO(calls[which]());
  DO(gather(x, z, 10, FLOAT32, c, s));  // and nothing after it works
  IS(error(c), 0);
  DO(sync(s));
  IS(error(c), INVALID_USAGE);
  nan_all(z, 20);
  if (which < 4 || !first) nan_all(y, which == 2 || which == 3 || which == 4 ? 9 : 20);
  IS(gather(x, y, 10, FLOAT32, c, s), INVALID_USAGE);
  DO(destroy(c));
}

// Rank 1 goes: killed, closed, aborted, or it is there and never calls.
static void test_leaving(int how) {
  P c = join(), s = stream();
  float *x = numbers(100, rank, s), *y = device(100 * ranks);
  DO(gather(x, y, 100, FLOAT32, c, s));
  DO(sync(s));
  meet(1);
  if (rank == 1) {
    if (how == 0) raise(SIGKILL);
    if (how == 1) DO(destroy(c));
    if (how == 2) {
      milliseconds(50);
      DO(nc("ncclCommAbort", c));
    }
    milliseconds(how == 3 ? 700 : 300);
    if (how == 3) IS(error(c), REMOTE_ERROR);
    return;
  }
  double began = now();
  DO(gather(x, y, 100, FLOAT32, c, s));
  IS(error(c), 0);
  DO(sync(s));
  IS(error(c), REMOTE_ERROR);
  nan_all(y, 100 * ranks);
  double took = now() - began;
  CHECK(how == 3 ? took > 0.29 : took < 3);
  CHECK(how == 2 || ranks == 3 || said(how == 3 ? "waits longer than 300 ms" : "gone"));
  IS(gather(x, y, 100, FLOAT32, c, s), REMOTE_ERROR);
  DO(destroy(c));
}
static void test_waiting() {
  P c = join(0), s = stream();
  float *x = numbers(100, rank, s), *y = device(100);
  // without a group, both send first
  DO(send(x, 100, FLOAT32, 1 - rank, c, s));
  DO(receive(y, 100, FLOAT32, 1 - rank, c, s));
  DO(sync(s));
  IS(error(c), REMOTE_ERROR);
  nan_all(y, 100);
  DO(destroy(c));
  // aborted before it runs
  if (rank) return;
  int own = ranks;
  ranks = 1, c = join(1), ranks = own;
  DO(gather(x, y, 100, FLOAT32, c, s));
  DO(nc("ncclCommAbort", c));
  IS(nc("ncclCommAbort", c), INVALID_ARGUMENT);
  DO(sync(s));
  nan_all(y, 100);
}
static void test_abort() {
  P c = join(), s = stream();
  float *x = numbers(100, rank, s), *y = device(200);
  if (rank == 0) {
    std::thread other([&] { milliseconds(100); DO(nc("ncclCommAbort", c)); });
    DO(gather(x, y, 100, FLOAT32, c, s));
    double began = now();
    DO(sync(s));
    CHECK(now() - began < 3);
    nan_all(y, 200);
    other.join();
  }
  meet(1);
  int e = rank ? error(c) : REMOTE_ERROR;
  IS(e, REMOTE_ERROR);
}

static void test_joining() {
  P c = nullptr;
  auto init = [&](int n, const Id& id, int r) { return nc("ncclCommInitRank", &c, n, id, r); };
  on(2, 5000, [&] { IS(init(2, ids[0], 0), INVALID_USAGE); });         // twice the same rank
  on(2, 5000, [&] { IS(init(2 + rank, ids[0], rank), INVALID_USAGE); });  // who joins how many?
  on(1, 200, [&] { IS(init(2, ids[0], 0), SYSTEM_ERROR); CHECK(said("only 1 of 2")); });
  on(2, 5000, [&] {
    if (rank == 1) std::thread([] { milliseconds(100); raise(SIGKILL); }).detach();
    IS(init(3, ids[0], rank), REMOTE_ERROR);
  }, 1);
  on(2, 5000, [&] { IS(init(2, ids[0], rank), INVALID_USAGE); }, -1, 2, 0);
  on(2, 5000, [&] { DO(init(2, ids[0], rank)); }, -1, 2, -1);
  on(1, 5000, [&] {
    DO(init(1, ids[0], 0));
    IS(init(1, ids[0], 0), INVALID_USAGE);  // an id is used once, by whomever
    IS(init(0, ids[1], 0), INVALID_ARGUMENT);
    IS(init(2, ids[1], 2), INVALID_ARGUMENT);
    IS(init(33, ids[1], 2), INVALID_ARGUMENT);
    IS(init(1, Id{}, 0), INVALID_ARGUMENT);
    DO(begin());
    IS(init(1, ids[1], 0), INVALID_USAGE);
    DO(end());
    std::thread([&] { IS(init(1, ids[1], 0), CUDA_ERROR); }).join();  // no context
    P s = stream(), graph;
    DO(cu("cuStreamBeginCapture_v2", s, 0));
    IS(init(1, ids[1], 0), CUDA_ERROR);
    IS(cu("cuStreamEndCapture", s, &graph), 901);
    setenv("EMULATION_NCCL_TIMEOUT", "soon", 1);
    IS(init(1, ids[1], 0), INVALID_USAGE);
    setenv("EMULATION_NCCL_TIMEOUT", "100", 1);
    DO(init(1, ids[1], 0));
    int ends[2];
    Id id;
    CHECK(!pipe(ends));
    pid_t p = fork();
    if (!p) {
      DO(nc("ncclGetUniqueId", (P)&id));
      _exit(write(ends[1], &id, sizeof id) != sizeof id);
    }
    waitpid(p, nullptr, 0);
    CHECK(read(ends[0], &id, sizeof id) == sizeof id);
    IS(init(1, id, 0), SYSTEM_ERROR);  // its maker is gone
  });
  on(2, 5000, [&] {  // a third comes when all are there
    if (rank == 0) DO(init(1, ids[0], 0));
    meet(1);
    if (rank == 1) IS(init(1, ids[0], 0), INVALID_USAGE);
    meet(2);
    if (rank == 0) IS(error(c), 0);
  });
}

static void test_arguments() {
  P c = join(), s = stream(), s2 = stream(), graph, exec;
  float *x = device(100), *y = device(200), host[200];
  DO(fill(x, 1, 100, s));
  IS(gather(host, y, 10, FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather(x, host, 10, FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather(x, y, 101, FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather(nullptr, y, 1, FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather((char*)x + 1, y, 10, FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather(y + 1, y, 10, FLOAT32, c, s), INVALID_ARGUMENT);  // neither in place nor apart
  IS(gather(x, y, 10, 9, c, s), INVALID_ARGUMENT);
  IS(gather(x, y, size_t(-1), FLOAT32, c, s), INVALID_ARGUMENT);
  IS(gather(x, y, 10, FLOAT32, s, s), INVALID_ARGUMENT);
  IS(gather(x, y, 10, FLOAT32, c, c), CUDA_ERROR);
  IS(broadcast(x, y, 201, FLOAT32, 0, c, s), INVALID_ARGUMENT);
  IS(broadcast(x, y, 10, FLOAT32, ranks, c, s), INVALID_ARGUMENT);
  IS(send(x, 10, FLOAT32, -1, c, s), INVALID_ARGUMENT);
  IS(send(x, 101, FLOAT32, 0, c, s), INVALID_ARGUMENT);
  IS(receive(host, 10, FLOAT32, 0, c, s), INVALID_ARGUMENT);
  IS(send(x, 10, FLOAT32, rank, c, s), INVALID_USAGE);  // nobody receives it
  IS(end(), INVALID_USAGE);
  auto group = [&](std::function<void()> f, int code) {
    DO(begin());
    f();
    IS(end(), code);
  };
  group([&] { DO(send(x, 10, FLOAT32, rank, c, s)); DO(receive(x + 5, 10, FLOAT32, rank, c, s)); }, INVALID_ARGUMENT);
  group([&] { DO(send(x, 10, FLOAT32, rank, c, s)); DO(receive(y, 9, FLOAT32, rank, c, s)); }, INVALID_USAGE);
  group([&] { DO(gather(x, y, 9, FLOAT32, c, s)); DO(gather(x, y, 9, FLOAT32, c, s2)); }, INVALID_USAGE);
  group([&] { DO(gather(x, y, 10, FLOAT32, c, s)); IS(gather(x, host, 10, FLOAT32, c, s), INVALID_ARGUMENT); }, INVALID_ARGUMENT);
  DO(sync(s));
  nan_all(y, 200);
  IS(error(c), 0);
  // memory that is gone when the work runs, on one rank
  DO(cu("cuStreamBeginCapture_v2", s, 1));
  DO(gather(x, y, 10, FLOAT32, c, s));
  DO(cu("cuStreamEndCapture", s, &graph));
  DO(cu("cuGraphInstantiateWithFlags", &exec, graph, 0ull));
  DO(cu("cuGraphLaunch", exec, s));
  DO(sync(s));
  CHECK(get(y, 1)[0] == 1);
  if (rank == 0) DO(release(x));
  DO(cu("cuGraphLaunch", exec, s));
  IS(sync(s), rank ? 0 : 700);
  IS(error(c), REMOTE_ERROR);
  IS(destroy(c), rank ? 0 : CUDA_ERROR);
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  cuda = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  lib = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  if (!cuda || !lib) return printf("%s\n", dlerror()), 1;
  together = (Together*)mmap(nullptr, sizeof(Together), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  set("seed", 0);  // settings of the environment are for other programs
  unsetenv("EMULATION_DEVICES");
  int version = 0;
  DO(nc("ncclGetVersion", &version));
  CHECK(version == 22705);
  auto text = (const char* (*)(int))dlsym(lib, "ncclGetErrorString");
  CHECK(!strcmp(text(REMOTE_ERROR), "remote process exited or there was a network error") && !strcmp(text(99), "unknown result code"));
  for (int n = 1; n <= 3; n++) on(n, 20000, test_calls);
  for (int n = 1; n <= 3; n++) on(n, 20000, [] { test_graph(0); });
  on(2, 20000, [] { test_graph(7); });
  for (int n = 2; n <= 3; n++) on(n, 20000, test_two);
  for (int which = 0; which < 6; which++) on(2, 5000, [=] { test_mismatch(which); });
  for (int how = 0; how < 4; how++) on(2, how == 3 ? 300 : 5000, [=] { test_leaving(how); }, how ? -1 : 1);
  on(3, 5000, [] { test_leaving(0); }, 1);
  on(2, 200, test_waiting);
  on(2, 5000, test_abort);
  test_joining();
  on(2, 5000, test_arguments);
  printf("%d checks, %d failures\n", checks + together->checks, failures);
  return failures != 0;
}
