#include "libzpool/pool/handle_table.h"

#include <algorithm>
#include <new>
#include <utility>

#include "libzpool/base/pause_point.h"

namespace zp {
namespace {

constexpr uint32_t kHandlesLayoutVersion = 2;
// Entries populated at a time: 32, 8 and 4 KiB of memory, three system calls per 2048 stores.
constexpr uint32_t kGrowEntries = 2048;
static_assert(kGrowEntries * sizeof(uint16_t) % kPageBytes == 0);

// Where the arrays begin in a table of `entries`, and where the last of them ends.
uint64_t ChecksumsAt(uint64_t entries) { return kPageBytes + entries * sizeof(HandleEntry); }
uint64_t ReferencesAt(uint64_t entries) { return ChecksumsAt(entries) + entries * sizeof(uint32_t); }
uint64_t TableBytes(uint64_t entries) { return ReferencesAt(entries) + entries * sizeof(uint16_t); }

// A free entry's word: the next free handle where the offset would be, and the generation that the next use
// will have.
uint64_t FreeWord(uint32_t next, uint8_t generation) {
  Location word;
  word.offset = next * Location::kGranuleBytes;
  word.state = EntryState::kFree;
  word.generation = generation;
  return word.Encode();
}

uint32_t NextOf(uint64_t word) {
  return static_cast<uint32_t>(Location::Decode(word).offset / Location::kGranuleBytes);
}

}  // namespace

Result<std::unique_ptr<HandleTable>> HandleTable::Create(uint64_t max_entries) {
  // Entry 0 is no handle. Whole growth steps, so that populating stays in the array.
  const uint64_t wanted = std::min<uint64_t>(max_entries, Handle::kMax) + 1;
  const uint64_t entries = (wanted + kGrowEntries - 1) / kGrowEntries * kGrowEntries;
  MemoryFile file = ZP_TRY(
      MemoryFile::Create("uzswap-handles", FileKind::kHandles, kHandlesLayoutVersion, TableBytes(entries)));
  file.header().params[0] = entries;
  return std::unique_ptr<HandleTable>(new HandleTable(std::move(file), static_cast<uint32_t>(wanted)));
}

HandleTable::HandleTable(MemoryFile file, uint32_t max_index)
    : file_(std::move(file)),
      entries_(reinterpret_cast<HandleEntry*>(file_.data() + kPageBytes)),
      checksums_(
          reinterpret_cast<std::atomic<uint32_t>*>(file_.data() + ChecksumsAt(file_.header().params[0]))),
      references_(
          reinterpret_cast<std::atomic<uint16_t>*>(file_.data() + ReferencesAt(file_.header().params[0]))),
      max_index_(max_index) {}

Result<std::unique_ptr<HandleTable>> HandleTable::Recover(UniqueFd fd) {
  MemoryFile file = ZP_TRY(MemoryFile::Adopt(std::move(fd), FileKind::kHandles, kHandlesLayoutVersion));
  const uint64_t entries = file.header().params[0];
  if (entries == 0 || entries % kGrowEntries != 0 || entries > uint64_t{Handle::kMax} + kGrowEntries ||
      file.size() != TableBytes(entries))
    return Error{Errc::kInvalid, 0, "the size of a handle table"};
  const uint64_t populated = ZP_TRY(file.KeepWholeSteps({{kPageBytes, sizeof(HandleEntry)},
                                                         {ChecksumsAt(entries), sizeof(uint32_t)},
                                                         {ReferencesAt(entries), sizeof(uint16_t)}},
                                                        entries, kGrowEntries));
  std::unique_ptr<HandleTable> table(new (std::nothrow) HandleTable(
      std::move(file), static_cast<uint32_t>(std::min<uint64_t>(entries, uint64_t{Handle::kMax} + 1))));
  if (table == nullptr) return Error{Errc::kNoMemory, 0, "handle table"};
  table->populated_.store(static_cast<uint32_t>(populated), std::memory_order_relaxed);
  // Those that were never used have a word of zeros, as all that is behind them.
  uint32_t end = std::min(static_cast<uint32_t>(populated), table->max_index_);
  while (end > 1 && table->entries_[end - 1].location.load(std::memory_order_relaxed) == 0) --end;
  table->next_fresh_.store(std::max(end, 1u), std::memory_order_release);
  for (uint32_t i = 1; i < end; ++i) table->references_[i].store(0, std::memory_order_relaxed);
  return table;
}

bool HandleTable::Adopt(Handle handle) {
  if (!Location::Decode(Lookup(handle)).is_readable()) return false;
  std::atomic<uint16_t>& count = references(handle);
  uint16_t before = count.load(std::memory_order_relaxed);
  do {
    if (before == kPinnedRefs) return true;
  } while (
      !count.compare_exchange_weak(before, static_cast<uint16_t>(before + 1), std::memory_order_relaxed));
  return true;
}

void HandleTable::StartAgain() {
  uint32_t first = 0;
  for (uint32_t i = next_fresh_.load(std::memory_order_relaxed); i-- > 1;) {
    std::atomic<uint64_t>& word = entries_[i].location;
    const Location location = Location::Decode(word.load(std::memory_order_relaxed));
    if (location.is_readable()) continue;
    word.store(FreeWord(first, location.generation), std::memory_order_relaxed);
    first = i;
  }
  free_head_.store(first, std::memory_order_release);
}

Result<Handle> HandleTable::Insert(const Location& location, const Owner& owner, uint32_t checksum) {
  const uint32_t index = ZP_TRY(Take());
  HandleEntry& entry = entries_[index];
  Location published = location;
  published.state = EntryState::kLive;
  published.generation = Location::Decode(entry.location.load(std::memory_order_relaxed)).generation;
  entry.owner.store(owner.Encode(), std::memory_order_relaxed);
  checksums_[index].store(checksum, std::memory_order_relaxed);
  references_[index].store(1, std::memory_order_relaxed);
  ZP_PAUSE_POINT("handles.taken");
  // The publication: whoever sees this word sees the object's bytes and the words above.
  entry.location.store(published.Encode(), std::memory_order_release);
  return Handle(index);
}

Status HandleTable::Ref(Handle handle) {
  std::atomic<uint16_t>& count = references(handle);
  uint16_t before = count.load(std::memory_order_relaxed);
  do {
    ZP_CHECK(before > 0, "reference to a stale handle");
    if (before == kPinnedRefs) return OkStatus();
    if (before == kMaxRefs) return Error{Errc::kNoMemory, 0, "references to an object"};
  } while (
      !count.compare_exchange_weak(before, static_cast<uint16_t>(before + 1), std::memory_order_relaxed));
  return OkStatus();
}

void HandleTable::RefOrPin(Handle handle) {
  std::atomic<uint16_t>& count = references(handle);
  uint16_t before = count.load(std::memory_order_relaxed);
  do {
    ZP_CHECK(before > 0, "reference to a stale handle");
    if (before == kPinnedRefs) return;
    // From 65534 this reaches the pinned value, which Unref leaves alone.
  } while (
      !count.compare_exchange_weak(before, static_cast<uint16_t>(before + 1), std::memory_order_relaxed));
}

bool HandleTable::Unref(Handle handle) {
  std::atomic<uint16_t>& count = references(handle);
  uint16_t before = count.load(std::memory_order_relaxed);
  do {
    ZP_CHECK(before > 0, "release of a stale handle");
    if (before == kPinnedRefs) return false;
    // Release: what this holder did with the object is done before the last one frees it.
  } while (!count.compare_exchange_weak(before, static_cast<uint16_t>(before - 1), std::memory_order_acq_rel,
                                        std::memory_order_relaxed));
  return before == 1;
}

Location HandleTable::Retire(Handle handle) {
  HandleEntry& slot = entry(handle);
  uint64_t word = slot.location.load(std::memory_order_acquire);
  for (;;) {
    const Location location = Location::Decode(word);
    ZP_CHECK(location.is_readable(), "free of a stale handle");
    const uint8_t generation =
        static_cast<uint8_t>((location.generation + 1u) & ((1u << Location::kGenerationBits) - 1));
    // A mover may publish another place for it at any time before this.
    if (slot.location.compare_exchange_weak(word, FreeWord(0, generation), std::memory_order_seq_cst))
      return location;
  }
}

void HandleTable::Recycle(Handle handle) {
  std::atomic<uint64_t>& word = entry(handle).location;
  const uint8_t generation = Location::Decode(word.load(std::memory_order_relaxed)).generation;
  uint64_t head = free_head_.load(std::memory_order_relaxed);
  uint64_t desired = 0;
  do {
    word.store(FreeWord(static_cast<uint32_t>(head), generation), std::memory_order_relaxed);
    desired = (((head >> 32) + 1) << 32) | handle.value();
  } while (
      !free_head_.compare_exchange_weak(head, desired, std::memory_order_release, std::memory_order_relaxed));
}

uint64_t HandleTable::metadata_bytes() const {
  return kPageBytes + populated_.load(std::memory_order_relaxed) *
                          (sizeof(HandleEntry) + sizeof(uint32_t) + sizeof(uint16_t));
}

Result<uint32_t> HandleTable::Take() {
  uint64_t head = free_head_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(head) != 0) {
    const uint32_t index = static_cast<uint32_t>(head);
    // Another thread may have taken `index` and published an object: then this is nonsense, and the exchange
    // fails by the count.
    const uint64_t word = entries_[index].location.load(std::memory_order_relaxed);
    const uint64_t desired = (((head >> 32) + 1) << 32) | NextOf(word);
    if (free_head_.compare_exchange_weak(head, desired, std::memory_order_acquire,
                                         std::memory_order_acquire)) {
      return index;
    }
  }
  return TakeFresh();
}

Result<uint32_t> HandleTable::TakeFresh() {
  uint32_t index = next_fresh_.load(std::memory_order_relaxed);
  for (;;) {
    if (index >= max_index_) return Error{Errc::kNoMemory, 0, "handle table"};
    if (index >= populated_.load(std::memory_order_acquire)) ZP_TRY(GrowFor(index));
    if (next_fresh_.compare_exchange_weak(index, index + 1, std::memory_order_acq_rel,
                                          std::memory_order_relaxed))
      return index;
  }
}

Status HandleTable::GrowFor(uint32_t index) {
  MutexLock lock(grow_mu_);
  const uint32_t present = populated_.load(std::memory_order_relaxed);
  if (index < present) return OkStatus();
  ZP_TRY(file_.Populate(kPageBytes + present * sizeof(HandleEntry), kGrowEntries * sizeof(HandleEntry)));
  const uint64_t entries = file_.header().params[0];
  ZP_TRY(file_.Populate(ChecksumsAt(entries) + present * sizeof(uint32_t), kGrowEntries * sizeof(uint32_t)));
  ZP_TRY(file_.Populate(ReferencesAt(entries) + present * sizeof(uint16_t), kGrowEntries * sizeof(uint16_t)));
  populated_.store(present + kGrowEntries, std::memory_order_release);
  return OkStatus();
}

}  // namespace zp
