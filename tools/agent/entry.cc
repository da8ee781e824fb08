// How the library begins: its constructor starts the agent's thread. Its other entrances are in interpose.cc.
#include <errno.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "daemon/sys/uapi.h"
#include "tools/agent/agent_state.h"
#include "tools/agent/interpose.h"
#include "tools/agent/syscalls.h"

namespace uzswap::agent {
namespace {

constexpr long kConstructorWaitSeconds = 6;  // a little longer than the handshake's own time-outs

void CopyText(char* to, const char* from, size_t capacity) {
  strncpy(to, from, capacity - 1);
  to[capacity - 1] = 0;
}

void Complain(const char* socket_path, const char* why) {
  if (getenv("UZSWAP_QUIET") != nullptr) return;
  char line[512];
  size_t used = 0;
  const char* parts[] = {"uzswap: not attached to ", socket_path, ": ", why, "; the program runs natively\n"};
  for (const char* part : parts) {
    for (; *part != 0 && used < sizeof(line); ++part) line[used++] = *part;
  }
  Sys(SYS_write, 2, line, used);
}

// A program that drops its privileges does so for the threads that libc knows. This one keeps none of its
// own: it needs no capability, and may gain none. A seccomp filter would be stricter still, but one that the
// rest of the process does not have makes a later SECCOMP_FILTER_FLAG_TSYNC of the program fail.
void GiveUpPrivileges() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  Sys(SYS_capset, &header, none);
  Sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  Sys(SYS_chdir, "/");
}

[[noreturn]] void ThreadMain(void* argument) {
  auto& state = *static_cast<AgentState*>(argument);
  // A private, empty descriptor table (fact 19): the application can neither close nor inherit what is in it,
  // and its own numbers stay as they would be natively.
  if (!IsError(Sys(SYS_close_range, 0, ~0u, CLOSE_RANGE_UNSHARE))) {
    Sys(SYS_prctl, PR_SET_NAME, wire::kAgentThreadName);
    state.own_tid = static_cast<int32_t>(Sys(SYS_gettid));
    if (Attach(state)) {
      GiveUpPrivileges();
      ServeCommands(state);
    }
  } else {
    CopyText(state.failure, "the kernel lacks close_range (Linux 5.9)", sizeof(state.failure));
    uint32_t expected = kAttaching;
    state.attach.compare_exchange_strong(expected, kFailed);
    Sys(SYS_futex, &state.attach, FUTEX_WAKE_PRIVATE, 1);
  }
  for (;;) Sys(SYS_exit, 0);
}

AgentState* MapArena() {
  const long base = Sys(SYS_mmap, 0, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (IsError(base)) return nullptr;
  Sys(SYS_mprotect, base, kPage, PROT_NONE);
  Sys(SYS_madvise, base, kArenaBytes, MADV_DONTFORK);
  Sys(SYS_mlock, base + static_cast<long>(kPage),
      kArenaBytes - kPage);  // best effort: RLIMIT_MEMLOCK may be 0
  auto* state = reinterpret_cast<AgentState*>(base + static_cast<long>(kPage + kStackBytes));
  state->arena_start = static_cast<uint64_t>(base);
  state->arena_bytes = kArenaBytes;
  return state;
}

// Signals stay blocked in the agent's thread for ever: it inherits the mask that is set around its creation.
long Spawn(AgentState& state) {
  uint64_t all = ~uint64_t{0};
  uint64_t before = 0;
  Sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all));
  // No CLONE_FS: sharing the working directory would forbid the program setns(2) into a mount namespace.
  const unsigned long flags = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  void* stack_top = reinterpret_cast<void*>(state.arena_start + kPage + kStackBytes);
  const long tid = SpawnThread(flags, stack_top, ThreadMain, &state);
  Sys(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0L, sizeof(before));
  return tid;
}

void WaitForAttach(AgentState& state) {
  struct {
    long seconds, nanoseconds;
  } timeout = {kConstructorWaitSeconds, 0};
  while (state.attach.load() == kAttaching) {
    const long ret = Sys(SYS_futex, &state.attach, FUTEX_WAIT_PRIVATE, kAttaching, &timeout);
    if (ret == -ETIMEDOUT) {
      uint32_t expected = kAttaching;
      if (state.attach.compare_exchange_strong(expected, kAbandoned)) return;
    }
  }
}

// Without notes nothing is kept, which is no reason not to attach.
uint64_t MapNotes() {
  const long notes =
      Sys(SYS_mmap, 0, wire::kNotesBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (IsError(notes)) return 0;
  Sys(SYS_madvise, notes, wire::kNotesBytes, MADV_DONTDUMP);
  return static_cast<uint64_t>(notes);
}

__attribute__((constructor)) void Start() {
  const int saved_errno = errno;
  const char* path = getenv("UZSWAP_SOCKET");
  if (path == nullptr || *path == 0) path = wire::kDefaultSocketPath;
  AgentState* state = MapArena();
  if (state == nullptr) {
    Complain(path, "cannot map the agent's memory");
    errno = saved_errno;
    return;
  }
  state->notes = MapNotes();
  CopyText(state->socket_path, path, sizeof(state->socket_path));
  if (const char* limit = getenv("UZSWAP_LIMIT")) state->limit_bytes = strtoull(limit, nullptr, 10);
  if (const char* codec = getenv("UZSWAP_CODEC")) CopyText(state->codec, codec, sizeof(state->codec));
  if (const char* pool = getenv("UZSWAP_POOL")) CopyText(state->pool, pool, sizeof(state->pool));

  if (strlen(path) >= sizeof(state->socket_path)) {
    Complain(path, "the socket's path is longer than 107 characters");
  } else if (IsError(Spawn(*state))) {
    Complain(path, "cannot create the agent's thread (RLIMIT_NPROC, or a seccomp filter?)");
  } else {
    WaitForAttach(*state);
    const uint32_t attach = state->attach.load();
    if (attach == kAttached) {
      attachment.pid = Sys(SYS_getpid);
      attachment.barrier_page = state->staging + wire::kStagingBytes;
      attachment.kept = reinterpret_cast<wire::KeptMutexes*>(state->notes);
    }
    if (attach == kFailed && state->notes != 0) Sys(SYS_munmap, state->notes, wire::kNotesBytes);
    if (attach == kFailed) Complain(path, state->failure);
    if (attach == kAbandoned) Complain(path, "the daemon does not answer");
  }
  errno = saved_errno;
}

}  // namespace
}  // namespace uzswap::agent
