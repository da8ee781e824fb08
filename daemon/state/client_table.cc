#include "daemon/state/client_table.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "daemon/wire/ring.h"

namespace uzswap {
namespace {

constexpr size_t kHeaderBytes = 4096;
constexpr size_t kRecordsBytes = sizeof(ClientRecord) * kMaxClients;
constexpr size_t kStatsBytes = (sizeof(ClientStats) * kMaxClients + 4095) & ~size_t{4095};
constexpr size_t kRangesAt = kHeaderBytes + kRecordsBytes + kStatsBytes;
constexpr size_t kRangesBytes = sizeof(AddressRange) * kRangesPerClient;  // of one client
constexpr size_t kTableBytes = kRangesAt + kRangesBytes * kMaxClients;
constexpr uint64_t kAddressLimit = uint64_t{1} << 56;

// A first touch of a memfd on a machine without memory would be SIGBUS.
zp::Status Populate(int fd, size_t offset, size_t bytes) {
  while (fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return zp::Error{zp::Errc::kNoMemory, errno, "memory for the client table"};
  }
  return zp::OkStatus();
}

// A page of it reads as zeros, which is kFree.
void Punch(int fd, size_t offset, size_t bytes) {
  (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes));
}

bool IsRange(uint64_t start, uint64_t bytes) {
  return start % zp::kPageBytes == 0 && bytes % zp::kPageBytes == 0 && start < kAddressLimit &&
         bytes < kAddressLimit;
}

bool MakesSense(const ClientRecord& record, uint32_t id) {
  if (record.id != id || record.progress.steps > 2 * kMessagesPerRead || record.progress.moves > 1 ||
      record.comm[sizeof(record.comm) - 1] != 0)
    return false;
  if (!IsRange(record.arena_start, record.arena_bytes) ||
      !IsRange(record.staging_start, record.staging_bytes) ||
      !IsRange(record.notes_start, record.notes_bytes))
    return false;
  return record.ring_fd < 0 || record.staging_bytes == wire::kStagingBytes;
}

}  // namespace

zp::Result<ClientTable> ClientTable::Create() {
  zp::UniqueFd fd = ZP_TRY(zp::CreateMemfd("uzswap-clients", kTableBytes));
  zp::Mapping mapping = ZP_TRY(zp::Mapping::Shared(fd.get(), 0, kTableBytes));
  ZP_TRY(Populate(fd.get(), 0, kHeaderBytes));
  auto* header = new (mapping.data()) TableHeader{};
  header->magic = kClientTableMagic;
  header->layout_version = kClientTableVersion;
  header->record_bytes = sizeof(ClientRecord);
  header->capacity = kMaxClients;
  header->stats_bytes = sizeof(ClientStats);
  header->listener_fd = header->handles_fd = header->index_fd = -1;
  for (int32_t& frames : header->frames_fd) frames = -1;
  return ClientTable(std::move(fd), std::move(mapping));
}

zp::Result<ClientTable> ClientTable::Adopt(zp::UniqueFd fd) {
  TableHeader seen{};
  struct stat status {};
  if (fstat(fd.get(), &status) != 0 ||
      pread(fd.get(), static_cast<void*>(&seen), sizeof(seen), 0) != static_cast<ssize_t>(sizeof(seen)) ||
      seen.magic != kClientTableMagic) {
    return zp::Error{zp::Errc::kInvalid, errno, "no client table"};
  }
  if (seen.layout_version != kClientTableVersion)
    return zp::Error{zp::Errc::kUnsupported, 0, "a client table of another layout"};
  if (seen.record_bytes != sizeof(ClientRecord) || seen.capacity != kMaxClients ||
      seen.stats_bytes != sizeof(ClientStats) || status.st_size != static_cast<off_t>(kTableBytes)) {
    return zp::Error{zp::Errc::kInvalid, 0, "a client table whose header does not fit it"};
  }
  zp::Mapping mapping = ZP_TRY(zp::Mapping::Shared(fd.get(), 0, kTableBytes));
  return ClientTable(std::move(fd), std::move(mapping));
}

ClientRecord* ClientTable::record(uint32_t id) const {
  return reinterpret_cast<ClientRecord*>(mapping_.data() + kHeaderBytes) + id;
}

ClientStats& ClientTable::stats(const ClientRecord* record) const {
  return *(reinterpret_cast<ClientStats*>(mapping_.data() + kHeaderBytes + kRecordsBytes) + record->id);
}

std::span<AddressRange> ClientTable::ranges(const ClientRecord* record) const {
  return {reinterpret_cast<AddressRange*>(mapping_.data() + kRangesAt + kRangesBytes * record->id),
          kRangesPerClient};
}

bool ClientTable::PopulateRanges(const ClientRecord* record, uint32_t count) const {
  constexpr uint32_t kPerPage = zp::kPageBytes / sizeof(AddressRange);
  if (count > kRangesPerClient) return false;
  if (count % kPerPage != 1) return true;  // they are given out one by one
  const size_t at = kRangesAt + kRangesBytes * record->id + sizeof(AddressRange) * (count - 1);
  return Populate(fd_.get(), at, zp::kPageBytes).ok();
}

void ClientTable::SetState(ClientRecord* record, ClientState state) {
  // What was written to the record before is there for whoever sees the state.
  std::atomic_ref(record->state).store(static_cast<uint32_t>(state), std::memory_order_release);
}

zp::Result<ClientRecord*> ClientTable::Allocate() {
  zp::MutexLock lock(*mu_);
  for (uint32_t tries = 1; tries < kMaxClients; ++tries) {
    const uint32_t id = next_;
    next_ = next_ + 1 < kMaxClients ? next_ + 1 : 1;
    ClientRecord* found = record(id);
    if (found->state != static_cast<uint32_t>(ClientState::kFree)) continue;
    ZP_TRY(Populate(fd_.get(), kHeaderBytes + sizeof(ClientRecord) * id, sizeof(ClientRecord)));
    ZP_TRY(Populate(fd_.get(), kHeaderBytes + kRecordsBytes + sizeof(ClientStats) * id, sizeof(ClientStats)));
    memset(found, 0, sizeof(*found));
    found->id = id;
    found->uffd_fd = found->ring_fd = found->socket_fd = -1;
    for (int32_t& fd : found->memory_fds) fd = -1;
    new (&stats(found)) ClientStats{};
    SetState(found, ClientState::kReserved);
    return found;
  }
  return zp::Error{zp::Errc::kNoMemory, 0, "the client table is full"};
}

void ClientTable::Free(ClientRecord* record) {
  zp::MutexLock lock(*mu_);
  const uint32_t id = record->id;
  SetState(record, ClientState::kFree);
  PunchOut(id);
}

// Numbers are reused late: what they leave must not add up.
void ClientTable::PunchOut(uint32_t id) {
  Punch(fd_.get(), kHeaderBytes + sizeof(ClientRecord) * id, sizeof(ClientRecord));
  Punch(fd_.get(), kRangesAt + kRangesBytes * id, kRangesBytes);
}

std::vector<ClientRecord*> ClientTable::Survivors() {
  zp::MutexLock lock(*mu_);
  std::vector<ClientRecord*> found;
  // Holes, which are most of it, are not looked at: reading one would give it memory.
  const off_t end = static_cast<off_t>(kHeaderBytes + kRecordsBytes);
  off_t at = static_cast<off_t>(kHeaderBytes);
  while ((at = lseek(fd_.get(), at, SEEK_DATA)) >= 0 && at < end) {
    off_t hole = lseek(fd_.get(), at, SEEK_HOLE);
    if (hole < 0 || hole > end) hole = end;
    auto id = static_cast<uint32_t>((static_cast<size_t>(at) - kHeaderBytes) / sizeof(ClientRecord));
    for (; kHeaderBytes + sizeof(ClientRecord) * (id + 1) <= static_cast<size_t>(hole); ++id) {
      ClientRecord* const candidate = record(id);
      if (candidate->state == static_cast<uint32_t>(ClientState::kLive) && id != 0 &&
          MakesSense(*candidate, id)) {
        found.push_back(candidate);
      } else if (candidate->state != static_cast<uint32_t>(ClientState::kFree)) {
        SetState(candidate, ClientState::kFree);
        PunchOut(id);
      }
      next_ = id + 1 < kMaxClients ? id + 1 : 1;
    }
    at = hole;
  }
  return found;
}

}  // namespace uzswap
