// What outlives the daemon: a process that shares its descriptor table and starts a successor.
//
// Idea: the pages of programs lie in memfds, and what answers for them are userfaultfds; both live as long as
// somebody has them open. The keeper is cloned with CLONE_FILES, so it has every descriptor that the daemon
// has, from the moment that the kernel makes it: also that of a forked child's context, which exists nowhere
// else (hazards H13, H22). It does nothing but wait for the daemon's end. Then it runs the daemon's program
// again, which inherits a copy of the table and finds everything by the numbers in the client table. The
// keeper stays until the successor has a keeper of its own, so a successor that is killed is followed by
// another.
//
//   daemon ──clone(CLONE_FILES)──▶ keeper          share one descriptor table
//   daemon dies
//                                  keeper ──fork, exec──▶ successor ──clone(CLONE_FILES)──▶ its keeper
//                                  keeper sees `TableHeader::keeper_pid` change, and ends
//
// The keeper runs no code of the C library but plain system calls: it is cloned from a process with threads,
// any of which may hold any lock. It keeps the memory that the daemon had when it was cloned, copied on
// write. If the keeper dies the daemon starts another one. What no keeper survives is a SIGKILL to both at
// once; systemd's descriptor store is for that.
//
// Cost: a sleeping process; the daemon's descriptor look-ups count references, as those of every threaded
// program.
// Threads: one at a time.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "daemon/state/client_table.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/result.h"

namespace uzswap {

// What a keeper's exit says to whoever reaps it: nothing about the daemon.
inline constexpr int kKeeperExit = 111;

class Keeper {
 public:
  // `arguments`: those of the program, the first included; the successor gets `--successor N` (the table's
  // descriptor) in addition. `table` must outlive this.
  Keeper(ClientTable& table, std::vector<std::string> arguments);
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  // Starts the keeper, or another one in place of one that ended. From then on the daemon's death has a
  // successor, as long as TableHeader::armed is 1.
  zp::Status Start();
  // Executes that file instead of the running program.
  void UseProgramForTesting(const char* path) { program_.reset(open(path, O_PATH | O_CLOEXEC)); }
  // Readable when the keeper has ended: Start it again.
  int fd() const { return ended_.get(); }

 private:
  ClientTable& table_;
  const std::vector<std::string> arguments_;
  zp::UniqueFd program_;  // the running program, even if its file is replaced
  zp::UniqueFd watch_;    // pidfd of the daemon, for the keeper
  zp::UniqueFd ended_;    // pidfd of the keeper
  pid_t pid_ = 0;
};

}  // namespace uzswap
