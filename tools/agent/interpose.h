// What the functions that stand before libc's know of the agent.
//
// It is ordinary memory of the program (its .bss), written by the constructor before any other thread can
// call them, and inherited by a forked child: there `pid` is another process's.
#pragma once

#include <stdint.h>

#include "daemon/wire/notes.h"

namespace uzswap::agent {

struct Attachment {
  uint64_t barrier_page;  // see agent_state.h; 0: not attached
  long pid;               // the process that has the barrier page and an agent
  wire::KeptMutexes* kept;
};
extern Attachment attachment;  // NOLINT(bugprone-dynamic-static-initializers): constinit where it is defined

}  // namespace uzswap::agent
