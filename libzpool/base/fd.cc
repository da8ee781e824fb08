#include "libzpool/base/fd.h"

#include <sys/mman.h>
#include <unistd.h>

namespace zp {

void UniqueFd::reset(int fd) {
  const int old = std::exchange(fd_, fd);
  if (old >= 0) ::close(old);
}

Result<UniqueFd> CreateMemfd(const char* name, uint64_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoError("memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return ErrnoError("ftruncate");
  return fd;
}

}  // namespace zp
