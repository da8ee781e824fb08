#include "libzpool/base/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22  // Linux 5.14; older C libraries do not name them
#define MADV_POPULATE_WRITE 23
#endif

namespace zp {
namespace {

// What one write takes: small enough for the zeros to stay in the CPU's cache.
constexpr uint64_t kFreshStepBytes = 16 * kPageBytes;

}  // namespace

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

Result<MemoryFile> MemoryFile::Adopt(UniqueFd fd, FileKind kind, uint32_t layout_version) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return ErrnoError("fstat of a file to recover");
  const uint64_t bytes = static_cast<uint64_t>(st.st_size);
  const Error invalid{Errc::kInvalid, 0, "a file to recover"};
  if (!S_ISREG(st.st_mode) || st.st_size <= 0 || bytes % kPageBytes != 0) return invalid;
  // Read, not mapped: the header may be a hole.
  FileHeader header;
  if (::pread(fd.get(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) return invalid;
  if (header.magic != kFileMagic || header.kind != static_cast<uint32_t>(kind)) return invalid;
  if (header.layout_version != layout_version)
    return Error{Errc::kUnsupported, 0, "the layout version of a file to recover"};
  if (header.file_bytes != bytes) return invalid;
  MemoryFile file;
  file.fd_ = std::move(fd);
  file.mapping_ = ZP_TRY(Mapping::Shared(file.fd(), 0, bytes));
  return file;
}

Result<MemoryFile::Extent> MemoryFile::NextExtent(uint64_t from) const {
  const Extent none{from, from};
  if (from >= size()) return none;
  const off_t data = ::lseek(fd(), static_cast<off_t>(from), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return none;
  if (data < 0) return ErrnoError("lseek(SEEK_DATA)");
  const off_t hole = ::lseek(fd(), data, SEEK_HOLE);
  if (hole < 0) return ErrnoError("lseek(SEEK_HOLE)");
  const uint64_t begin = static_cast<uint64_t>(data) / kPageBytes * kPageBytes;
  const uint64_t end =
      std::min((static_cast<uint64_t>(hole) + kPageBytes - 1) / kPageBytes * kPageBytes, size());
  return begin < end ? Extent{begin, end} : none;
}

Result<uint64_t> MemoryFile::KeepWholeSteps(std::initializer_list<GrownArray> arrays, uint64_t count,
                                            uint64_t step) {
  uint64_t kept = count;
  for (const GrownArray& array : arrays) {
    const Extent extent = ZP_TRY(NextExtent(array.begin));
    const uint64_t present = extent.begin == array.begin ? extent.end - extent.begin : 0;
    kept = std::min(kept, present / array.element_bytes / step * step);
  }
  if (kept == count) return kept;
  for (const GrownArray& array : arrays)
    Punch(array.begin + kept * array.element_bytes, (count - kept) * array.element_bytes);
  return kept;
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

// By writing zeros, which needs no fault for each page, and by reading, which maps many pages at a fault.
// (The pages of a shared memfd are mapped writable then, too.)
Status MemoryFile::PopulateFresh(uint64_t offset, uint64_t bytes) {
  static constexpr std::byte kZeros[kFreshStepBytes]{};
  ZP_DCHECK(offset % kPageBytes == 0 && offset + bytes <= size(), "populate outside of the file");
  for (uint64_t at = offset; at < offset + bytes;) {
    const ssize_t written =
        ::pwrite(fd(), kZeros, std::min(kFreshStepBytes, offset + bytes - at), static_cast<off_t>(at));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      Error error = ErrnoError("pwrite to a memfd");
      if (error.sys_errno == ENOSPC || error.sys_errno == EFAULT) error.code = Errc::kNoMemory;
      return error;
    }
    at += static_cast<uint64_t>(written);
  }
  // Only a saving of faults: that the pages are there is what counts.
  (void)::madvise(data() + offset, bytes, MADV_POPULATE_READ);
  return OkStatus();
}

void MemoryFile::Punch(uint64_t offset, uint64_t bytes) {
  ZP_DCHECK(offset % kPageBytes == 0 && offset + bytes <= size(), "punch outside of the file");
  // madvise(MADV_REMOVE) would do the same, and take the lock of the address space for it.
  while (::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                     static_cast<off_t>(bytes)) != 0) {
    // Anything else would leave memory behind that is counted as free.
    ZP_CHECK(errno == EINTR || errno == EAGAIN, "cannot punch a memfd");
  }
}

}  // namespace zp
