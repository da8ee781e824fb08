// A process works on a store and its indexes and is killed, at any instruction; the next one has what was
// published: each page is what the shadow says, and where an operation was under way what was before it, or
// after. That one is killed in its turn.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "libzpool/base/pause_point.h"
#include "tests/libzpool/crash_shadow.h"
#include "tests/libzpool/crash_worker.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

using testing::CrashContent;
using testing::CrashOp;
using testing::CrashWorkers;
using testing::Intent;
using testing::kCrashDomain;
using testing::kCrashIndexes;
using testing::kCrashPages;
using testing::kCrashThreads;
using testing::PageBuffer;
using testing::PageOf;
using testing::Remains;
using testing::Revived;
using testing::Roots;
using testing::Shadow;
using testing::ShareRemains;
using testing::TryRevive;

// Where to kill, beside anywhere.
constexpr const char* kPoints[] = {
    "store.placed",      "handles.taken",        "store.published",     "release.unreferenced",
    "release.retired",   "release.freed",        "frames.tagged",       "frames.populated",
    "frames.punched",    "frames.untagged",      "migrate.object",      "migrate.published",
    "compact.published", "object.copied",        "object.published",    "index.node_made",
    "index.node_linked", "index.unlinked",       "index.slot_dropped",  "index.clone",
    "rekey.published",   "recover.span_cleared", "recover.orphan_freed"};

uint64_t FrameBytesHeld(const PageStore& store) {
  uint64_t bytes = 0;
  store.ForEachMemfd([&](const char* name, int fd) {
    if (std::strncmp(name, "frames-", 7) != 0) return;
    struct stat st {};
    EXPECT_EQ(fstat(fd, &st), 0);
    const uint64_t tags = static_cast<uint64_t>(st.st_size) / kSpanBytes * sizeof(uint16_t);
    bytes += static_cast<uint64_t>(st.st_blocks) * 512 - kPageBytes -
             (tags + kPageBytes - 1) / kPageBytes * kPageBytes;
  });
  return bytes;
}

// One line of processes, each of which takes over from the one before.
class Lineage {
 public:
  explicit Lineage(uint64_t seed) : random_(seed), seed_(seed) {
    // Small, so that frames come and go all the time, and stores are refused.
    options_.topology = Topology::Made({NodeId(0), NodeId(1)}, {{10, 20}, {20, 10}}).value();
    options_.capacity = Bytes((150 + random_() % 400) * kPageBytes);
    void* const memory =
        ::mmap(nullptr, sizeof(Shadow), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    shadow_ = std::shared_ptr<Shadow>(new (memory) Shadow, [](Shadow* s) { ::munmap(s, sizeof(Shadow)); });
    world_.roots = std::shared_ptr<Roots>(shadow_, &shadow_->roots);
    world_.store = PageStore::Create(options_).value();
    world_.arena = IndexArena::Create(1500).value();
    world_.indexes.resize(testing::kMostRoots);
    world_.indexes[0] = std::make_unique<OffsetIndex>(
        OffsetIndex::Create(*world_.arena, *world_.store, &shadow_->roots[0]).value());
    shadow_->exists[0] = true;
  }
  ~Lineage() {
    if (world_.store != nullptr) world_.Abandon();
  }

  // A process works, and is killed; the next one takes over, perhaps after some that were killed while they
  // tried to.
  void Live() {
    ++life_;
    Plan plan = NewPlan();
    SCOPED_TRACE(plan.Name(seed_, life_));
    const uint64_t worker_seed = random_();
    RunAndKill(plan, [&] { CrashWorkers(*shadow_, world_, worker_seed).Run(plan.threads, plan.operations); });
    if (::testing::Test::HasFatalFailure()) return;
    const Remains remains = ShareRemains(*world_.store, *world_.arena, world_.roots);
    world_.Abandon();
    while (random_() % 4 == 0) {
      Plan again = NewPlan();
      again.kill_at = 0;
      again.point = nullptr;  // any, or some time
      again.countdown = random_() % 2 == 0 ? 1 + static_cast<int64_t>(random_() % 12) : 0;
      SCOPED_TRACE("a recovery that is killed, too: " + again.Name(seed_, life_));
      RunAndKill(again, [&] {
        const auto revived = TryRevive(options_, SameFiles(remains));
        ::_exit(revived != nullptr ? 0 : 5);  // and not a destructor
      });
      if (::testing::Test::HasFatalFailure()) return;
    }
    std::unique_ptr<Revived> revived = TryRevive(options_, SameFiles(remains));
    ASSERT_NE(revived, nullptr) << "recovery was refused";
    world_ = std::move(*revived);
    Verify();
  }

  // Everything is dropped, and nothing is left.
  void End() {
    for (std::unique_ptr<OffsetIndex>& index : world_.indexes) index.reset();
    world_.store->Trim();
    world_.store->DebugVerify();
    EXPECT_EQ(world_.arena->nodes_in_use(), 0u);
    EXPECT_EQ(world_.store->stats().stored_pages, 0u);
    EXPECT_EQ(world_.store->pool_bytes(), 0u);
    EXPECT_EQ(FrameBytesHeld(*world_.store), 0u);
  }

  uint64_t interrupted(CrashOp op) const { return interrupted_[static_cast<size_t>(op)]; }

 private:
  struct Plan {
    uint32_t threads;
    uint64_t operations;
    const char* point;  // null: any
    int64_t countdown;  // at which pause point; 0: at none
    uint64_t kill_at;   // when so many operations were begun; 0: never
    std::string Name(uint64_t seed, int life) const {
      return "replay: ZP_SEED=" + std::to_string(seed) + ", life " + std::to_string(life) + ", " +
             std::to_string(threads) + " threads, killed at " +
             (countdown > 0 ? std::string(point != nullptr ? point : "a pause point") + " number " +
                                  std::to_string(countdown)
                            : "operation " + std::to_string(kill_at));
    }
  };

  Plan NewPlan() {
    Plan plan{};
    plan.threads = 1 + static_cast<uint32_t>(random_() % kCrashThreads);
    plan.operations = 20 + random_() % 1500;
    switch (random_() % 3) {
      case 0:
        plan.point = kPoints[random_() % std::size(kPoints)];
        plan.countdown = 1 + static_cast<int64_t>(random_() % (random_() % 2 == 0 ? 3 : 40));
        break;
      case 1:
        plan.countdown = 1 + static_cast<int64_t>(random_() % 5000);
        break;
      default:
        plan.kill_at = 1 + random_() % plan.operations;
        break;
    }
    return plan;
  }

  Remains SameFiles(const Remains& remains) const {
    Remains again = remains.Share();
    again.roots = remains.roots;
    return again;
  }

  void RunAndKill(const Plan& plan, const std::function<void()>& process) {
    shadow_->operations = 0;
    shadow_->point = {};
    if (plan.point != nullptr) std::strncpy(shadow_->point.data(), plan.point, shadow_->point.size() - 1);
    shadow_->countdown = plan.countdown;
    shadow_->patience = plan.threads > 1 ? random_() % 40 : 0;
    std::fflush(nullptr);  // what is buffered is said once
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      CrashWorkers::ArmPausePoints(*shadow_);
      process();
      ::_exit(4);
    }
    int status = 0;
    pid_t ended = 0;
    // Yielding makes the moment a random one.
    for (uint64_t turns = random_() % 400; plan.countdown == 0;) {
      ended = ::waitpid(pid, &status, WNOHANG);
      if (ended != 0) break;
      if (plan.kill_at != 0 ? shadow_->operations.load() >= plan.kill_at : turns-- == 0) {
        ::kill(pid, SIGKILL);
        break;
      }
      sched_yield();
    }
    if (ended == 0) ended = ::waitpid(pid, &status, 0);
    ASSERT_EQ(ended, pid);
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    ASSERT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << "status " << status;
  }

  void Verify() {
    const RecoveryStats& stats = world_.stats;
    EXPECT_EQ(stats.dropped(), 0u) << stats.bad_location << ' ' << stats.no_memory << ' ' << stats.overlaps;
    EXPECT_EQ(stats.lost_slots, 0u);
    EXPECT_EQ(stats.cut_branches, 0u);
    world_.store->DebugVerify();
    EXPECT_EQ(FrameBytesHeld(*world_.store), world_.store->pool_bytes());
    SettleRoots();
    for (uint32_t index = 0; index < kCrashIndexes; ++index) ExpectBeforeOrAfter(index);
    if (::testing::Test::HasFailure()) return;
    FinishOperations();
    for (uint32_t index = 0; index < kCrashIndexes; ++index) ExpectContents(index);
    EXPECT_EQ(StoredObjects(), world_.store->stats().stored_pages) << "objects that nobody holds";
    world_.store->DebugVerify();
  }

  // An interrupted clone is there or not, and so is one that was being dropped.
  void SettleRoots() {
    for (Intent& intent : shadow_->intents) {
      const CrashOp op = intent.op.load();
      ++interrupted_[static_cast<size_t>(op)];
      if (op != CrashOp::kClone && op != CrashOp::kDropClone) continue;
      const uint32_t index = op == CrashOp::kClone ? intent.other : intent.index;
      const bool is_there = shadow_->roots[index].load() != 0;
      shadow_->exists[index] = is_there;
      if (op == CrashOp::kClone) {
        shadow_->contents[index] = shadow_->contents[intent.index];
      } else {
        // Its contents may be forgotten already; the tree cannot be there then.
        EXPECT_FALSE(is_there && shadow_->contents[index] == testing::Contents{} &&
                     world_.index(index).stored() != 0);
      }
      if (!is_there) shadow_->contents[index] = {};
      intent.op = CrashOp::kNone;
    }
    for (uint32_t index = 0; index < kCrashIndexes; ++index) {
      EXPECT_EQ(world_.indexes[index] != nullptr, shadow_->exists[index].load()) << "index " << index;
    }
  }

  bool Is(uint32_t index, uint32_t page, uint64_t content) {
    Slot slot = world_.index(index).Get(PageOf(page));
    if (slot.is_busy()) slot = Slot::Empty();  // on its way in: not stored yet
    slot = slot.Settled();
    if (content == 0 || slot.is_empty()) return content == 0 && slot.is_empty();
    CrashContent(content, &expected_);
    return world_.store->Load(slot, actual_, *scratch_, kCrashDomain) == LoadOutcome::kLoaded &&
           expected_ == actual_;
  }

  void ExpectBeforeOrAfter(uint32_t index) {
    if (!shadow_->exists[index]) return;
    const testing::Contents& contents = shadow_->contents[index];
    for (uint32_t page = 0; page < kCrashPages; ++page) {
      bool sound = Is(index, page, contents[page]);
      for (const Intent& intent : shadow_->intents) {
        const CrashOp op = intent.op.load();
        if (op == CrashOp::kNone || intent.index != index) continue;
        const uint32_t count = intent.end - intent.begin;
        const bool in_range = page >= intent.begin && page < intent.end;
        if (op == CrashOp::kRekey) {
          const bool in_target = page >= intent.to && page < intent.to + count;
          if (!in_range && !in_target) continue;
          const uint32_t source = in_range ? page : page - intent.to + intent.begin;
          const uint32_t target = source - intent.begin + intent.to;
          // The shadow may be at one place, or at both.
          const uint64_t moved = std::max(contents[source], contents[target]);
          sound = (Is(index, source, moved) && (Is(index, target, 0) || Is(index, target, moved))) ||
                  (Is(index, source, 0) && Is(index, target, moved));
        } else if (in_range) {
          sound = sound || Is(index, page, op == CrashOp::kReplace ? intent.before : 0) ||
                  Is(index, page, intent.after);
        }
      }
      ASSERT_TRUE(sound) << "index " << index << " page " << page << " slot "
                         << world_.index(index).Get(PageOf(page)).raw() << Operations();
    }
  }

  std::string Operations() const {
    std::string text;
    for (const Intent& intent : shadow_->intents) {
      text += std::string("; ") + testing::kCrashOpNames[static_cast<size_t>(intent.op.load())] +
              " of index " + std::to_string(intent.index) + " [" + std::to_string(intent.begin) + ", " +
              std::to_string(intent.end) + ") to " + std::to_string(intent.to);
    }
    return text;
  }

  // What the owner of the indexes does: operations are made once more, slots on their way are settled.
  void FinishOperations() {
    for (Intent& intent : shadow_->intents) {
      const CrashOp op = intent.op.exchange(CrashOp::kNone);
      testing::Contents& contents = shadow_->contents[intent.index];
      const uint32_t count = intent.end - intent.begin;
      if (op == CrashOp::kDropRange) {
        std::vector<Slot> dropped;
        world_.index(intent.index)
            .DropRange(PageOf(intent.begin), PageOf(intent.end - 1) + PageCount(1), &dropped);
        for (const Slot slot : dropped) world_.store->Release(slot);
        std::fill(contents.begin() + intent.begin, contents.begin() + intent.end, 0);
      } else if (op == CrashOp::kRekey) {
        ASSERT_TRUE(
            world_.index(intent.index).Rekey(PageOf(intent.begin), PageOf(intent.to), PageCount(count)).ok());
        for (uint32_t i = 0; i < count; ++i) {
          uint64_t& source = contents[intent.begin + i];
          uint64_t& target = contents[intent.to + i];
          target = std::max(source, target);
          source = 0;
        }
      } else if (op != CrashOp::kNone) {
        for (const uint64_t content : {intent.before, intent.after}) {
          if (Is(intent.index, intent.begin, content)) contents[intent.begin] = content;
        }
      }
    }
    uint64_t unsettled = 0;
    for (const testing::UnsettledPage& page : world_.unsettled) {
      const Slot settled = page.slot.is_busy() ? Slot::Empty() : page.slot.Settled();
      EXPECT_EQ(world_.index(page.root).CompareExchange(page.page, page.slot, settled),
                OffsetIndex::Exchange::kDone);
      ++unsettled;
    }
    EXPECT_LE(unsettled, kCrashThreads);
    for (uint32_t index = 0; index < kCrashIndexes; ++index) {
      if (shadow_->exists[index]) {
        EXPECT_EQ(world_.index(index).counts().busy, 0u);
      }
    }
  }

  void ExpectContents(uint32_t index) {
    if (!shadow_->exists[index]) return;
    uint64_t stored = 0;
    for (uint32_t page = 0; page < kCrashPages; ++page) {
      const uint64_t content = shadow_->contents[index][page];
      ASSERT_TRUE(Is(index, page, content)) << "index " << index << " page " << page;
      stored += content != 0 ? 1 : 0;
    }
    EXPECT_EQ(world_.index(index).stored(), stored);
  }

  // Objects that some index refers to; each has been counted as often as it is referred to.
  uint64_t StoredObjects() {
    std::vector<uint32_t> handles;
    for (const std::unique_ptr<OffsetIndex>& index : world_.indexes) {
      if (index == nullptr) continue;
      index->ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex, Slot slot) {
        if (slot.is_handle()) handles.push_back(slot.handle().value());
      });
    }
    std::sort(handles.begin(), handles.end());
    handles.erase(std::unique(handles.begin(), handles.end()), handles.end());
    return handles.size();
  }

  std::mt19937_64 random_;
  const uint64_t seed_;
  int life_ = 0;
  PageStore::Options options_;
  std::shared_ptr<Shadow> shadow_;
  Revived world_;
  std::array<uint64_t, std::size(testing::kCrashOpNames)> interrupted_{};
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  PageBuffer expected_, actual_;
};

TEST(CrashModel, TheNextProcessHasWhatWasPublished) {
  const char* const fixed = std::getenv("ZP_SEED");
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : 1;
  const uint64_t seeds = fixed != nullptr ? 1 : testing::Rounds(12, 400);
  std::array<uint64_t, std::size(testing::kCrashOpNames)> interrupted{};
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    Lineage lineage(seed);
    for (uint64_t life = 0; life < testing::Rounds(25, 25); ++life) {
      lineage.Live();
      ASSERT_FALSE(HasFailure()) << "see the trace for how to replay it";
    }
    lineage.End();
    for (size_t op = 0; op < interrupted.size(); ++op)
      interrupted[op] += lineage.interrupted(static_cast<CrashOp>(op));
  }
  if (fixed != nullptr || testing::IsSanitized()) return;
  // It means something only where operations were interrupted; of the few lives in a sanitized build none may
  // have been.
  const uint64_t dropped = interrupted[static_cast<size_t>(CrashOp::kDropRange)];
  EXPECT_GT(interrupted[static_cast<size_t>(CrashOp::kReplace)], 0u);
  EXPECT_GT(dropped + interrupted[static_cast<size_t>(CrashOp::kRekey)], 0u);
  for (size_t op = 0; op < interrupted.size(); ++op)
    std::printf("interrupted in %s: %llu\n", testing::kCrashOpNames[op],
                static_cast<unsigned long long>(interrupted[op]));
}

}  // namespace
}  // namespace zp
