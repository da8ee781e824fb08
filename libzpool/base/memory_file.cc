#include "libzpool/base/memory_file.h"

#include <sys/mman.h>

#include <cerrno>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older C libraries do not name it
#endif

namespace zp {

Result<MemoryFile> MemoryFile::Create(const char* name, FileKind kind, uint32_t layout_version,
                                      uint64_t bytes) {
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  MemoryFile file;
  file.fd_ = ZP_TRY(CreateMemfd(name, bytes));
  file.mapping_ = ZP_TRY(Mapping::Shared(file.fd(), 0, bytes));
  ZP_TRY(file.Populate(0, kPageBytes));
  file.header() = FileHeader{kFileMagic, layout_version, static_cast<uint32_t>(kind), bytes, {}};
  return file;
}

Status MemoryFile::Populate(uint64_t offset, uint64_t bytes) {
  ZP_DCHECK(offset % kPageBytes == 0 && offset + bytes <= size(), "populate outside of the file");
  while (::madvise(data() + offset, bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    Error error = ErrnoError("madvise(MADV_POPULATE_WRITE)");
    // A memfd that cannot get a page would be SIGBUS on touch; populate says EFAULT for it.
    if (error.sys_errno == EFAULT) error.code = Errc::kNoMemory;
    return error;
  }
  return OkStatus();
}

void MemoryFile::Punch(uint64_t offset, uint64_t bytes) {
  ZP_DCHECK(offset % kPageBytes == 0 && offset + bytes <= size(), "punch outside of the file");
  while (::madvise(data() + offset, bytes, MADV_REMOVE) != 0) {
    // Anything else would leave memory behind that is counted as free.
    ZP_CHECK(errno == EINTR || errno == EAGAIN, "cannot punch a memfd");
  }
}

}  // namespace zp
