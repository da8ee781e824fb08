// A client whose daemon died. See daemon/DESIGN.md, "The life of a restart".
#include <algorithm>

#include "daemon/client/client.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {

using zp::PageIndex;
using zp::Slot;
using Exchange = zp::OffsetIndex::Exchange;

namespace {

// All of user space, also with 57-bit addresses.
constexpr uint64_t kAddressEnd = uint64_t{1} << 56;
// What UFFDIO_WAKE takes: the end of 47-bit user space, and of 57-bit.
constexpr uint64_t kWakeEnds[] = {0x7ffffffff000, 0xfffffffffff000};

}  // namespace

void Client::NoteFiles(ClientRecord* record, const ProcessMemory& memory) {
  const auto files = memory.descriptors();
  std::copy(files.begin(), files.end(), record->memory_fds);
}

zp::Result<std::shared_ptr<Client>> Client::Recover(ClientServices services, ClientRecord* record,
                                                    InheritedDescriptors& inherited, zp::OffsetIndex index,
                                                    std::vector<PageIndex> unfinished) {
  Userfaultfd uffd = ZP_TRY(Userfaultfd::Adopt(inherited.Take(record->uffd_fd)));
  ProcessMemory memory;
  std::unique_ptr<AgentChannel> channel;
  if (record->ring_fd >= 0) {
    channel = ZP_TRY(AgentChannel::Adopt(inherited.Take(record->ring_fd)));
    channel->SetSocket(std::make_shared<const zp::UniqueFd>(inherited.Take(record->socket_fd)));
    if (channel->socket_fd() < 0) return zp::Error{zp::Errc::kInvalid, 0, "the socket of a client"};
    std::array<zp::UniqueFd, ProcessMemory::kFiles> files;
    for (size_t i = 0; i < files.size(); ++i) files[i] = inherited.Take(record->memory_fds[i]);
    auto adopted = ProcessMemory::Adopt(std::move(files));
    if (adopted.ok()) {
      memory = std::move(*adopted);
    } else {
      // They did not come along: opened anew, and believed only if it is that process. Nobody else has its
      // ring mapped, and after an exec it has not, either.
      memory = ZP_TRY(ProcessMemory::Open(record->pid));
      if (!memory.HasMapped(channel->ring_fd()))
        return zp::Error{zp::Errc::kGone, 0, "another program runs under that pid"};
      NoteFiles(record, memory);
    }
  }
  const bool known = record->codec < zp::kCodecs && record->pool < zp::kPoolKinds;
  const zp::StoreAs store_as =
      known ? zp::StoreAs{static_cast<zp::CodecId>(record->codec), static_cast<zp::PoolKind>(record->pool)}
            : services.store.store_as();
  auto client = std::shared_ptr<Client>(new Client(services, {record->pid, record->uid, record->comm},
                                                   std::move(uffd), record, std::move(index), store_as));
  client->limit_bytes_ = record->limit_bytes;
  client->unfinished_ = std::move(unfinished);
  // Nothing is known of these any more, so the careful answer is taken.
  client->forked_ = true;
  client->ever_registered_ = true;
  if (channel == nullptr) return client;
  client->channel_ = std::move(channel);
  client->memory_ = std::move(memory);
  client->has_memory_ = true;
  client->ranges_ = {{record->arena_start, record->arena_start + record->arena_bytes},
                     {record->staging_start, record->staging_start + record->staging_bytes},
                     {record->notes_start, record->notes_start + record->notes_bytes}};
  zp::MutexLock lock(client->evict_mu_);
  client->scanner_.Exclude(client->ranges_.arena);
  client->scanner_.Exclude(client->ranges_.staging);
  client->scanner_.Exclude(client->ranges_.notes);
  client->staging_dirty_ = true;
  return client;
}

void Client::Resume(InheritedDescriptors& inherited, FaultScratch& scratch) {
  std::vector<Slot> dropped;
  {
    zp::MutexLock reading(reader_mu_);
    // The gate was the dead reader's, or is the agent's; no MOVE succeeds from here on, and what has moved is
    // in the ring.
    if (channel_ != nullptr) {
      (void)channel_->RevokePending();
      OverruleAgent();
    }
    ZP_PAUSE_POINT("resume.overruled");
    zp::WriterLock lock(meta_mu_);
    registered_.Recover();
    AdoptUnfinished();
    ReplayMessages(inherited, &dropped);
    SettleBatch();
    batch_count_ = 0;
    ZP_PAUSE_POINT("resume.settled");
    event_seq_ = ++record_->event_seq;
    {
      // What was announced as dropped, and may be there still, is not known: it may be anything.
      zp::MutexLock doom_lock(doomed_mu_);
      doomed_.Add(0, kAddressEnd);
      clearance_.Doomed(0, kAddressEnd);
      any_doomed_.store(true, std::memory_order_release);
    }
    if (channel_ != nullptr) {
      channel_->PublishEventSeq(event_seq_);
      channel_->ReleaseGate();
    }
  }
  for (const Slot slot : dropped) Forget(slot);
  // A page that was on its way home may have arrived. The kernel says so when it is sent again; where it
  // can't be (an event is undelivered) it stays with us as well, which does no harm: the kernel asks for it
  // only if it has none.
  for (const PageIndex page : unfinished_) {
    zp::ReaderLock lock(meta_mu_);
    const Slot slot = index_.Get(page);
    if (slot.is_stored()) (void)Fill(page, slot, 1, scratch);
  }
  unfinished_ = {};
  ZP_PAUSE_POINT("resume.finished");
  // Faults that the dead daemon had read are asked again by whoever waits for them.
  for (const uint64_t end : kWakeEnds) uffd_.Wake(0, end);
}

// Pages on their way home are stored ones again, and pages of the batch in flight get their places in it.
void Client::AdoptUnfinished() {
  batch_page_.fill(0);
  batch_count_ = wire::kRingSlots;
  for (const PageIndex page : unfinished_) {
    const Slot slot = index_.Get(page);
    if (slot.is_filling()) {
      (void)index_.CompareExchange(page, slot, slot.Settled());
      continue;
    }
    if (!slot.is_busy()) continue;
    const uint32_t n = slot.busy_payload();
    if (channel_ == nullptr || n >= wire::kRingSlots) {
      (void)index_.CompareExchange(page, slot, Slot::Lost());
      continue;
    }
    (void)index_.CompareExchange(page, slot, Slot::Busy(kStaging, n));
    batch_page_[n] = page.address();
  }
}

// Goes on with the messages that the dead daemon had taken, where it stopped.
void Client::ReplayMessages(InheritedDescriptors& inherited, std::vector<Slot>* dropped) {
  for (uint32_t i = ClientTable::LoadProgress(record_).steps / 2;
       i < kMessagesPerRead && record_->messages[i].event != 0; ++i) {
    const uffd_msg& message = record_->messages[i];
    if (message.event == UFFD_EVENT_FORK) {
      // Taken already: the child's record was published.
      zp::UniqueFd child = inherited.Take(static_cast<int>(message.arg.fork.ufd));
      if (child.valid()) {
        Add(stats_.events_fork);
        ApplyFork(child.release());
      }
    } else if (message.event != UFFD_EVENT_PAGEFAULT) {
      ApplyEvent(message, dropped);
    }
    SetSteps(2 * (i + 1));
    ZP_PAUSE_POINT("replay.applied");
  }
}

}  // namespace uzswap
