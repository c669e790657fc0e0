// The driver's functions on streams, events, captures and graphs.
#pragma once
#include "api.h"

// ---- streams
API cuStreamCreateWithPriority(void** s, unsigned flags, int priority) {
  using namespace emulation;
  BEGIN
  if (!s || flags > 1) return INVALID_VALUE;
  auto* made = new Stream;
  made->blocking = !(flags & 1);
  made->priority = priority;
  state.streams.insert(*s = made);
  return OK;
}
API cuStreamCreate(void** s, unsigned flags) { return cuStreamCreateWithPriority(s, flags, 0); }
API cuStreamDestroy_v2(void* handle) {
  using namespace emulation;
  BEGIN
  if (!known(state.streams, handle)) return INVALID_HANDLE;
  Stream& s = *(Stream*)handle;
  if (s.capture) return refuse(__func__, *s.capture, CAPTURE_UNSUPPORTED, "the stream is capturing");
  int e = synchronise(s, __func__);
  state.streams.erase(handle);  // the object stays: marks in it may still be asked for
  return e;
}
API cuStreamGetPriority(void* handle, int* p) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  return s ? *p = s->priority, OK : INVALID_HANDLE;
}
API cuStreamGetFlags(void* handle, unsigned* f) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  return s ? *f = !s->blocking, OK : INVALID_HANDLE;
}
API cuStreamSynchronize(void* handle) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_UNSUPPORTED, "the stream is capturing");
  UNSAFE
  return synchronise(*s, __func__);
}
API cuStreamQuery(void* handle) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_UNSUPPORTED, "the stream is capturing");
  UNSAFE
  poll(s->polls, *s, nullptr);
  return state.lost ? state.lost : s->queue.empty() ? OK : NOT_READY;
}

// ---- events
API cuEventCreate(void** e, unsigned flags) {
  using namespace emulation;
  BEGIN
  auto* made = new Event;
  made->flags = flags;
  state.events.insert(*e = made);
  return OK;
}
API cuEventDestroy_v2(void* e) {
  using namespace emulation;
  BEGIN
  if (!state.events.erase(e)) return INVALID_HANDLE;
  delete (Event*)e;
  return OK;
}
API cuEventRecord(void* handle, void* stream) {
  using namespace emulation;
  BEGIN
  Stream* s = find(stream);
  if (!s || !known(state.events, handle)) return INVALID_HANDLE;
  Event& e = *(Event*)handle;
  if (s == &state.legacy)
    if (int code = legacy_call(__func__)) return code;
  if (s->capture && s->capture->invalid) return CAPTURE_INVALIDATED;
  e.polls = 0;
  e.capture = s->capture;
  e.frontier = s->frontier;
  if (s->capture) return e.mark = nullptr, OK;
  e.mark = std::make_shared<Mark>(Mark{s});
  return push(__func__, *s, Op{nullptr, nullptr, e.mark, {}});
}
API cuStreamWaitEvent(void* stream, void* handle, unsigned) {
  using namespace emulation;
  BEGIN
  Stream* s = find(stream);
  if (!s || !known(state.events, handle)) return INVALID_HANDLE;
  Event& e = *(Event*)handle;
  if (s == &state.legacy)
    if (int code = legacy_call(__func__)) return code;
  if (s->capture && s->capture->invalid) return CAPTURE_INVALIDATED;
  if (e.capture) {
    bool open = find_capture([&](Capture& c) { return &c == e.capture.get(); });
    if (!open) return CAPTURED_EVENT;
    if (e.capture->invalid) return CAPTURE_INVALIDATED;
    if (s->capture && s->capture != e.capture) return refuse(__func__, *s->capture, CAPTURE_MERGE, "the event belongs to another capture");
    if (!s->capture) s->capture = e.capture, s->frontier.clear();  // the stream joins the capture
    for (int n : e.frontier)
      if (std::find(s->frontier.begin(), s->frontier.end(), n) == s->frontier.end()) s->frontier.push_back(n);
    return OK;
  }
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_ISOLATION, "the event was recorded outside the capture");
  return e.mark && !e.mark->reached ? push(__func__, *s, Op{nullptr, e.mark, nullptr, {}}) : state.lost;
}
API cuEventSynchronize(void* handle) {
  using namespace emulation;
  BEGIN
  if (!known(state.events, handle)) return INVALID_HANDLE;
  Event& e = *(Event*)handle;
  if (e.capture) return e.capture->invalid = true, counts.refused_in_capture++, CAPTURED_EVENT;
  UNSAFE
  counts.synchronizations++;
  run_others();
  for (int times = 0; e.mark && !run_until(e.mark);) stalled(times);
  return finish(__func__);
}
API cuEventQuery(void* handle) {
  using namespace emulation;
  BEGIN
  if (!known(state.events, handle)) return INVALID_HANDLE;
  Event& e = *(Event*)handle;
  if (e.capture) return e.capture->invalid = true, counts.refused_in_capture++, CAPTURED_EVENT;
  UNSAFE
  if (e.mark && !e.mark->reached) poll(e.polls, *e.mark->stream, e.mark);
  return state.lost ? state.lost : !e.mark || e.mark->reached ? OK : NOT_READY;
}
API cuEventElapsedTime(float* ms, void* a, void* b) {
  using namespace emulation;
  BEGIN
  if (!known(state.events, a) || !known(state.events, b)) return INVALID_HANDLE;
  Event &x = *(Event*)a, &y = *(Event*)b;
  if (!x.mark || !y.mark || (x.flags | y.flags) & 2) return INVALID_HANDLE;  // 2: without timing
  if (!x.mark->reached || !y.mark->reached) return NOT_READY;
  *ms = (float)(y.mark->ms - x.mark->ms);
  return OK;
}

// ---- captures
API cuStreamBeginCapture_v2(void* handle, int mode) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  if (mode < 0 || mode > 2) return INVALID_VALUE;
  if (s == &state.legacy) return CAPTURE_UNSUPPORTED;
  if (s->capture) return INVALID_VALUE;
  bool invalid = state.fail_capture >= 0 && state.fail_capture-- == 0;
  if (invalid) report("%s: the capture is invalid, as asked", __func__);
  s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), s, {}, invalid});
  s->frontier.clear();
  return OK;
}
API cuStreamEndCapture(void* handle, void** graph) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  auto c = s->capture;
  *graph = nullptr;
  if (!c) return INVALID_VALUE;
  if (c->origin != s) return c->invalid = true, CAPTURE_UNMATCHED;
  if (c->mode != 2 && c->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
  bool all = joined(*c);
  each_stream([&](Stream& o) { if (o.capture == c) o.capture = nullptr, o.frontier.clear(); });
  if (c->invalid) return CAPTURE_INVALIDATED;
  if (!all) return report("%s: work of another stream was not joined", __func__), CAPTURE_UNJOINED;
  state.graphs.insert(*graph = new Graph(std::move(c->graph)));
  return OK;
}
API cuStreamIsCapturing(void* handle, int* status) {
  using namespace emulation;
  BEGIN
  Stream* s = find(handle);
  if (!s) return INVALID_HANDLE;
  *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
  return OK;
}
API cuStreamGetCaptureInfo_v2(void* handle, int* status, unsigned long long* id, void** graph, const void** dependencies, size_t* count) {
  using namespace emulation;
  if (int e = cuStreamIsCapturing(handle, status)) return e;
  Lock lock(mutex);
  if (id) *id = (unsigned long long)find(handle)->capture.get();
  if (graph) *graph = nullptr;
  if (dependencies) *dependencies = nullptr;
  if (count) *count = 0;
  return OK;
}
API cuThreadExchangeStreamCaptureMode(int* mode) {
  using namespace emulation;
  BEGIN_ANYWHERE
  if (*mode < 0 || *mode > 2) return INVALID_VALUE;
  std::swap(*mode, this_thread().capture_mode);
  return OK;
}

// ---- graphs
API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
  using namespace emulation;
  BEGIN
  if (!known(state.graphs, graph)) return INVALID_HANDLE;
  auto& all = ((Graph*)graph)->nodes;
  if (nodes)
    for (size_t i = 0; i < *count; i++) nodes[i] = i < all.size() ? &all[i] : nullptr;
  *count = all.size();
  return OK;
}
API cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
  using namespace emulation;
  BEGIN
  if (!known(state.graphs, graph)) return INVALID_HANDLE;
  state.execs.insert(*exec = new Exec{std::make_shared<Graph>(*(Graph*)graph), nullptr});
  return OK;
}
API cuGraphUpload(void* exec, void* stream) {
  using namespace emulation;
  BEGIN return known(state.execs, exec) && find(stream) ? OK : INVALID_HANDLE;
}
API cuGraphLaunch(void* exec, void* stream) {
  using namespace emulation;
  BEGIN
  Stream* s = find(stream);
  if (!s || !known(state.execs, exec)) return INVALID_HANDLE;
  if (s == &state.legacy)
    if (int e = legacy_call(__func__)) return e;
  if (s->capture) return refuse(__func__, *s->capture, CAPTURE_UNSUPPORTED, "graphs within graphs are not emulated");
  return launch_graph(*(Exec*)exec, *s);
}
API cuGraphDestroy(void* graph) {
  using namespace emulation;
  BEGIN
  if (!state.graphs.erase(graph)) return INVALID_HANDLE;
  delete (Graph*)graph;
  return OK;
}
API cuGraphExecDestroy(void* exec) {
  using namespace emulation;
  BEGIN
  if (!state.execs.erase(exec)) return INVALID_HANDLE;
  delete (Exec*)exec;
  return OK;
}
