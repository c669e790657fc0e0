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

// One item of work, queued or as a node of a graph. `reads` and `writes` are page-locked host memory.
struct Work {
  std::function<int()> run;
  HostRange reads, writes;
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
  int devices = 1, capability_major = 9, capability_minor = 0;
  long long fail_after = -1, fail_code = ILLEGAL_ADDRESS, memset_is_async = 0;
  int lost = 0;
  int primary = 0;  // references to the primary context
  unsigned primary_flags = 0;
  Stream legacy;
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
inline void run_until(const MarkPtr& mark);
inline void run_front(Stream& s) {
  if (MarkPtr wait = s.queue.front().wait) run_until(wait);
  if (s.queue.empty()) return;  // the device was lost meanwhile
  Op op = std::move(s.queue.front());
  s.queue.pop_front();
  s.polls = 0;
  int code = op.run ? op.run() : OK;
  if (op.reached) op.reached->reached = true, op.reached->ms = now_ms();
  if (code) lose(code);
}
// With a seed, streams nobody waits for may get on as well.
inline void run_others() {
  if (!cpu::seed() || cpu::coin(4)) return;
  std::vector<Stream*> busy;
  each_stream([&](Stream& s) { if (!s.queue.empty()) busy.push_back(&s); });
  if (!busy.empty()) run_front(*busy[cpu::coin(busy.size())]);
}
inline void run_until(const MarkPtr& mark) {
  while (!mark->reached && !state.lost && !mark->stream->queue.empty()) run_front(*mark->stream);
}
inline int finish(const char* call) {
  if (!state.lost && !guards_intact(call)) lose(ILLEGAL_ADDRESS);
  return state.lost;
}
inline int synchronise(Stream& s, const char* call) {
  counts.synchronizations++;
  while (!state.lost && !s.queue.empty()) run_others(), s.queue.empty() ? void() : run_front(s);
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
// Somebody asks again and again whether it is done: a real device would get on meanwhile.
inline void poll(int& polls, Stream& s) {
  if (++polls > 8 && !s.queue.empty()) {
    int keep = polls;
    run_front(s);
    polls = keep;
  }
}

// ---- queueing
inline MarkPtr mark_end(Stream& s) {
  auto m = std::make_shared<Mark>(Mark{&s});
  s.queue.push_back(Op{nullptr, nullptr, m, {}});
  return m;
}
inline void push(Stream& s, Op op) {
  auto after = [&](Stream& other) {
    if (!other.queue.empty()) s.queue.push_back(Op{nullptr, mark_end(other), nullptr, {}});
  };
  if (&s == &state.legacy) {
    for (void* o : state.streams)
      if (((Stream*)o)->blocking) after(*(Stream*)o);
  } else if (s.blocking) {
    after(state.legacy);
  }
  s.queue.push_back(std::move(op));
  while (s.queue.size() > 1024 && !state.lost) run_front(s);  // a full queue makes the host wait on real devices too
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
// Queues work on a stream, or adds it to the capture the stream is in.
inline int submit(void* handle, const char* call, Work work) {
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  if (s == &state.legacy)
    if (int e = legacy_call(call)) return e;
  if (!s->capture) {
    push(*s, queued(work));
    return state.lost;
  }
  if (s->capture->invalid) return CAPTURE_INVALIDATED;
  auto& nodes = s->capture->graph.nodes;
  nodes.push_back(Node{std::move(work), s->frontier});
  s->frontier = {(int)nodes.size() - 1};
  return OK;
}
// In the order of the capture; with a seed in any order that the graph allows.
inline int run_graph(const Graph& g) {
  if (!cpu::seed()) {
    for (auto& n : g.nodes)
      if (int e = n.work.run()) return e;
    return OK;
  }
  std::vector<int> left(g.nodes.size());
  std::vector<bool> done(g.nodes.size(), false);
  for (size_t i = 0; i < left.size(); i++) left[i] = (int)i;
  while (!left.empty()) {
    std::vector<size_t> can;  // never empty: the first of those left comes after none of the others
    for (size_t i = 0; i < left.size() && i < 64; i++) {
      auto& after = g.nodes[left[i]].after;
      if (std::all_of(after.begin(), after.end(), [&](int a) { return done[a]; })) can.push_back(i);
    }
    size_t at = can[cpu::coin((unsigned)can.size())];
    int n = left[at];
    left.erase(left.begin() + (long)at);
    done[n] = true;
    if (int e = g.nodes[n].work.run()) return e;
  }
  return OK;
}
inline int launch_graph(Exec& exec, Stream& s) {
  auto graph = exec.graph;
  Op op{[graph] { return run_graph(*graph); }, nullptr, nullptr, {}};
  for (auto& n : graph->nodes)
    if (auto r = note_read(n.work.reads)) op.reads.push_back(r);
  for (auto& n : graph->nodes) scramble(n.work.writes);
  op.wait = exec.last && !exec.last->reached ? exec.last : nullptr;
  op.reached = exec.last = std::make_shared<Mark>(Mark{&s});
  counts.graph_launches++;
  push(s, std::move(op));
  return state.lost;
}
// Whether everything captured comes before the end of the stream that began the capture.
inline bool joined(const Capture& c) {
  std::vector<bool> seen(c.graph.nodes.size(), false);
  std::vector<int> todo = c.origin->frontier;
  while (!todo.empty()) {
    int n = todo.back();
    todo.pop_back();
    if (seen[n]) continue;
    seen[n] = true;
    for (int a : c.graph.nodes[n].after) todo.push_back(a);
  }
  return std::find(seen.begin(), seen.end(), false) == seen.end();
}
}  // namespace emulation
