#include "daemon/state/client_table.h"

#include <cstring>

namespace uzswap {
namespace {
constexpr size_t kHeaderBytes = 4096;
constexpr size_t kTableBytes = kHeaderBytes + sizeof(ClientRecord) * kMaxClients;
}  // namespace

zp::Result<ClientTable> ClientTable::Create() {
  zp::UniqueFd fd = ZP_TRY(zp::CreateMemfd("uzswap-clients", kTableBytes));
  zp::Mapping mapping = ZP_TRY(zp::Mapping::Shared(fd.get(), 0, kTableBytes));
  auto* header = reinterpret_cast<TableHeader*>(mapping.data());
  *header = {kClientTableMagic, kClientTableVersion, sizeof(ClientRecord), kMaxClients, 0};
  return ClientTable(std::move(fd), std::move(mapping));
}

ClientRecord* ClientTable::record(uint32_t id) const {
  return reinterpret_cast<ClientRecord*>(mapping_.data() + kHeaderBytes) + id;
}

zp::Result<ClientRecord*> ClientTable::Allocate() {
  zp::MutexLock lock(*mu_);
  for (uint32_t tries = 1; tries < kMaxClients; ++tries) {
    const uint32_t id = next_;
    next_ = next_ + 1 < kMaxClients ? next_ + 1 : 1;
    ClientRecord* found = record(id);
    if (found->state != static_cast<uint32_t>(ClientState::kFree)) continue;
    memset(found, 0, sizeof(*found));
    found->id = id;
    found->state = static_cast<uint32_t>(ClientState::kLive);
    return found;
  }
  return zp::Error{zp::Errc::kNoMemory, 0, "the client table is full"};
}

void ClientTable::Free(ClientRecord* record) {
  zp::MutexLock lock(*mu_);
  record->state = static_cast<uint32_t>(ClientState::kFree);
}

}  // namespace uzswap
