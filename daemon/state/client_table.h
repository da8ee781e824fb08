// The client table: what a successor daemon has to know of each client, in a memfd with a fixed layout.
//
// Layout: [TableHeader, 4096 bytes][ClientRecord × kMaxClients]. Sparse: a record costs memory when it is
// used. userfaultfd messages are read *into* the record of their client (design §6): an event is applied from
// there and only then counted as done, so that a successor finds the last ones taken and can replay them.
//
// The table also gives out client numbers, which the handle table's owner words carry; a number is reused
// only after its client has gone.
//
// Threads: Allocate and Free are thread-safe; a record belongs to its Client, under the Client's own locks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "daemon/sys/uapi.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"

namespace uzswap {

inline constexpr uint64_t kClientTableMagic = 0x31544c43'50535a55;  // "UZSPCLT1"
inline constexpr uint32_t kClientTableVersion = 1;
inline constexpr uint32_t kMaxClients = 65536;  // of the 2^19 that an owner word can name
inline constexpr uint32_t kMessagesPerRead = 8;

struct TableHeader {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t record_bytes;
  uint32_t capacity;
  uint32_t reserved;
};
static_assert(sizeof(TableHeader) == 24);

enum class ClientState : uint32_t { kFree = 0, kLive = 1, kDying = 2 };

struct ClientRecord {
  uint32_t state;  // ClientState
  uint32_t id;
  int32_t pid;  // 0: a forked child whose pid nobody told
  uint32_t uid;
  uint32_t parent_id;  // of a forked child; 0: none
  uint32_t has_ring;
  uint64_t arena_start, arena_bytes;
  uint64_t staging_start, staging_bytes;
  uint64_t limit_bytes;
  uint64_t event_seq;      // events applied
  uint64_t index_root;     // root node of the client's OffsetIndex
  uint32_t message_count;  // messages below that are taken from the kernel and not yet dealt with
  uint32_t messages_done;  // of these, applied
  uffd_msg messages[kMessagesPerRead];
  uint8_t reserved[168];
};
static_assert(sizeof(uffd_msg) == 32);
static_assert(offsetof(ClientRecord, messages) == 88);
static_assert(sizeof(ClientRecord) == 512);

class ClientTable {
 public:
  static zp::Result<ClientTable> Create();
  ClientTable(ClientTable&&) noexcept = default;

  // A zeroed record with a fresh id (from 1). kNoMemory: all numbers are taken.
  zp::Result<ClientRecord*> Allocate() ZP_EXCLUDES(*mu_);
  void Free(ClientRecord* record) ZP_EXCLUDES(*mu_);
  int fd() const { return fd_.get(); }

 private:
  ClientTable(zp::UniqueFd fd, zp::Mapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  ClientRecord* record(uint32_t id) const;

  zp::UniqueFd fd_;
  zp::Mapping mapping_;
  std::unique_ptr<zp::Mutex> mu_ = std::make_unique<zp::Mutex>();
  uint32_t next_ ZP_GUARDED_BY(*mu_) =
      1;  // where the search for a free number goes on: numbers are reused late
};

}  // namespace uzswap
