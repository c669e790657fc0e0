// The emulated driver's streams: queues of work that runs only when something waits for it, events, captures and graphs.
#pragma once
#include "memory.h"

namespace emulation {
struct Stream;
// A point in a stream, reached when the work before it has run.
struct Mark {
  Stream* stream;
  bool reached = false;
  double ms = 0;
};
typedef std::shared_ptr<Mark> MarkPtr;

// What work returns that another process has kept waiting for a few milliseconds; it is run again, from where it is.
constexpr int NOT_YET = -1;

// One item of work, queued or as a node of a graph. `reads` and `writes` are page-locked host memory. Works of one `serial`
// other than 0 must come one after another, whatever streams they are in.
struct Work {
  std::function<int()> run;
  HostRange reads, writes;
  long long serial = 0;
};
struct Op {
  std::function<int()> run;
  MarkPtr wait;     // first wait for this
  MarkPtr reached;  // then this is reached
  std::vector<std::shared_ptr<HostRange>> reads;
};

struct Node {
  Work work;
  std::vector<int> after;
};
struct Graph { std::vector<Node> nodes; };
// A launch under way: the nodes not begun, those done, and the one that was told to wait.
struct GraphRun {
  std::deque<int> left;
  std::vector<bool> done;
  int running = -1;
};
struct Exec {
  std::shared_ptr<const Graph> graph;
  MarkPtr last;  // launches of one executable graph follow each other
};
struct Capture {
  int mode;
  std::thread::id thread;
  Stream* origin;
  Graph graph;
  bool invalid = false;
};
struct Stream {
  bool blocking = true;  // waits for the legacy stream and is waited for by it
  int priority = 0, polls = 0;
  std::deque<Op> queue;
  std::shared_ptr<Capture> capture;
  std::vector<int> frontier;  // nodes that the next captured one comes after
};
struct Event {
  unsigned flags = 0;
  int polls = 0;
  MarkPtr mark;
  std::shared_ptr<Capture> capture;  // recorded last in this one, at
  std::vector<int> frontier;
};
struct PerThread {
  std::vector<void*> contexts;
  int capture_mode = 0;
};
struct State {
  bool initialized = false;
  int devices = 1, device = 0, capability_major = 9, capability_minor = 0;
  long long fail_after = -1, fail_code = ILLEGAL_ADDRESS, fail_capture = -1, fail_allocation = -1, fail_module = 0, memset_is_async = 0;
  int lost = 0;
  int primary = 0;  // references to the primary context
  unsigned primary_flags = 0;
  Stream legacy;
  std::map<long long, MarkPtr> serials;  // where the last work of each ends
  std::set<void*> streams, events, graphs, execs, modules, functions;
  // not thread_local, see cuda_cpu.h
  std::map<std::thread::id, PerThread> threads;
  int context_token = 0;
};
inline State& state = *new State;
inline std::recursive_mutex& mutex = *new std::recursive_mutex;

inline PerThread& this_thread() { return state.threads[std::this_thread::get_id()]; }
inline bool known(const std::set<void*>& set, void* handle) { return set.count(handle) != 0; }
inline Stream* find(void* handle) {
  if (handle == nullptr || handle == (void*)1) return &state.legacy;  // 1: CU_STREAM_LEGACY
  return known(state.streams, handle) ? (Stream*)handle : nullptr;
}
template <class F> void each_stream(F f) {
  f(state.legacy);
  for (void* s : state.streams) f(*(Stream*)s);
}
inline double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// A lost device: everything queued is gone, and every later call gets the code.
inline int lose(int code) {
  if (!state.lost) {
    state.lost = code;
    each_stream([](Stream& s) { s.queue.clear(); });
  }
  return state.lost;
}

// ---- running what is queued
// Both are false where another process must get on first.
inline bool run_until(const MarkPtr& mark);
inline bool run_front(Stream& s) {
  if (MarkPtr wait = s.queue.front().wait; wait && !run_until(wait)) return false;
  if (s.queue.empty()) return true;  // the device was lost meanwhile
  Op op = std::move(s.queue.front());
  s.queue.pop_front();
  s.polls = 0;
  int code = op.run ? op.run() : OK;
  if (code == NOT_YET) return s.queue.push_front(std::move(op)), false;
  if (op.reached) op.reached->reached = true, op.reached->ms = now_ms();
  if (code) lose(code);
  return true;
}
// With a seed, streams nobody waits for may get on as well.
inline void run_others() {
  if (!cpu::seed() || cpu::coin(4)) return;
  std::vector<Stream*> busy;
  each_stream([&](Stream& s) { if (!s.queue.empty()) busy.push_back(&s); });
  if (!busy.empty()) run_front(*busy[cpu::coin(busy.size())]);
}
// What the host waits for waits for another process. That one may itself wait for work of other streams, which on a device
// gets on meanwhile; here only after a while, so that a missing event between streams of this process still shows.
inline void stalled(int& times) {
  if (++times > 20) each_stream([](Stream& s) { if (!state.lost && !s.queue.empty()) run_front(s); });
}
inline bool run_until(const MarkPtr& mark) {
  while (!mark->reached && !state.lost && !mark->stream->queue.empty())
    if (!run_front(*mark->stream)) return false;
  return true;
}
inline int finish(const char* call) {
  if (!state.lost && !guards_intact(call)) lose(ILLEGAL_ADDRESS);
  return state.lost;
}
inline int synchronise(Stream& s, const char* call) {
  counts.synchronizations++;
  for (int times = 0; !state.lost && !s.queue.empty();) {
    run_others();
    if (!s.queue.empty() && !run_front(s)) stalled(times);
  }
  return finish(call);
}
inline int synchronise_all(const char* call) {
  counts.synchronizations++;
  for (bool more = true; more && !state.lost;) {
    more = false;
    each_stream([&](Stream& s) {
      if (s.queue.empty() || state.lost) return;
      run_others();
      if (!s.queue.empty()) run_front(s);
      more = true;
    });
  }
  return finish(call);
}
// Somebody asks whether a stream, or a point in it, is reached. Eight times nothing has run yet, so a program that takes the
// first answer for granted is found; then all of it runs, as on a device that got on meanwhile. A query never waits for another
// process.
inline void poll(int& polls, Stream& s, const MarkPtr& mark) {
  if (++polls <= 8) return;
  int keep = polls;
  if (mark) run_until(mark);
  else
    while (!state.lost && !s.queue.empty() && run_front(s)) {}
  polls = keep;
}

// ---- queueing
inline MarkPtr mark_end(Stream& s) {
  auto m = std::make_shared<Mark>(Mark{&s});
  s.queue.push_back(Op{nullptr, nullptr, m, {}});
  return m;
}
// Whether the first `end` items of a stream's queue come after the mark, all or in part.
inline bool comes_after(Stream& s, size_t end, const Mark& m, std::map<Stream*, size_t>& seen) {
  for (size_t& i = seen[&s]; i < end; i++) {
    Op& op = s.queue[i];
    if (op.reached.get() == &m) return true;
    if (!op.wait || op.wait->reached) continue;
    auto& others = op.wait->stream->queue;
    auto at = std::find_if(others.begin(), others.end(), [&](Op& o) { return o.reached == op.wait; });
    if (at != others.end() && comes_after(*op.wait->stream, size_t(at - others.begin()) + 1, m, seen)) return true;
  }
  return false;
}
// Whether what is queued next on a stream runs after the last work of a serial.
inline bool in_order(const char* call, Stream& s, long long serial) {
  MarkPtr last = state.serials[serial];
  std::map<Stream*, size_t> seen;
  if (!last || last->reached || last->stream == &s || comes_after(s, s.queue.size(), *last, seen)) return true;
  report("%s: work that must come after work of another stream, with no event between them", call);
  return false;
}
inline int push(const char* call, Stream& s, Op op, const std::set<long long>& serials = {}) {
  auto after = [&](Stream& other) {
    if (!other.queue.empty()) s.queue.push_back(Op{nullptr, mark_end(other), nullptr, {}});
  };
  if (&s == &state.legacy) {
    for (void* o : state.streams)
      if (((Stream*)o)->blocking) after(*(Stream*)o);
  } else if (s.blocking) {
    after(state.legacy);
  }
  if (op.wait && !serials.empty()) s.queue.push_back(Op{nullptr, std::move(op.wait), nullptr, {}});
  for (long long serial : serials) {
    if (!in_order(call, s, serial)) return NOT_PERMITTED;
    if (!op.reached) op.reached = std::make_shared<Mark>(Mark{&s});
  }
  for (long long serial : serials) state.serials[serial] = op.reached;
  s.queue.push_back(std::move(op));
  for (int times = 0; s.queue.size() > 1024 && !state.lost;)  // a full queue makes the host wait on real devices too
    if (!run_front(s)) stalled(times);
  return state.lost;
}
inline Op queued(const Work& w) {
  Op op{w.run, nullptr, nullptr, {}};
  scramble(w.writes);
  if (auto r = note_read(w.reads)) op.reads.push_back(r);
  return op;
}

// ---- captures
inline int refuse(const char* call, Capture& c, int code, const char* why) {
  counts.refused_in_capture++;
  c.invalid = true;
  report("%s refused: %s", call, why);
  return code;
}
template <class F> Capture* find_capture(F f) {
  Capture* found = nullptr;
  each_stream([&](Stream& s) { if (s.capture && s.capture->origin == &s && f(*s.capture)) found = s.capture.get(); });
  return found;
}
// Calls that allocate, free, wait or ask: forbidden during a capture by the rules of its mode and of the calling thread.
inline int unsafe_call(const char* call) {
  int own = this_thread().capture_mode;
  auto self = std::this_thread::get_id();
  Capture* c = find_capture([&](Capture& c) {
    if (own == 2 || c.mode == 2) return false;
    return c.thread == self || (c.mode == 0 && own == 0);
  });
  return c ? refuse(call, *c, CAPTURE_UNSUPPORTED, "a stream is capturing") : OK;
}
inline int legacy_call(const char* call) {
  Capture* c = find_capture([](Capture& c) { return c.mode != 2 || c.origin->blocking; });
  return c ? refuse(call, *c, CAPTURE_IMPLICIT, "the legacy stream while a stream is capturing") : OK;
}
// The nodes that come before those of a frontier, and these.
inline std::vector<bool> up_to(const Graph& g, std::vector<int> frontier) {
  std::vector<bool> seen(g.nodes.size(), false);
  while (!frontier.empty()) {
    int n = frontier.back();
    frontier.pop_back();
    if (seen[n]) continue;
    seen[n] = true;
    for (int a : g.nodes[n].after) frontier.push_back(a);
  }
  return seen;
}
// Queues work on a stream, or adds it to the capture the stream is in.
inline int submit(void* handle, const char* call, Work work) {
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  if (s == &state.legacy)
    if (int e = legacy_call(call)) return e;
  if (!s->capture) {
    Op op = queued(work);
    return work.serial ? push(call, *s, std::move(op), {work.serial}) : push(call, *s, std::move(op));
  }
  if (s->capture->invalid) return CAPTURE_INVALIDATED;
  auto& nodes = s->capture->graph.nodes;
  if (work.serial) {
    auto before = up_to(s->capture->graph, s->frontier);
    for (size_t i = 0; i < nodes.size(); i++)
      if (nodes[i].work.serial == work.serial && !before[i])
        return refuse(call, *s->capture, NOT_PERMITTED, "work that must come after work of another stream, with no event between them");
  }
  nodes.push_back(Node{std::move(work), s->frontier});
  s->frontier = {(int)nodes.size() - 1};
  return OK;
}
// In the order of the capture; with a seed in any order that the graph allows.
inline int run_graph(const Graph& g, GraphRun& r) {
  while (!r.left.empty() || r.running >= 0) {
    if (r.running < 0) {
      std::vector<size_t> can;  // never empty: the first of those left comes after none of the others
      for (size_t i = 0; i < r.left.size() && i < (cpu::seed() ? 64 : 1); i++) {
        auto& after = g.nodes[r.left[i]].after;
        if (std::all_of(after.begin(), after.end(), [&](int a) { return r.done[a]; })) can.push_back(i);
      }
      size_t at = can[cpu::seed() ? cpu::coin((unsigned)can.size()) : 0];
      r.running = r.left[at];
      r.left.erase(r.left.begin() + (long)at);
    }
    if (int e = g.nodes[r.running].work.run()) return e;
    r.done[r.running] = true;
    r.running = -1;
  }
  return OK;
}
inline int launch_graph(Exec& exec, Stream& s) {
  auto graph = exec.graph;
  auto run = std::make_shared<GraphRun>();
  run->done.resize(graph->nodes.size());
  for (size_t i = 0; i < graph->nodes.size(); i++) run->left.push_back((int)i);
  Op op{[graph, run] { return run_graph(*graph, *run); }, nullptr, nullptr, {}};
  std::set<long long> serials;
  for (auto& n : graph->nodes)
    if (n.work.serial) serials.insert(n.work.serial);
  for (auto& n : graph->nodes)
    if (auto r = note_read(n.work.reads)) op.reads.push_back(r);
  for (auto& n : graph->nodes) scramble(n.work.writes);
  op.wait = exec.last && !exec.last->reached ? exec.last : nullptr;
  auto end = op.reached = std::make_shared<Mark>(Mark{&s});
  int e = push("cuGraphLaunch", s, std::move(op), serials);
  if (e) return e;
  exec.last = end;
  counts.graph_launches++;
  return OK;
}
// Whether everything captured comes before the end of the stream that began the capture.
inline bool joined(const Capture& c) {
  auto seen = up_to(c.graph, c.origin->frontier);
  return std::find(seen.begin(), seen.end(), false) == seen.end();
}
}  // namespace emulation
