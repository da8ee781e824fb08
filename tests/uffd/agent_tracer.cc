#include "tests/uffd/agent_tracer.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "daemon/sys/uapi.h"

namespace uzswap::test {
namespace {

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "tests/uffd: %s: %s\n", what, strerror(errno));
  abort();
}

}  // namespace

AgentTracer::AgentTracer(int agent_tid) : tid_(agent_tid) {
  if (ptrace(PTRACE_SEIZE, tid_, 0, PTRACE_O_TRACESYSGOOD) != 0) Die("PTRACE_SEIZE of the agent's thread");
  attached_ = true;
  if (ptrace(PTRACE_INTERRUPT, tid_, 0, 0) != 0) Die("PTRACE_INTERRUPT");
  int status = 0;
  if (waitpid(tid_, &status, __WALL) != tid_) Die("waiting for the agent's thread");
}

bool AgentTracer::Step(uint64_t* number, uint64_t (&args)[6], int64_t* ret) {
  for (;;) {
    if (ptrace(PTRACE_SYSCALL, tid_, 0, 0) != 0) Die("PTRACE_SYSCALL");
    int status = 0;
    if (waitpid(tid_, &status, __WALL) != tid_ || !WIFSTOPPED(status)) Die("the agent's thread ended");
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) continue;
    __ptrace_syscall_info info{};
    if (ptrace(PTRACE_GET_SYSCALL_INFO, tid_, sizeof(info), &info) <= 0) Die("PTRACE_GET_SYSCALL_INFO");
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
      *number = info.entry.nr;
      memcpy(args, info.entry.args, sizeof(args));
      return true;
    }
    *ret = info.exit.rval;
    return false;
  }
}

bool AgentTracer::RunToMoveEntryOrReport(Move* move) {
  uint64_t number = 0;
  uint64_t args[6] = {};
  int64_t ret = 0;
  for (;;) {
    if (!Step(&number, args, &ret)) continue;
    if (number == SYS_sendto) return false;
    if (number != SYS_ioctl || args[1] != UFFDIO_MOVE) continue;
    uffdio_move request{};
    iovec here{&request, sizeof(request)};
    iovec there{reinterpret_cast<void*>(args[2]), sizeof(request)};
    if (process_vm_readv(tid_, &here, 1, &there, 1, 0) != sizeof(request)) Die("process_vm_readv");
    *move = {request.dst, request.src, request.len};
    return true;
  }
}

AgentTracer::Move AgentTracer::RunToMoveEntry() {
  Move move;
  while (!RunToMoveEntryOrReport(&move)) {
  }
  return move;
}

int64_t AgentTracer::RunToMoveExit() {
  uint64_t number = 0;
  uint64_t args[6] = {};
  int64_t ret = 0;
  if (Step(&number, args, &ret)) Die("expected the MOVE's exit");
  return ret;
}

void AgentTracer::Detach() {
  if (!attached_) return;
  attached_ = false;
  if (ptrace(PTRACE_DETACH, tid_, 0, 0) == 0) return;
  // It runs: stop it first.
  if (ptrace(PTRACE_INTERRUPT, tid_, 0, 0) != 0) return;
  int status = 0;
  (void)waitpid(tid_, &status, __WALL);
  (void)ptrace(PTRACE_DETACH, tid_, 0, 0);
}

}  // namespace uzswap::test
