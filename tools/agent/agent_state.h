// All that the agent owns, in one mapping of its own.
//
// Layout of the arena: [guard page][stack, kStackBytes][AgentState]. It is mapped apart from the library's
// .bss because that is ordinary memory of the application: the daemon may evict it, and an agent that faults
// on a page of the batch that it is moving would wait for itself (hazard H15). The arena is declared in Hello
// and never managed. The agent's thread touches nothing writable outside arena, staging and ring.
#pragma once

#include <stdint.h>

#include <atomic>

#include "daemon/wire/message.h"
#include "daemon/wire/ring.h"

namespace uzswap::agent {

inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kStackBytes = 64 * 1024;

// What the constructor waits for. The agent moves it from kAttaching; the constructor may move it to
// kAbandoned when the daemon does not answer in time, and then the agent takes itself back.
enum AttachState : uint32_t { kAttaching = 0, kAttached = 1, kFailed = 2, kAbandoned = 3 };

struct AgentState {
  std::atomic<uint32_t> attach;  // AttachState; futex word of the constructor
  char failure[256];             // one line for stderr when attach is kFailed
  char socket_path[108];         // of sockaddr_un
  uint64_t limit_bytes;
  char codec[16];
  char pool[16];

  uint64_t arena_start, arena_bytes;
  uint64_t staging;  // 2 MiB aligned, wire::kStagingBytes
  uint64_t notes;    // wire/notes.h; 0: there are none
  wire::Ring* ring;
  int socket;
  int uffd;
  int tasks;  // /proc/self/task, opened before the program can chroot away from it; -1: there is none
  int32_t own_tid;
  bool lost;               // the daemon went away in the middle of the handshake
  bool staging_populated;  // by an mlockall(2) of the program: nothing fits in until it was emptied

  // Buffers too large for comfort on a 64 KiB stack.
  alignas(8) uint8_t packet[1024];
  alignas(8) uint8_t dirents[8192];
};

// Staging is followed by one page more, registered always and never written. DONTNEED of it is an event, and
// an event is read only after all before it were applied: a barrier that any thread of the program can wait
// at.
inline constexpr uint64_t kBarrierBytes = kPage;

inline constexpr uint64_t kStateBytes = (sizeof(AgentState) + kPage - 1) & ~(kPage - 1);
inline constexpr uint64_t kArenaBytes = kPage + kStackBytes + kStateBytes;

// Connects, attaches, and leaves `state.attach` at kAttached or kFailed (with `failure` filled). Runs on the
// agent's thread, with its own file descriptor table. Returns true if attached.
bool Attach(AgentState& state);

// Serves commands until the daemon detaches or goes away. After the daemon went away the userfaultfd stays
// open for ever: closing the last reference would turn every evicted page into zeros (fact 5.12).
[[noreturn]] void ServeCommands(AgentState& state);

// Empties staging without an event (fact 18.1): unregister, drop, register again.
void EmptyStaging(AgentState& state);

}  // namespace uzswap::agent
