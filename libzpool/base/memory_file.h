// A sparse memfd, mapped whole, with a versioned header: the form of everything that is to survive its
// process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"

namespace zp {

// The first bytes of every persisted file. Its layout is fixed for ever; what follows it changes with
// `layout_version`.
struct FileHeader {
  uint64_t magic;           // kFileMagic
  uint32_t layout_version;  // of this kind of file
  uint32_t kind;            // FileKind
  uint64_t file_bytes;      // size of the file, holes included
  uint64_t params[5];       // meaning by kind, see its owner
};
static_assert(std::is_trivially_copyable_v<FileHeader> && sizeof(FileHeader) == 64);
static_assert(offsetof(FileHeader, layout_version) == 8 && offsetof(FileHeader, kind) == 12);
static_assert(offsetof(FileHeader, file_bytes) == 16 && offsetof(FileHeader, params) == 24);

inline constexpr uint64_t kFileMagic = 0x6c6f6f707a757a31;  // "1zuzpool" as bytes

enum class FileKind : uint32_t { kFrames = 1, kHandles = 2, kIndexNodes = 3 };

// Layout: [ header | hole ... ]. The header has the first page for itself; the owner lays out the rest.
// Failure: touching a page of a memfd for the first time may meet a machine without memory, which is
//   SIGBUS. So pages are populated with Populate(), which returns an error instead, before they are
//   touched. Threads: Populate and Punch of different ranges may run at the same time.
class MemoryFile {
 public:
  MemoryFile() = default;
  // `bytes` is rounded up to pages. Errors: kNoMemory and whatever memfd_create and mmap say; nothing is left
  // behind.
  static Result<MemoryFile> Create(const char* name, FileKind kind, uint32_t layout_version, uint64_t bytes);

  // Takes over a file that another process made. kUnsupported: it is one of this kind in another layout
  // version; kInvalid: it is none, or not as long as it says. The descriptor is closed then. Of what follows
  // the header nothing is known: any page may be a hole, and touching one that is takes memory.
  static Result<MemoryFile> Adopt(UniqueFd fd, FileKind kind, uint32_t layout_version);

  int fd() const { return fd_.get(); }
  std::byte* data() const { return mapping_.data(); }
  uint64_t size() const { return mapping_.size(); }
  FileHeader& header() const { return *reinterpret_cast<FileHeader*>(mapping_.data()); }

  // A run of pages that have memory, in bytes of the file; whole pages. Empty where begin is end.
  struct Extent {
    uint64_t begin = 0;
    uint64_t end = 0;
    bool empty() const { return begin == end; }
  };
  // The first run at or behind the page at `from`, to its end; empty if there is none. A look at the file
  // that touches no page.
  Result<Extent> NextExtent(uint64_t from) const;

  // Of arrays that get memory from their start on, `step` elements of each at a time: how many elements have
  // it in all of them, in whole steps. A step that was not finished was not used yet; it is given back, and
  // whatever lies behind. Each has `count` elements, a multiple of `step`; a step is whole pages of each.
  struct GrownArray {
    uint64_t begin = 0;  // in the file
    uint64_t element_bytes = 0;
  };
  Result<uint64_t> KeepWholeSteps(std::initializer_list<GrownArray> arrays, uint64_t count, uint64_t step);

  // Makes the pages of [offset, offset+bytes) present (both multiples of 4096); those that are stay as they
  // are. kNoMemory: some may be present, all harmless; Punch gives them back. A system call; may sleep.
  Status Populate(uint64_t offset, uint64_t bytes);
  // The same for pages that hold nothing and that nobody else touches or populates: they are zeros after.
  // Takes three quarters of the time where it is many pages in a row.
  Status PopulateFresh(uint64_t offset, uint64_t bytes);
  // Gives the pages' memory back; they read as zeros after. A system call; may sleep.
  void Punch(uint64_t offset, uint64_t bytes);

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

}  // namespace zp
