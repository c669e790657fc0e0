// What every function of the emulated driver begins with.
#pragma once
#include "stream.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT int

namespace emulation {
typedef std::lock_guard<std::recursive_mutex> Lock;
inline int not_ready_for_calls(const char* call, bool needs_context) {
  if (!state.initialized) return NOT_INITIALIZED;
  if (state.lost) return state.lost;
  if (needs_context && this_thread().contexts.empty()) {
    report("%s: the calling thread has no current context", call);
    return INVALID_CONTEXT;
  }
  return OK;
}
}  // namespace emulation

#define BEGIN_WITH(context)  \
  emulation::Lock lock(emulation::mutex); \
  if (int begin_ = emulation::not_ready_for_calls(__func__, context)) return begin_;
// of calls that work on the current context, and of those that do not need one
#define BEGIN BEGIN_WITH(true)
#define BEGIN_ANYWHERE BEGIN_WITH(false)
// of calls that a capture forbids
#define UNSAFE \
  if (int unsafe_ = emulation::unsafe_call(__func__)) return unsafe_;
