#include "tests/libzpool/crash_worker.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "libzpool/base/pause_point.h"

namespace zp::testing {
namespace {

using Exchange = OffsetIndex::Exchange;

constexpr int kMostTurns = 2000;

Shadow* armed = nullptr;

void DieAtPoint(const char* name) {
  if (armed->point[0] != '\0' && std::strcmp(armed->point.data(), name) != 0) return;
  if (armed->countdown.fetch_sub(1) != 1) return;
  // The others may be waiting for this one.
  const uint64_t last = armed->operations.load() + armed->patience.load();
  for (int turns = 0; turns < kMostTurns && armed->operations.load() < last; ++turns) sched_yield();
  ::kill(::getpid(), SIGKILL);
}

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "crash worker: %s\n", what);
  ::_exit(3);
}
void Must(bool condition, const char* what) {
  if (!condition) Fail(what);
}

}  // namespace

void CrashContent(uint64_t content, PageBuffer* page) {
  const unsigned words = static_cast<unsigned>(content * 7 % 90);
  switch (content % 8) {
    case 0:
      return FillPage(content % 16 == 0 ? content : ~content, *page);
    case 1:
      return FillPage((content & 0x7fff) * 0x0001000100010001 | 0x8000800080008000, *page);
    case 2:
      return MakePage(content, 1, 512, page);  // raw
    case 3:
      return MakePage(content, 1, 300, page);
    default:
      return MakePage(content, 1, 4 + words, page);
  }
}

CrashWorkers::CrashWorkers(Shadow& shadow, Revived& world, uint64_t seed)
    : shadow_(shadow), world_(world), seed_(seed), compactor_(*world.store, {}) {}

void CrashWorkers::ArmPausePoints(Shadow& shadow) {
  armed = &shadow;
  SetPauseHandler(shadow.countdown.load() > 0 ? &DieAtPoint : nullptr);
}

void CrashWorkers::Run(uint32_t threads, uint64_t operations) {
  operations_ = operations;
  std::vector<std::unique_ptr<Thread>> all;
  for (uint32_t i = 0; i < threads; ++i) {
    all.push_back(std::make_unique<Thread>());
    all.back()->number = i;
    all.back()->random.seed(seed_ * 31 + i);
  }
  std::vector<std::thread> others;
  for (uint32_t i = 1; i < threads; ++i) others.emplace_back([&, i] { Work(*all[i]); });
  Work(*all[0]);
  for (std::thread& other : others) other.join();
  ::_exit(0);
}

void CrashWorkers::Work(Thread& thread) {
  while (shadow_.operations.fetch_add(1) < operations_) Step(thread);
}

void CrashWorkers::Step(Thread& thread) {
  const uint64_t dice = thread.Below(100);
  const uint32_t index = static_cast<uint32_t>(thread.Below(kCrashIndexes));
  if (dice < 3) return Compact(thread);
  if (dice < 6) {
    const uint32_t other = static_cast<uint32_t>(thread.Below(kCrashIndexes));
    if (other == index) return;
    const std::unique_lock first(mu_[std::min(index, other)]);
    const std::unique_lock second(mu_[std::max(index, other)]);
    if (shadow_.exists[index] && !shadow_.exists[other]) Clone(thread, index, other);
    return;
  }
  if (dice < 12) {
    const std::unique_lock lock(mu_[index]);
    if (!shadow_.exists[index]) return;
    if (dice < 8) return DropRange(thread, index);
    if (dice < 11) return Rekey(thread, index);
    if (index != 0) DropClone(thread, index);
    return;
  }
  const std::shared_lock lock(mu_[index]);
  if (!shadow_.exists[index]) return;
  // A page's slot is one thread's, in all indexes.
  const uint32_t page =
      static_cast<uint32_t>(thread.Below(kCrashPages / kCrashThreads)) * kCrashThreads + thread.number;
  if (dice < 25) return TakeHome(thread, index, page);
  if (dice < 30) return Move(thread, index, page);
  Replace(thread, index, page);
}

void CrashWorkers::Begin(Thread& thread, CrashOp op, const Intent& intent) {
  Intent& its = shadow_.intents[thread.number];
  its.index = intent.index;
  its.other = intent.other;
  its.begin = intent.begin;
  its.end = intent.end;
  its.to = intent.to;
  its.before = intent.before;
  its.after = intent.after;
  its.op.store(op, std::memory_order_seq_cst);
}

void CrashWorkers::End(Thread& thread) {
  shadow_.intents[thread.number].op.store(CrashOp::kNone, std::memory_order_seq_cst);
}

void CrashWorkers::Check(Thread& thread, Slot slot, uint64_t content) {
  Must(world_.store->Load(slot, thread.out, thread.scratch, kCrashDomain) == LoadOutcome::kLoaded,
       "a page cannot be loaded");
  CrashContent(content, &thread.page);
  Must(thread.page == thread.out, "a page has another content");
}

// As an eviction: the slot is busy while the page is stored. Or a page that is stored is replaced in one
// step.
void CrashWorkers::Replace(Thread& thread, uint32_t index, uint32_t page) {
  OffsetIndex& its = world_.index(index);
  PageStore& store = *world_.store;
  uint64_t& content = shadow_.contents[index][page];
  const Slot old = its.Get(PageOf(page));
  Must(old.is_empty() == (content == 0), "a page is not where it should be");
  uint64_t next = shadow_.next_content[thread.number].fetch_add(1) * kCrashThreads + thread.number + 1;
  if (content != 0 && thread.Below(3) == 0) next = 0;
  Intent intent;
  intent.index = index;
  intent.begin = page;
  intent.end = page + 1;
  intent.before = content;
  intent.after = next;
  Begin(thread, CrashOp::kReplace, intent);
  Slot slot = Slot::Empty();
  Slot expected = old;
  bool stored = true;
  if (next != 0) {
    if (old.is_empty() && its.CompareExchange(PageOf(page), old, Slot::Busy(2, page)) == Exchange::kDone)
      expected = Slot::Busy(2, page);
    CrashContent(next, &thread.page);
    const Owner owner{1, PageOf(page), kCrashDomain};
    const NodeId node(static_cast<uint8_t>(thread.Below(2)));
    store.set_pool(thread.Below(3) == 0 ? PoolKind::kZbud : PoolKind::kZsmalloc);
    const Result<Slot> kept = thread.Below(16) == 0 ? store.StoreRaw(thread.page, owner, node)
                                                    : store.Store(thread.page, owner, node, thread.scratch);
    stored = kept.ok();
    slot = stored ? *kept : old;
  }
  if (its.CompareExchange(PageOf(page), expected, slot) != Exchange::kDone) {
    Must(expected == old, "a busy slot was changed by another");
    if (stored) store.Release(slot);  // no node to un-share the leaf with
    stored = false;
  } else if (stored) {
    store.Release(old);
  }
  if (stored) content = next;
  End(thread);
}

void CrashWorkers::TakeHome(Thread& thread, uint32_t index, uint32_t page) {
  OffsetIndex& its = world_.index(index);
  uint64_t& content = shadow_.contents[index][page];
  const Slot slot = its.Get(PageOf(page));
  Must(slot.is_stored() == (content != 0), "a page is not where it should be");
  if (content == 0) return;
  Intent intent;
  intent.index = index;
  intent.begin = page;
  intent.end = page + 1;
  intent.before = content;
  Begin(thread, CrashOp::kTakeHome, intent);
  if (its.CompareExchange(PageOf(page), slot, slot.Filling()) == Exchange::kDone) {
    Check(thread, slot, content);
    const bool home = thread.Below(2) == 0;
    Must(its.CompareExchange(PageOf(page), slot.Filling(), home ? Slot::Empty() : slot) == Exchange::kDone,
         "a filling slot was changed by another");
    if (home) {
      world_.store->Release(slot);
      content = 0;
    }
  }
  End(thread);
}

void CrashWorkers::Move(Thread& thread, uint32_t index, uint32_t page) {
  const Slot slot = world_.index(index).Get(PageOf(page));
  if (!slot.is_handle()) return;
  (void)world_.store->MoveObject(slot, NodeId(static_cast<uint8_t>(thread.Below(2))));
  Check(thread, slot, shadow_.contents[index][page]);
}

void CrashWorkers::Compact(Thread& thread) {
  const NodeId node(static_cast<uint8_t>(thread.Below(2)));
  switch (thread.Below(4)) {
    case 0:
      compactor_.DrainStep(node, MiB(1), MigrateMode::kSyncLight);
      break;
    case 1:
      compactor_.EmptyBlocksStep(node, MiB(1));
      break;
    case 2:
      world_.store->Trim();
      break;
    default:
      compactor_.CompactStep(node, MiB(1));
      break;
  }
}

void CrashWorkers::DropPages(Thread& thread, uint32_t index, uint32_t begin, uint32_t end) {
  Intent intent;
  intent.index = index;
  intent.begin = begin;
  intent.end = end;
  Begin(thread, CrashOp::kDropRange, intent);
  std::vector<Slot> dropped;
  world_.index(index).DropRange(PageOf(begin), PageOf(end - 1) + PageCount(1), &dropped);
  for (const Slot slot : dropped) world_.store->Release(slot);
  Contents& contents = shadow_.contents[index];
  std::fill(contents.begin() + begin, contents.begin() + end, 0);
  End(thread);
}

void CrashWorkers::DropRange(Thread& thread, uint32_t index) {
  const uint32_t begin = static_cast<uint32_t>(thread.Below(kCrashPages));
  const uint32_t most = thread.Below(3) == 0 ? kCrashPages : 80;
  DropPages(thread, index, begin,
            std::min<uint32_t>(kCrashPages, begin + 1 + static_cast<uint32_t>(thread.Below(most))));
}

void CrashWorkers::Rekey(Thread& thread, uint32_t index) {
  const uint32_t count = 1 + static_cast<uint32_t>(thread.Below(kClusterPages / 2));
  const auto place = [&] {
    return static_cast<uint32_t>(thread.Below(kClusters.size()) * kClusterPages +
                                 thread.Below(kClusterPages - count));
  };
  const uint32_t begin = place();
  const uint32_t to = place();
  if (begin < to + count && to < begin + count) return;
  DropPages(thread, index, to, to + count);
  Intent intent;
  intent.index = index;
  intent.begin = begin;
  intent.end = begin + count;
  intent.to = to;
  Begin(thread, CrashOp::kRekey, intent);
  if (world_.index(index).Rekey(PageOf(begin), PageOf(to), PageCount(count)).ok()) {
    Contents& contents = shadow_.contents[index];
    std::copy_n(contents.begin() + begin, count, contents.begin() + to);
    std::fill_n(contents.begin() + begin, count, 0);
  }
  End(thread);
}

void CrashWorkers::Clone(Thread& thread, uint32_t index, uint32_t other) {
  Intent intent;
  intent.index = index;
  intent.other = other;
  Begin(thread, CrashOp::kClone, intent);
  Result<OffsetIndex> clone = world_.index(index).Clone(&shadow_.roots[other]);
  Must(clone.ok(), "an index cannot be cloned");
  world_.indexes[other] = std::make_unique<OffsetIndex>(std::move(*clone));
  shadow_.contents[other] = shadow_.contents[index];
  shadow_.exists[other] = true;
  End(thread);
}

void CrashWorkers::DropClone(Thread& thread, uint32_t index) {
  Intent intent;
  intent.index = index;
  Begin(thread, CrashOp::kDropClone, intent);
  world_.indexes[index].reset();
  shadow_.contents[index] = {};
  shadow_.exists[index] = false;
  End(thread);
}

}  // namespace zp::testing
