#include "daemon/keeper/fd_store.h"

#include <fmt/format.h>
#include <systemd/sd-daemon.h>

#include <cstdlib>

namespace uzswap {

FdStore FdStore::Find() {
  FdStore store;
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  for (int i = 0; i < count; ++i) {
    store.passed_.emplace(names[i], SD_LISTEN_FDS_START + i);
    free(names[i]);
  }
  free(static_cast<void*>(names));
  return store;
}

int FdStore::Number(const std::string& name) const {
  const auto found = passed_.find(name);
  return found == passed_.end() ? -1 : found->second;
}

void FdStore::Push(const std::string& name, int fd) {
  // FDPOLL=0: the manager shall not drop a userfaultfd because it polls as readable or as an error.
  const std::string state = fmt::format("FDSTORE=1\nFDPOLL=0\nFDNAME={}", name);
  (void)sd_pid_notify_with_fds(0, 0, state.c_str(), &fd, 1);
}

void FdStore::Remove(const std::string& name) {
  (void)sd_notify(0, fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name).c_str());
}

void FdStore::Ready(const std::string& status) {
  (void)sd_notify(0, fmt::format("READY=1\nSTATUS={}", status).c_str());
}

void FdStore::Stopping() { (void)sd_notify(0, "STOPPING=1\nSTATUS=bringing every page home"); }

}  // namespace uzswap
