#include "libzpool/store/page_store.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>

#include "libzpool/base/pause_point.h"

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

// What is xor-ed into the checksums of a domain's pages: one to one, and nothing for domain 0. (The finalizer
// of MurmurHash3: numbers that differ in a bit differ in half of them.)
uint32_t DomainMix(uint32_t domain) {
  domain = (domain ^ (domain >> 16)) * 0x85ebca6b;
  domain = (domain ^ (domain >> 13)) * 0xc2b2ae35;
  return domain ^ (domain >> 16);
}

}  // namespace

Result<std::unique_ptr<PageStore>> PageStore::Create(const Options& options) {
  const uint64_t frames = options.capacity.value() / kPageBytes;
  if (frames == 0) return Error{Errc::kInvalid, 0, "capacity of the pool"};
  std::unique_ptr<PageStore> store(new (std::nothrow) PageStore(options, frames));
  if (store == nullptr) return Error{Errc::kNoMemory, 0, "page store"};
  store->handles_ = ZP_TRY(HandleTable::Create(MaxHandles(options.capacity)));
  store->mover_.emplace(*store->handles_, store->epochs_);
  for (const NodeId node : options.topology.nodes()) {
    std::unique_ptr<FrameArena> arena = ZP_TRY(FrameArena::Create(store->ArenaOptions(node), store->budget_));
    ZP_TRY(store->AddNode(std::move(arena)));
  }
  return store;
}

PageStore::PageStore(const Options& options, uint64_t capacity_frames)
    : options_(options), budget_(capacity_frames), pool_(options.pool) {}

PageStore::~PageStore() {
  if (stage_ == Stage::kLive) return;
  for (const Node& node : nodes_) {
    for (ObjectPool* pool : node.pools()) pool->Abandon();
    node.arena->Abandon();
  }
}

FrameArena::Options PageStore::ArenaOptions(NodeId node) const {
  const Topology& topology = options_.topology;
  return {node, options_.capacity, topology.is_real() && topology.nodes().size() > 1};
}

Status PageStore::AddNode(std::unique_ptr<FrameArena> arena) {
  Node node;
  node.arena = std::move(arena);
  std::snprintf(node.name, sizeof(node.name), "frames-%u", node.arena->node().value());
  node.zsmalloc = ZP_TRY(ZsmallocPool::Create(*node.arena, *handles_));
  node.zbud = ZP_TRY(ZbudPool::Create(*node.arena, *handles_));
  node.standby = ZP_TRY(ZsmallocPool::Create(*node.arena, *handles_, FrameOwner::kStandby));
  node.accepts = std::make_unique<std::atomic<bool>>(true);
  migrator_.Register(*node.arena, FrameOwner::kZsmalloc, *node.zsmalloc);
  migrator_.Register(*node.arena, FrameOwner::kZbud, *node.zbud);
  migrator_.Register(*node.arena, FrameOwner::kStandby, *node.standby);
  nodes_.push_back(std::move(node));
  return OkStatus();
}

Result<Slot> PageStore::Store(PageView page, Owner owner, NodeId preferred, StoreAs as, Scratch& scratch) {
  return Store(page, owner, preferred, as, Limits::kKept, scratch);
}

Result<Slot> PageStore::StoreAlways(PageView page, Owner owner, NodeId preferred, StoreAs as,
                                    Scratch& scratch) {
  return Store(page, owner, preferred, as, Limits::kOverLimit, scratch);
}

Result<Slot> PageStore::Store(PageView page, Owner owner, NodeId preferred, StoreAs as, Limits limits,
                              Scratch& scratch) {
  if (const std::optional<uint64_t> pattern = SameFilledPattern(page)) {
    if (const std::optional<Slot> slot = Slot::SameFilled(*pattern)) {
      same_filled_.fetch_add(1, std::memory_order_relaxed);
      return *slot;
    }
  }
  CodecId codec = as.codec;
  const uint32_t encoded_bytes = EncodePage(codec, page, scratch);
  std::span<const std::byte> object(scratch.encoded.data(), encoded_bytes);
  if (encoded_bytes == 0) {
    codec = CodecId::kRaw;
    object = page;
  }
  const FrameOwner pool = as.pool == PoolKind::kZbud ? FrameOwner::kZbud : FrameOwner::kZsmalloc;
  return Keep(object, codec, pool, preferred, limits, owner, PageChecksum(page) ^ DomainMix(owner.domain));
}

Result<Slot> PageStore::StoreRaw(PageView page, Owner owner, NodeId preferred) {
  return Keep(page, CodecId::kRaw, FrameOwner::kStandby, preferred, Limits::kKept, owner,
              PageChecksum(page) ^ DomainMix(owner.domain));
}

Result<Slot> PageStore::Keep(std::span<const std::byte> bytes, CodecId codec, FrameOwner pool,
                             NodeId preferred, Limits limits, Owner owner, uint32_t checksum) {
  const Result<Location> location = Place(bytes, codec, pool, preferred, limits);
  if (!location.ok()) {
    store_failures_.fetch_add(1, std::memory_order_relaxed);
    return location.error();
  }
  ZP_PAUSE_POINT("store.placed");
  ObjectPool& place = MustFind(location->node).PoolOf(pool);
  const Result<Handle> handle = handles_->Insert(*location, owner, checksum);
  if (!handle.ok()) {
    place.Free(location->offset, location->length);
    store_failures_.fetch_add(1, std::memory_order_relaxed);
    return handle.error();
  }
  ZP_PAUSE_POINT("store.published");
  // It can be moved from now on.
  place.Bind(location->offset, *handle);
  if (codec == CodecId::kRaw) raw_pages_.fetch_add(1, std::memory_order_relaxed);
  return Slot::FromHandle(*handle);
}

LoadOutcome PageStore::Load(Slot slot, MutablePageView out, Scratch& scratch, uint32_t domain) const {
  if (slot.is_same_filled()) {
    FillPage(slot.pattern(), out);
    return LoadOutcome::kLoaded;
  }
  if (!slot.is_handle()) return LoadOutcome::kCorrupt;
  Location location;
  std::byte* copy = nullptr;
  {
    // A private copy: what is decoded can't change, whatever a stray write does to the pool meanwhile. And a
    // mover leaves the old bytes as they are until this reading has ended.
    const Epochs::Guard reading = epochs_.Enter();
    location = Location::Decode(handles_->Lookup(slot.handle()));
    const Node* node = NodeOf(location.node);
    if (!location.is_readable() || node == nullptr) return LoadOutcome::kCorrupt;
    if (location.offset + location.length > node->arena->span_count() * kSpanBytes)
      return LoadOutcome::kCorrupt;
    if (location.codec == CodecId::kRaw && location.length != kPageBytes) return LoadOutcome::kCorrupt;
    copy = location.codec == CodecId::kRaw ? out.data() : scratch.object.data();
    ZP_PAUSE_POINT("load.located");
    std::memcpy(copy, node->arena->At(location.offset), location.length);
  }
  if (location.codec != CodecId::kRaw && !DecodePage(location.codec, {copy, location.length}, out))
    return LoadOutcome::kCorrupt;
  return (PageChecksum(out) ^ DomainMix(domain)) == handles_->checksum(slot.handle()) ? LoadOutcome::kLoaded
                                                                                      : LoadOutcome::kCorrupt;
}

Status PageStore::Ref(Slot slot) { return slot.is_handle() ? handles_->Ref(slot.handle()) : OkStatus(); }

void PageStore::RefOrPin(Slot slot) {
  if (slot.is_handle()) handles_->RefOrPin(slot.handle());
}

void PageStore::Release(Slot slot) {
  if (slot.is_handle() && handles_->Unref(slot.handle())) Free(slot.handle());
}

void PageStore::Free(Handle handle) {
  releases_.fetch_add(1, std::memory_order_relaxed);
  // The entry goes before the bytes, so that a crash in between leaves bytes without entry, never an entry
  // without bytes.
  ZP_PAUSE_POINT("release.unreferenced");
  const Location location = handles_->Retire(handle);
  ZP_PAUSE_POINT("release.retired");
  MustFind(location.node).PoolAt(location.offset).Free(location.offset, location.length);
  ZP_PAUSE_POINT("release.freed");
  if (location.codec == CodecId::kRaw) raw_pages_.fetch_sub(1, std::memory_order_relaxed);
  handles_->Recycle(handle);
}

void PageStore::SetOwner(Slot slot, Owner owner) {
  if (slot.is_handle()) handles_->SetOwner(slot.handle(), owner);
}

uint32_t PageStore::object_bytes(Slot slot) const {
  return slot.is_handle() ? Location::Decode(handles_->Lookup(slot.handle())).length : 0;
}

uint64_t PageStore::Trim() {
  uint64_t frames = 0;
  for (const Node& node : nodes_) frames += node.Trim();
  return frames;
}

const PageStore::Node& PageStore::MustFind(NodeId node) const {
  const Node* found = NodeOf(node);
  ZP_CHECK(found != nullptr, "a node that is not there");
  return *found;
}

Result<std::span<const std::byte>> PageStore::Pin(Slot slot) {
  // Until it is pinned the object may be moved, but where it was stays as it is under the guard.
  const Epochs::Guard reading = epochs_.Enter();
  const uint64_t word = handles_->Lookup(slot.handle());
  const Location location = Location::Decode(word);
  ZP_CHECK(location.is_readable(), "pin of a stale handle");
  const Node& node = MustFind(location.node);
  ObjectPool& pool = node.PoolAt(location.offset);
  ZP_TRY(pool.Pin(location.offset, location.length));
  if (handles_->Lookup(slot.handle()) != word) {
    pool.Unpin(location.offset, location.length);
    return Error{Errc::kBusy, 0, "an object that was just moved"};
  }
  return std::span<const std::byte>(node.arena->At(location.offset), location.length);
}

void PageStore::Unpin(Slot slot) {
  const Location location = Location::Decode(handles_->Lookup(slot.handle()));
  MustFind(location.node).PoolAt(location.offset).Unpin(location.offset, location.length);
}

Status PageStore::MoveObject(Slot slot, NodeId to) {
  const uint64_t word = handles_->Lookup(slot.handle());
  const Location from = Location::Decode(word);
  ZP_CHECK(from.is_readable(), "move of a stale handle");
  if (from.node == to) return OkStatus();
  if (!NodeAccepts(to)) return Error{Errc::kNoMemory, 0, "a node that is closed"};
  std::optional<ObjectMove> move = MoveOf(slot.handle(), word, MustFind(to));
  if (move.has_value()) mover_->Move(std::span(&*move, 1));
  if (move.has_value() && move->outcome == ObjectMove::Outcome::kMoved) return OkStatus();
  if (move.has_value() && move->outcome == ObjectMove::Outcome::kNoRoom)
    return Error{Errc::kNoMemory, 0, "room on the node"};
  return Error{Errc::kBusy, 0, "an object that is pinned or was just moved"};
}

std::optional<ObjectMove> PageStore::MoveOf(Handle handle, uint64_t word, const Node& target) const {
  const Location from = Location::Decode(word);
  const Node& source = MustFind(from.node);
  const FrameOwner kind = source.arena->tag(static_cast<uint32_t>(from.offset / kSpanBytes)).owner;
  // While the object is there its span has the tag of its kind; after that the tag may be another's.
  if (kind == FrameOwner::kNone || handles_->Lookup(handle) != word) return std::nullopt;
  ObjectMove move;
  move.handle = handle;
  move.word = word;
  move.from = &source.PoolOf(kind);
  move.from_arena = source.arena.get();
  move.to = &target.PoolOf(kind);
  move.to_arena = target.arena.get();
  return move;
}

void PageStore::SetNodeAccepts(NodeId node, bool accepts) {
  MustFind(node).accepts->store(accepts, std::memory_order_relaxed);
}

void PageStore::SetNodeCapacity(NodeId node, Bytes capacity) {
  MustFind(node).arena->set_limit_frames(capacity.value() / kPageBytes);
}

NodeStats PageStore::node_stats(NodeId id) const {
  const Node& node = MustFind(id);
  NodeStats stats;
  stats.node = id;
  stats.pool_bytes = node.arena->frames_in_use() * kPageBytes;
  const uint64_t limit = node.arena->limit_frames();
  stats.capacity_bytes = limit > ~uint64_t{0} / kPageBytes / 2 ? ~uint64_t{0} : limit * kPageBytes;
  stats.accepts = NodeAccepts(id);
  for (const ObjectPool* pool : node.pools()) {
    const ObjectPoolStats its = pool->stats();
    stats.objects += its.objects;
    stats.stored_bytes += its.stored_bytes;
  }
  return stats;
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
    stats.metadata_bytes += node.arena->metadata_bytes();
    for (const ObjectPool* pool : node.pools()) {
      const ObjectPoolStats its = pool->stats();
      stats.metadata_bytes += its.metadata_bytes;
      stats.stored_pages += its.objects;
      stats.stored_bytes += its.stored_bytes;
    }
    for (uint32_t i = 0; i < ZsmallocPool::kClassCount; ++i) {
      const SizeClassStats from = node.zsmalloc->class_stats(i);
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
    }
  }
  return stats;
}

void PageStore::DebugVerify() const {
  for (const Node& node : nodes_) {
    for (const ObjectPool* pool : node.pools()) pool->DebugVerify();
  }
}

Result<Location> PageStore::Place(std::span<const std::byte> bytes, CodecId codec, FrameOwner pool,
                                  NodeId preferred, Limits limits) {
  const uint32_t length = static_cast<uint32_t>(bytes.size());
  Error error{Errc::kNoMemory, 0, "a node that takes objects"};
  // Nodes that take nothing come last, and only for what would be lost otherwise.
  for (const bool accepting : {true, false}) {
    if (!accepting && limits == Limits::kKept) break;
    for (const uint8_t index : options_.topology.FallbackOrder(preferred)) {
      const Node& node = nodes_[index];
      if (node.accepts->load(std::memory_order_relaxed) != accepting) continue;
      const Result<uint64_t> offset = node.PoolOf(pool).Allocate(length, limits);
      if (!offset.ok()) {
        error = offset.error();
        continue;
      }
      node.arena->Write(*offset, bytes);
      Location location;
      location.node = node.arena->node();
      location.offset = *offset;
      location.codec = codec;
      location.length = length;
      return location;
    }
  }
  return error;
}

}  // namespace zp
