// HandleTable against a map: random insertions, moves, references and frees, alone with a process that comes
// back now and then, and from several threads.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "libzpool/pool/handle_table.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

uint64_t FirstSeed(uint64_t otherwise) {
  const char* const fixed = std::getenv("ZP_SEED");
  return fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : otherwise;
}

struct Object {
  Location location;
  Owner owner;
  uint32_t checksum = 0;
  uint32_t refs = 1;
  uint64_t word = 0;  // as it was published last
};

class Model {
 public:
  // Three steps of growth, so that the table grows, and is full at times. Entry 0 is no handle.
  static constexpr uint64_t kEntries = 3 * 2048 - 1;

  explicit Model(uint64_t seed) : random_(seed) {}

  void Step() {
    const uint64_t kind = random_() % 16;
    // It fills up and empties in turn.
    const bool grows = (steps_++ / 15000) % 2 == 0;
    if (live_.empty() || kind < (grows ? 7u : 3u) || (grows && kind > 12)) return Insert();
    const auto it = Any();
    const Handle handle(it->first);
    Object& object = it->second;
    switch (kind) {
      case 7:
        return Move(handle, object);
      case 8:
        return MoveByAStaleWord(handle, object);
      case 9:
        object.owner = RandomOwner();
        return table_->SetOwner(handle, object.owner);
      case 10:
        if (random_() % 2 == 0) {
          ASSERT_TRUE(table_->Ref(handle).ok());
        } else {
          table_->RefOrPin(handle);
        }
        ++object.refs;
        return;
      case 11:
        return ExpectStale();
      default:
        return Release(it);
    }
  }

  // The process is gone; what is live comes back, and is held as often as the next one finds.
  void ComeBack() {
    table_ = HandleTable::Recover(UniqueFd(dup(table_->fd()))).value();
    for (auto& [number, object] : live_) {
      ASSERT_EQ(table_->refs(Handle(number)), 0u);
      for (uint32_t i = 0; i < object.refs; ++i) ASSERT_TRUE(table_->Adopt(Handle(number)));
    }
    for (const auto& [number, word] : stale_) ASSERT_FALSE(table_->Adopt(Handle(number))) << number;
    table_->StartAgain();
  }

  void Verify() const {
    for (const auto& [number, object] : live_) {
      const Handle handle(number);
      ASSERT_EQ(table_->Lookup(handle), object.word);
      const Location location = Location::Decode(object.word);
      ASSERT_TRUE(location.is_readable());
      ASSERT_EQ(location.offset, object.location.offset);
      ASSERT_EQ(location.length, object.location.length);
      ASSERT_EQ(table_->LookupAt(handle, object.location.node, object.location.offset), object.word);
      ASSERT_EQ(table_->checksum(handle), object.checksum);
      ASSERT_EQ(table_->refs(handle), object.refs);
      ASSERT_EQ(table_->owner(handle), object.owner);
    }
  }
  uint64_t refused() const { return refused_; }

 private:
  using Live = std::map<uint32_t, Object>;

  Owner RandomOwner() {
    return {static_cast<uint32_t>(random_() % Owner::kClientLimit), PageIndex(random_() % kPageIndexLimit)};
  }
  void Place(Location* location) {
    location->node = NodeId(static_cast<uint8_t>(random_() % kMaxNodes));
    location->offset = (random_() & ((uint64_t{1} << Location::kOffsetBits) - 1)) * Location::kGranuleBytes;
  }
  Live::iterator Any() {
    auto it = live_.lower_bound(static_cast<uint32_t>(random_() % kEntries));
    return it == live_.end() ? live_.begin() : it;
  }

  void Insert() {
    Object object;
    Place(&object.location);
    object.location.length = static_cast<uint32_t>(1 + random_() % kPageBytes);
    object.owner = RandomOwner();
    object.checksum = static_cast<uint32_t>(random_());
    const Result<Handle> handle = table_->Insert(object.location, object.owner, object.checksum);
    ASSERT_EQ(handle.ok(), live_.size() < kEntries);
    if (!handle.ok()) {
      ASSERT_EQ(handle.error().code, Errc::kNoMemory);
      ++refused_;
      return;
    }
    object.word = table_->Lookup(*handle);
    const auto freed = stale_.find(handle->value());
    if (freed != stale_.end()) {
      ASSERT_NE(object.word & kGeneration, freed->second & kGeneration) << "a use of it was like the last";
      stale_.erase(freed);
    }
    ASSERT_TRUE(live_.emplace(handle->value(), object).second) << "a handle that is in use";
  }

  void Move(Handle handle, Object& object) {
    Location to = Location::Decode(object.word);
    Place(&to);
    ASSERT_TRUE(table_->CompareExchangeLocation(handle, object.word, to.Encode()));
    object.location.node = to.node;
    object.location.offset = to.offset;
    object.word = to.Encode();
  }

  // Whoever goes by what the entry was before changes nothing.
  void MoveByAStaleWord(Handle handle, const Object& object) {
    Location before = Location::Decode(object.word);
    if (random_() % 2 == 0) {
      before.generation = static_cast<uint8_t>((before.generation + 15) % 16);
    } else {
      before.offset ^= Location::kGranuleBytes;
      ASSERT_EQ(table_->LookupAt(handle, before.node, before.offset), std::nullopt);
    }
    Location to = before;
    Place(&to);
    ASSERT_FALSE(table_->CompareExchangeLocation(handle, before.Encode(), to.Encode()));
    ASSERT_EQ(table_->Lookup(handle), object.word);
  }

  void Release(Live::iterator it) {
    const Handle handle(it->first);
    ASSERT_EQ(table_->Unref(handle), it->second.refs == 1);
    if (--it->second.refs != 0) return;
    const Location was = table_->Retire(handle);
    ASSERT_EQ(was.offset, it->second.location.offset);
    ASSERT_EQ(was.node, it->second.location.node);
    table_->Recycle(handle);
    stale_[it->first] = it->second.word;
    live_.erase(it);
  }

  void ExpectStale() {
    const auto it = stale_.lower_bound(static_cast<uint32_t>(random_() % kEntries));
    if (it == stale_.end()) return;
    const Handle handle(it->first);
    ASSERT_FALSE(Location::Decode(table_->Lookup(handle)).is_readable());
    ASSERT_FALSE(table_->CompareExchangeLocation(handle, it->second, it->second));
  }

  static constexpr uint64_t kGeneration = (1u << Location::kGenerationBits) - 1;

  std::mt19937_64 random_;
  std::unique_ptr<HandleTable> table_ = HandleTable::Create(kEntries).value();
  Live live_;
  std::map<uint32_t, uint64_t> stale_;  // by handle that is free: its word when it was last live
  uint64_t steps_ = 0;
  uint64_t refused_ = 0;
};

TEST(HandleTableModel, AgreesWithAMapUnderRandomOperations) {
  const uint64_t first = FirstSeed(1);
  const uint64_t seeds = testing::Rounds(4, 200);
  uint64_t refused = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE("replay: ZP_SEED=" + std::to_string(seed));
    Model model(seed);
    for (int i = 0; i < 60000; ++i) {
      model.Step();
      if (i % 4000 == 3999) model.Verify();
      if (i % 7000 == 6999) model.ComeBack();
      if (HasFatalFailure()) return;
    }
    model.Verify();
    if (HasFatalFailure()) return;
    refused += model.refused();
  }
  EXPECT_GT(refused, 0u) << "the table was never full";
}

// What a thread publishes all can look up, move and hold: whoever holds an object finds its own words,
// however often others move it, and a mover that comes too late changes nothing of the entry's next object.
TEST(HandleTableStress, HoldersFindTheirOwnWhileOthersMoveIt) {
  constexpr uint32_t kThreads = 4;
  constexpr uint64_t kHandles = 512;
  const uint64_t seed = FirstSeed(1);
  SCOPED_TRACE("replay: ZP_SEED=" + std::to_string(seed));
  auto table = HandleTable::Create(kHandles).value();
  std::atomic<bool> wrong{false};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> moved{0};
  // Checksum, owner and length say the same number. An object's place is any.
  const auto is_own = [&](Handle handle, uint32_t number) {
    const Location location = Location::Decode(table->Lookup(handle));
    return location.is_readable() && location.length == number % kPageBytes + 1 &&
           table->checksum(handle) == number && table->owner(handle).page == PageIndex(number);
  };
  std::vector<std::thread> movers;
  for (uint32_t t = 0; t < 2; ++t) {
    movers.emplace_back([&, t] {
      std::mt19937_64 random(seed * 100 + 50 + t);
      while (!stop.load(std::memory_order_relaxed)) {
        const Handle handle(static_cast<uint32_t>(1 + random() % kHandles));
        const uint64_t word = table->Lookup(handle);
        Location to = Location::Decode(word);
        if (!to.is_readable()) continue;
        to.offset = random() % (uint64_t{1} << 30) * Location::kGranuleBytes;
        if (table->CompareExchangeLocation(handle, word, to.Encode()))
          moved.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  std::vector<std::thread> holders;
  for (uint32_t t = 0; t < kThreads; ++t) {
    holders.emplace_back([&, t] {
      std::mt19937_64 random(seed * 100 + t);
      std::vector<std::pair<Handle, uint32_t>> held;
      uint32_t number = t << 28;
      // To the end only when there was something to meet.
      for (int i = 0; i < 20000 || moved.load(std::memory_order_relaxed) < 1000; ++i) {
        if (held.empty() || (random() % 2 == 0 && held.size() < kHandles / kThreads)) {
          Location location;
          location.length = ++number % kPageBytes + 1;
          const Result<Handle> handle = table->Insert(location, {t, PageIndex(number)}, number);
          if (handle.ok()) held.emplace_back(*handle, number);
          if (!handle.ok()) wrong = true;  // there is room for all that they hold
          continue;
        }
        std::swap(held[random() % held.size()], held.back());
        const auto [handle, its] = held.back();
        if (!is_own(handle, its)) wrong = true;
        if (random() % 4 == 0) {
          if (!table->Ref(handle).ok() || table->Unref(handle)) wrong = true;
        }
        if (random() % 2 == 0) continue;
        held.pop_back();
        if (!table->Unref(handle)) wrong = true;
        if (table->Retire(handle).length != its % kPageBytes + 1) wrong = true;
        table->Recycle(handle);
      }
      for (const auto& [handle, its] : held) {
        if (!is_own(handle, its) || !table->Unref(handle)) wrong = true;
        table->Retire(handle);
        table->Recycle(handle);
      }
    });
  }
  for (std::thread& holder : holders) holder.join();
  stop.store(true);
  for (std::thread& mover : movers) mover.join();
  EXPECT_FALSE(wrong);
  EXPECT_GT(moved.load(), 0u);
  for (uint32_t i = 1; i <= kHandles; ++i)
    EXPECT_FALSE(Location::Decode(table->Lookup(Handle(i))).is_readable());
}

}  // namespace
}  // namespace zp
