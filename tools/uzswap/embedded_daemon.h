// A uzswapd of this run's own, where no system daemon listens.
//
// Layout: its socket lies in a directory of mode 0700 below $TMPDIR (or /tmp), with its log beside it.
//
//   uzswap ── keeper ── uzswapd --embedded
//
// The keeper is a fork of uzswap that waits for the daemon's end and then removes the directory. So the
// directory lives exactly as long as the daemon: also when uzswap is killed, and also when CMD has left a
// process in the background that goes on using the daemon after uzswap's end. The daemon ends when the pipe
// on its stdin is closed (uzswap ended, however) and no client remains. Both are in a session of their own,
// out of reach of the terminal's signals, and hold none of the caller's files.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "libzpool/base/fd.h"
#include "tools/uzswap/or_message.h"

namespace uzswap::cli {

struct EmbeddedOptions {
  std::string program;  // uzswapd
  std::string codec;    // "": the daemon's default; so with the next
  std::string pool;
  uint64_t pool_limit_bytes = 0;
};

class EmbeddedDaemon {
 public:
  // Starts it and waits until it accepts clients. `restore_signals` is called in the forked child;
  // `interrupted` is asked while waiting, and true gives up. The message holds the daemon's own complaint.
  // Nothing is left behind on failure.
  static OrMessage<EmbeddedDaemon> Start(const EmbeddedOptions& options,
                                         const std::function<void()>& restore_signals,
                                         const std::function<bool()>& interrupted);

  EmbeddedDaemon(EmbeddedDaemon&&) = default;
  EmbeddedDaemon& operator=(EmbeddedDaemon&&) = default;

  const std::string& socket_path() const { return socket_path_; }
  // Of the keeper: our child, to be told apart from the program when it is reaped.
  pid_t keeper_pid() const { return keeper_; }
  // The last lines that the daemon wrote, at most a few; "" if it had nothing to say. Also after its end.
  std::string LogTail() const;

  // Lets the daemon go: it ends at once if it has no client. Waits for that and for the directory's removal,
  // but not for processes that live on and use it. True: gone. Call at most once.
  bool Release();

 private:
  // Who still uses the daemon, by its own word. A forked child may be a client whose pid it does not know.
  enum class Users { kNone, kUnknown, kLiving };

  EmbeddedDaemon() = default;
  Users FindUsers() const;

  std::string directory_;
  std::string socket_path_;
  zp::UniqueFd log_;
  zp::UniqueFd lifeline_;  // the daemon's stdin ends when the last copy of this is closed
  pid_t keeper_ = -1;
};

}  // namespace uzswap::cli
