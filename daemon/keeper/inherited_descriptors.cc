#include "daemon/keeper/inherited_descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

namespace uzswap {

InheritedDescriptors InheritedDescriptors::Find() {
  InheritedDescriptors found;
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return found;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    const int fd = atoi(entry->d_name);
    if (fd <= STDERR_FILENO || fd == dirfd(dir)) continue;
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    found.open_.insert(fd);
  }
  closedir(dir);
  return found;
}

zp::UniqueFd InheritedDescriptors::Take(int number) {
  return open_.erase(number) == 0 ? zp::UniqueFd() : zp::UniqueFd(number);
}

void InheritedDescriptors::CloseRest() {
  for (const int fd : open_) (void)close(fd);
  open_.clear();
}

}  // namespace uzswap
