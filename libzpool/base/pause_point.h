// Named places at which a test can stop a thread, to drive an exact interleaving.
//
// Idea: ZP_PAUSE_POINT("name") calls the handler that a test installed, if any. Without one it costs a
// load of a pointer that nobody writes. The names stand where a protocol has a window; tests/uffd and
// tests/libzpool use them.
//
// Threads: Set before the threads that pass the points are started, or while none of them is near one.
#pragma once

#include <atomic>

namespace zp {

using PauseHandler = void (*)(const char* name);

inline std::atomic<PauseHandler> pause_handler{nullptr};

inline void SetPauseHandler(PauseHandler handler) { pause_handler.store(handler, std::memory_order_release); }

}  // namespace zp

#define ZP_PAUSE_POINT(name)                                                                            \
  do {                                                                                                  \
    if (const auto zp_pause = ::zp::pause_handler.load(std::memory_order_acquire); zp_pause != nullptr) \
        [[unlikely]]                                                                                    \
      zp_pause(name);                                                                                   \
  } while (false)
