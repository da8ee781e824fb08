// Named places at which a test can stop a thread, to drive an exact interleaving.
//
// Idea: UZSWAP_PAUSE_POINT("name") calls the handler that a test installed, if any. Without one it costs a
// load of a pointer that nobody writes. The names stand where the protocol has a window; tests/uffd uses
// them.
//
// Threads: Set before the threads that pass the points are started, or while none of them is near one.
#pragma once

#include <atomic>

namespace uzswap {

using PauseHandler = void (*)(const char* name);

inline std::atomic<PauseHandler> pause_handler{nullptr};

inline void SetPauseHandler(PauseHandler handler) { pause_handler.store(handler, std::memory_order_release); }

}  // namespace uzswap

#define UZSWAP_PAUSE_POINT(name)                                                           \
  do {                                                                                     \
    if (const auto uzswap_pause = ::uzswap::pause_handler.load(std::memory_order_acquire); \
        uzswap_pause != nullptr) [[unlikely]]                                              \
      uzswap_pause(name);                                                                  \
  } while (false)
