// The service manager's descriptor store: the second line, where keeper and daemon are killed at once.
//
// Idea: a service of systemd may leave descriptors with the manager (FDSTORE=1), by name, and its next start
// gets them (LISTEN_FDS). The client table's numbers mean nothing there, so a successor that comes this way
// writes the new ones into it (Estate).
//
// Without a manager (NOTIFY_SOCKET is not set) everything here does nothing.
// Threads: Push and Remove from any.
// Source: sd_notify(3), sd_listen_fds(3), systemd.service(5), FileDescriptorStoreMax=.
#pragma once

#include <map>
#include <string>

namespace uzswap {

class FdStore {
 public:
  // Takes the descriptors that the manager passed on, and their names out of the environment.
  static FdStore Find();

  // Whether what was passed on holds a daemon's state.
  bool HasState() const { return passed_.contains("clients"); }
  // The number of a passed descriptor; -1: none of that name.
  int Number(const std::string& name) const;

  // Leaves a duplicate of `fd` with the manager. `name`: ASCII, no colon.
  static void Push(const std::string& name, int fd);
  static void Remove(const std::string& name);
  // Says READY=1 and what `status` says.
  static void Ready(const std::string& status);
  static void Stopping();

 private:
  std::map<std::string, int> passed_;
};

}  // namespace uzswap
