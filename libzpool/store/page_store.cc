#include "libzpool/store/page_store.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>

namespace zp {
namespace {

// Handles that a pool of `capacity` may need. An object has 16 bytes at least; below 128 on average there is
// nothing real, and the table is address space only until it is used. A million at least, so that small pools
// never meet this limit first.
uint64_t MaxHandles(Bytes capacity) {
  constexpr uint64_t kSmallestAverageBytes = 128;
  constexpr uint64_t kAtLeast = uint64_t{1} << 20;
  return std::max(capacity.value() / kSmallestAverageBytes, kAtLeast);
}

// Keeps plain loads before it from passing loads after it. ThreadSanitizer does not know fences (and needs
// none on x86).
void FenceLoads() {
#if defined(__SANITIZE_THREAD__)
  std::atomic_signal_fence(std::memory_order_acquire);
#else
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
}

}  // namespace

Result<std::unique_ptr<PageStore>> PageStore::Create(const Options& options) {
  const uint64_t frames = options.capacity.value() / kPageBytes;
  if (frames == 0) return Error{Errc::kInvalid, 0, "capacity of the pool"};
  std::unique_ptr<PageStore> store(new (std::nothrow) PageStore(options, frames));
  if (store == nullptr) return Error{Errc::kNoMemory, 0, "page store"};
  ZP_TRY(store->Init());
  return store;
}

PageStore::PageStore(const Options& options, uint64_t capacity_frames)
    : options_(options), budget_(capacity_frames) {}

PageStore::~PageStore() = default;

Status PageStore::Init() {
  handles_ = ZP_TRY(HandleTable::Create(MaxHandles(options_.capacity)));
  const Topology& topology = options_.topology;
  for (const NodeId id : topology.nodes()) {
    FrameArena::Options arena_options{id, options_.capacity,
                                      topology.is_real() && topology.nodes().size() > 1};
    Node node;
    std::snprintf(node.name, sizeof(node.name), "frames-%u", id.value());
    node.arena = ZP_TRY(FrameArena::Create(arena_options, budget_));
    node.pool = ZP_TRY(ZsmallocPool::Create(*node.arena));
    nodes_.push_back(std::move(node));
  }
  return OkStatus();
}

Result<Slot> PageStore::Store(PageView page, Owner owner, NodeId preferred, Scratch& scratch) {
  if (const std::optional<uint64_t> pattern = SameFilledPattern(page)) {
    if (const std::optional<Slot> slot = Slot::SameFilled(*pattern)) {
      same_filled_.fetch_add(1, std::memory_order_relaxed);
      return *slot;
    }
  }
  CodecId codec = options_.codec;
  const uint32_t encoded_bytes = EncodePage(codec, page, scratch);
  std::span<const std::byte> object(scratch.encoded.data(), encoded_bytes);
  if (encoded_bytes == 0) {
    codec = CodecId::kRaw;
    object = page;
  }
  const Result<Location> location = Place(object, codec, preferred);
  if (!location.ok()) {
    store_failures_.fetch_add(1, std::memory_order_relaxed);
    return location.error();
  }
  const Result<Handle> handle = handles_->Insert(*location, owner, PageChecksum(page));
  if (!handle.ok()) {
    NodeOf(location->node)->pool->Free(location->offset, location->length);
    store_failures_.fetch_add(1, std::memory_order_relaxed);
    return handle.error();
  }
  if (codec == CodecId::kRaw) raw_pages_.fetch_add(1, std::memory_order_relaxed);
  return Slot::FromHandle(*handle);
}

LoadOutcome PageStore::Load(Slot slot, MutablePageView out, Scratch& scratch) const {
  if (slot.is_same_filled()) {
    FillPage(slot.pattern(), out);
    return LoadOutcome::kLoaded;
  }
  if (!slot.is_handle()) return LoadOutcome::kCorrupt;
  const Handle handle = slot.handle();
  uint64_t word = handles_->Lookup(handle);
  for (;;) {
    const Location location = Location::Decode(word);
    const Node* node = NodeOf(location.node);
    if (!location.is_readable() || node == nullptr) return LoadOutcome::kCorrupt;
    if (location.offset + location.length > node->arena->span_count() * kSpanBytes)
      return LoadOutcome::kCorrupt;
    // A private copy: what is decoded can't change, whatever a mover or a stray write does to the pool
    // meanwhile.
    const bool is_raw = location.codec == CodecId::kRaw;
    if (is_raw && location.length != kPageBytes) return LoadOutcome::kCorrupt;
    std::byte* const copy = is_raw ? out.data() : scratch.object.data();
    std::memcpy(copy, node->pool->ObjectAt(location.offset), location.length);
    // The copy comes before this look at the word: the bytes were the object's if the word is still the same.
    FenceLoads();
    const uint64_t again = handles_->Lookup(handle);
    if (again != word) {
      word = again;
      continue;
    }
    if (!is_raw && !DecodePage(location.codec, {copy, location.length}, out)) return LoadOutcome::kCorrupt;
    return PageChecksum(out) == handles_->checksum(handle) ? LoadOutcome::kLoaded : LoadOutcome::kCorrupt;
  }
}

Status PageStore::Ref(Slot slot) { return slot.is_handle() ? handles_->Ref(slot.handle()) : OkStatus(); }

void PageStore::RefOrPin(Slot slot) {
  if (slot.is_handle()) handles_->RefOrPin(slot.handle());
}

void PageStore::Release(Slot slot) {
  if (!slot.is_handle() || !handles_->Unref(slot.handle())) return;
  // The entry goes before the bytes, so that a crash in between leaves bytes without entry, never an entry
  // without bytes.
  const Location location = handles_->Retire(slot.handle());
  const Node* node = NodeOf(location.node);
  ZP_CHECK(node != nullptr, "an object on a node that is not there");
  node->pool->Free(location.offset, location.length);
  if (location.codec == CodecId::kRaw) raw_pages_.fetch_sub(1, std::memory_order_relaxed);
  handles_->Recycle(slot.handle());
}

void PageStore::SetOwner(Slot slot, Owner owner) {
  if (slot.is_handle()) handles_->SetOwner(slot.handle(), owner);
}

uint32_t PageStore::object_bytes(Slot slot) const {
  return slot.is_handle() ? Location::Decode(handles_->Lookup(slot.handle())).length : 0;
}

uint64_t PageStore::Trim() {
  uint64_t frames = 0;
  for (Node& node : nodes_) frames += node.pool->Trim();
  return frames;
}

void PageStore::SetCapacity(Bytes capacity) { budget_.set_limit_frames(capacity.value() / kPageBytes); }

PoolStats PageStore::stats() const {
  PoolStats stats;
  stats.same_filled = same_filled_.load(std::memory_order_relaxed);
  stats.raw_pages = raw_pages_.load(std::memory_order_relaxed);
  stats.store_failures = store_failures_.load(std::memory_order_relaxed);
  stats.pool_bytes = pool_bytes();
  stats.capacity_bytes = budget_.limit_frames() * kPageBytes;
  stats.metadata_bytes = handles_->metadata_bytes();
  stats.classes.resize(ZsmallocPool::kClassCount);
  for (const Node& node : nodes_) {
    stats.metadata_bytes += node.arena->metadata_bytes() + node.pool->metadata_bytes();
    for (uint32_t i = 0; i < ZsmallocPool::kClassCount; ++i) {
      const SizeClassStats from = node.pool->class_stats(i);
      SizeClassStats& to = stats.classes[i];
      to.object_bytes = from.object_bytes;
      to.objects += from.objects;
      to.stored_bytes += from.stored_bytes;
      to.zspages += from.zspages;
      to.frames += from.frames;
      to.idle_frames += from.idle_frames;
      for (size_t group = 0; group < from.zspages_by_group.size(); ++group) {
        to.zspages_by_group[group] += from.zspages_by_group[group];
      }
      stats.stored_pages += from.objects;
      stats.stored_bytes += from.stored_bytes;
    }
  }
  return stats;
}

void PageStore::DebugVerify() const {
  for (const Node& node : nodes_) node.pool->DebugVerify();
}

Result<Location> PageStore::Place(std::span<const std::byte> bytes, CodecId codec, NodeId preferred) {
  const uint32_t length = static_cast<uint32_t>(bytes.size());
  Error error{Errc::kNoMemory, 0, "pool"};
  for (const uint8_t index : options_.topology.FallbackOrder(preferred)) {
    const Node& node = nodes_[index];
    const Result<uint64_t> offset = node.pool->Allocate(length);
    if (!offset.ok()) {
      error = offset.error();
      continue;
    }
    std::memcpy(node.pool->ObjectAt(*offset), bytes.data(), length);
    Location location;
    location.node = node.arena->node();
    location.offset = *offset;
    location.codec = codec;
    location.length = length;
    return location;
  }
  return error;
}

}  // namespace zp
