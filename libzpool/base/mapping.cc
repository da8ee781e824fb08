#include "libzpool/base/mapping.h"

#include <sys/mman.h>

namespace zp {

Result<Mapping> Mapping::Shared(int fd, uint64_t offset, size_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
                    static_cast<off_t>(offset));
  if (at == MAP_FAILED) return ErrnoError("mmap");
  return Mapping(static_cast<std::byte*>(at), bytes);
}

Result<Mapping> Mapping::Anonymous(size_t bytes) {
  void* at =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return ErrnoError("mmap");
  return Mapping(static_cast<std::byte*>(at), bytes);
}

void Mapping::Unmap() {
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace zp
