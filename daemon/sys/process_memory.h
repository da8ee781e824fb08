// What the daemon sees of a client's memory through /proc.
//
// Idea: the files are opened once, at attach, while the peer's credentials are fresh. maps, smaps, pagemap
// and mem hold the memory descriptor (mm) that was current at open: after exec they still speak of the old
// program, so a reused pid can never be mistaken for the client. statm and task/ belong to the pid; they are
// only read for statistics.
//
// Cost: ReadMaps ~0.3 µs a mapping; Scan 12 ns a present page; ResidentBytes ~2 µs.
// Threads: const methods from any thread at once, each call uses pread or its own offset.
// Failure: what cannot be read is an error; the caller leaves the client alone for this round.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "daemon/sys/uapi.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/result.h"

namespace uzswap {

struct MapEntry {
  uint64_t start = 0;
  uint64_t end = 0;
  bool private_rw_anonymous = false;  // "rw-p", no file, no special name: what may be evicted at all
  bool inaccessible = false;          // "---p"
  bool private_anonymous = false;     // the same, or "r--p": perhaps only for a while
};

class ProcessMemory {
 public:
  ProcessMemory() = default;
  // Needs ptrace access to `pid` (CAP_SYS_PTRACE). kPermission, kGone, kUnsupported (no PAGEMAP_SCAN).
  static zp::Result<ProcessMemory> Open(pid_t pid);
  // Its files, for a successor that gets them by number: the descriptors stay this object's.
  static constexpr size_t kFiles = 6;
  std::array<int, kFiles> descriptors() const {
    return {maps_.get(), smaps_.get(), pagemap_.get(), mem_.get(), statm_.get(), agent_status_.get()};
  }
  // kInvalid: one of them is not open, but for the agent's status, which need not be known.
  static zp::Result<ProcessMemory> Adopt(std::array<zp::UniqueFd, kFiles> files);

  zp::Result<std::vector<MapEntry>> ReadMaps() const;
  // Whether some mapping is of the memfd that `fd` has open.
  bool HasMapped(int fd) const;
  // Whether one private anonymous mapping holds the whole range.
  bool IsPlainMemory(uint64_t start, uint64_t bytes) const;
  // Ranges with MADV_WIPEONFORK (VmFlags "wf"): a child must see zeros there (H11). Walks page tables: slow.
  zp::Result<std::vector<MapEntry>> ReadWipeOnFork() const;
  // What is present or swapped out by the kernel, anonymous, not the shared zero page, within [start, end):
  // appended to `out` as page runs. At most 512 pages are looked at.
  zp::Status ScanOccupied(uint64_t start, uint64_t end, std::vector<page_region>* out) const;
  // Present, anonymous, not the shared zero page, within [start, end): appended to `out` as page runs, at
  // most `max_pages` pages. Returns the address where the walk ended.
  zp::Result<uint64_t> ScanPresent(uint64_t start, uint64_t end, uint64_t max_pages,
                                   std::vector<page_region>* out) const;
  // Reads present memory; a missing page is an error, never a fault (11.1).
  bool Read(uint64_t address, void* out, size_t bytes) const;
  // Resident set of the pid, all kinds; 0 if it is gone.
  uint64_t ResidentBytes() const;
  // Seccomp filters on the agent's thread, which was found by its name when this was opened. 0 if it is not
  // known.
  uint64_t AgentFilters() const;

 private:
  static constexpr uint64_t kRunsPerScan = 256;
  zp::Result<uint64_t> Scan(uint64_t start, uint64_t end, uint64_t max_pages, uint64_t states,
                            std::vector<page_region>* out) const;

  zp::UniqueFd maps_, smaps_, pagemap_, mem_, statm_, agent_status_;
};

// The name of the program, for people: printable ASCII, '?' for anything else; "" if it is gone.
std::string ReadComm(pid_t pid);
// CPU on which thread `tid` of `pid` last ran, or -1.
int ReadTaskCpu(pid_t pid, int tid);

}  // namespace uzswap
