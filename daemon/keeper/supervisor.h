// `uzswapd --supervise`: the parent of a daemon and of its successors.
//
// Idea: a service manager watches one process. This one starts the daemon and stays until it and all that
// follow it have ended: it adopts orphans (PR_SET_CHILD_SUBREAPER), so a successor, which the keeper started,
// becomes its child. It does nothing else; whoever kills it harms nobody but the manager's view.
//
// Signals: SIGTERM, SIGINT and SIGHUP that reach it alone are sent on to its process group.
// Threads: one; the process must have no other.
#pragma once

namespace uzswap {

// Returns -1 in the daemon, which goes on with its start. In the parent: the exit status of the last daemon,
// or 128 + the signal that ended it.
int Supervise();

}  // namespace uzswap
