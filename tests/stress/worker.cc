#include "tests/stress/worker.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace uzswap::stress {
namespace {

// How often each operation is drawn. Accesses dominate; what zeroes memory is kept rare, or nothing would be
// left to lose.
struct Weight {
  Op op;
  uint32_t weight;
};
constexpr Weight kAccess[] = {{Op::kRead, 600}, {Op::kWrite, 400}, {Op::kSystemCall, 20}};
constexpr Weight kMaps[] = {{Op::kDontNeed, 4}, {Op::kFree, 2},  {Op::kGuard, 3},
                            {Op::kMapOver, 3},  {Op::kRemap, 6}, {Op::kRemapKeep, 3},
                            {Op::kResize, 4},   {Op::kUnmap, 4}, {Op::kProtect, 4}};
constexpr Weight kHeap[] = {{Op::kRealloc, 4}, {Op::kFreeMalloc, 4}};
constexpr Weight kForks[] = {{Op::kForkSome, 2}, {Op::kForkAll, 1}, {Op::kForkWiped, 1}};

template <size_t kCount>
void Add(std::vector<Op>& ops, const Weight (&weights)[kCount]) {
  for (const Weight& entry : weights) ops.insert(ops.end(), entry.weight, entry.op);
}

int OpenDirect() {
  const char* directory = getenv("TMPDIR");
  const int fd =
      open(directory != nullptr ? directory : "/tmp", O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  return fd;
}

}  // namespace

Worker::Worker(World& world, uint32_t index)
    : world_(world),
      index_(index),
      random_(Scramble(world.options().seed + index + 1)),
      pipe_fd_(memfd_create("verifier", MFD_CLOEXEC)),
      direct_fd_(world.options().direct ? OpenDirect() : -1) {
  if (pipe_fd_ < 0) world_.reporter().Trouble("memfd_create failed");
}

Worker::~Worker() {
  close(pipe_fd_);
  if (direct_fd_ >= 0) close(direct_fd_);
}

void Worker::Lock(Range& range, uint32_t first, uint32_t most, uint32_t end) {
  range.first = first;
  range.count = 0;
  for (uint32_t unit = first; unit < end && range.count < std::min(most, kMaxRange); ++unit) {
    const auto state = world_.shadow().TryLock(unit);
    if (!state) return;
    range.state[range.count] = *state;
    range.at[range.count] = world_.shadow().address(unit);
    ++range.count;
    if (range.count == 1) world_.progress(index_).unit = unit;
  }
}

void Worker::Unlock(Range& range, Op op) {
  for (uint32_t i = 0; i < range.count; ++i) world_.shadow().Unlock(range.first + i, range.state[i], op);
}

void Worker::Check(Range& range, Op op, bool some) {
  for (uint32_t i = 0; i < range.count; ++i)
    world_.Check("a worker", op, range.first + i, range.at[i], range.state[i], some);
}

void Worker::LockMapped(Range& range, uint32_t most) {
  const uint32_t first = random_.Below(world_.memory().mapped_units());
  Lock(range, first, most, world_.memory().mapping_end(first));
}

void Worker::LockAnywhere(Range& range, uint32_t most) {
  const uint32_t first = random_.Below(world_.memory().shared_units());
  Lock(range, first, most, world_.memory().shared_units());
}

Block* Worker::LockBlock(Range& range) {
  range.count = 0;
  if (world_.memory().block_count() == 0) return nullptr;
  Block& block = world_.memory().block(random_.Below(world_.memory().block_count()));
  Lock(range, block.first, block.units, block.first + block.units);
  if (range.count == block.units) return &block;
  Unlock(range, Op::kRead);
  range.count = 0;
  return nullptr;
}

Area& Worker::LockArea(Range& range) {
  Area& area = world_.memory().area(index_, random_.Below(kAreasPerThread));
  // Nobody else asks for them, except one at a time a worker that is at its last verification already.
  for (;;) {
    Lock(range, area.first, kAreaUnits, area.first + kAreaUnits);
    if (range.count == kAreaUnits) return area;
    Unlock(range, Op::kRead);
    sched_yield();
  }
}

void Worker::Read() {
  Range range;
  LockAnywhere(range, random_.Below(4) == 0 ? 2 + random_.Below(30) : 1);
  Check(range, Op::kRead, random_.Below(2) == 0);
  Unlock(range, Op::kRead);
}

void Worker::Write() {
  Range range;
  LockAnywhere(range, random_.Below(8) == 0 ? 2 + random_.Below(14) : 1);
  const uint32_t how = random_.Below(4);
  for (uint32_t i = 0; i < range.count; ++i) {
    const uint32_t unit = range.first + i;
    if (how != 0) world_.Check("a worker", Op::kWrite, unit, range.at[i], range.state[i], how == 1);
    if (how < 2) {
      World::WriteAll(unit, range.at[i], range.state[i]);
    } else {
      World::WriteSome(unit, range.at[i], range.state[i], 1 + random_.Below(kUnitWords));
    }
  }
  Unlock(range, Op::kWrite);
}

void Worker::Step(Op op) {
  Progress& progress = world_.progress(index_);
  progress.op = static_cast<uint8_t>(op);
  ++done_[static_cast<size_t>(op)];
  switch (op) {
    case Op::kRead:
      Read();
      break;
    case Op::kWrite:
      Write();
      break;
    case Op::kDontNeed:
      DontNeed();
      break;
    case Op::kFree:
      Free();
      break;
    case Op::kGuard:
      Guard();
      break;
    case Op::kMapOver:
      MapOver();
      break;
    case Op::kRemap:
      Remap();
      break;
    case Op::kRemapKeep:
      RemapKeep();
      break;
    case Op::kResize:
      Resize();
      break;
    case Op::kUnmap:
      Unmap();
      break;
    case Op::kProtect:
      Protect();
      break;
    case Op::kRealloc:
      Realloc();
      break;
    case Op::kFreeMalloc:
      FreeMalloc();
      break;
    case Op::kSystemCall:
      SystemCall();
      break;
    case Op::kDirect:
      Direct();
      break;
    case Op::kForkSome:
      ForkSome();
      break;
    case Op::kForkAll:
      ForkAll();
      break;
    case Op::kForkWiped:
      ForkWiped();
      break;
    case Op::kThread:
      Thread();
      break;
    case Op::kNone:
    case Op::kCount:
      break;
  }
  progress.operations.fetch_add(1, std::memory_order_relaxed);
}

void Worker::Fill() {
  Progress& progress = world_.progress(index_);
  progress.op = static_cast<uint8_t>(Op::kWrite);
  const uint32_t threads = world_.options().threads;
  for (uint32_t unit = index_; unit < world_.memory().units() && !world_.stopping(); ++unit) {
    const bool mine = unit < world_.memory().shared_units() ? unit / 16 % threads == index_
                                                            : world_.memory().area_owner(unit) == index_;
    if (!mine) continue;
    world_.Enter(index_);
    Range range;
    Lock(range, unit, 1, unit + 1);
    // A unit that another worker got hold of, or that an earlier operation left absent, is left as it is.
    if (range.count == 1 && !range.state[0].absent) World::WriteAll(unit, range.at[0], range.state[0]);
    Unlock(range, Op::kWrite);
    world_.Leave(index_);
    progress.operations.fetch_add(1, std::memory_order_relaxed);
  }
}

void Worker::VerifyShare(const char* when) {
  Progress& progress = world_.progress(index_);
  progress.op = static_cast<uint8_t>(Op::kRead);
  const uint32_t units = world_.memory().units(), threads = world_.options().threads;
  const auto from = static_cast<uint32_t>(static_cast<uint64_t>(units) * index_ / threads);
  const auto to = static_cast<uint32_t>(static_cast<uint64_t>(units) * (index_ + 1) / threads);
  for (uint32_t unit = from; unit < to; ++unit) {
    // Others may still hold single units for the last operation they are in.
    std::optional<UnitState> state;
    while (!(state = world_.shadow().TryLock(unit))) sched_yield();
    progress.unit = unit;
    world_.Check(when, Op::kRead, unit, world_.shadow().address(unit), *state);
    world_.shadow().Unlock(unit, *state, world_.shadow().last_op(unit));
    progress.operations.fetch_add(1, std::memory_order_relaxed);
  }
}

// Does what a bad daemon would do, to show that it is found. In several places: one may be overwritten
// unread.
void Worker::Damage() {
  const Plant plant = world_.options().plant;
  if (plant == Plant::kNothing || index_ != 0) return;
  for (int planted = 0; planted < 16;) {
    Range range;
    LockMapped(range, 1);
    if (range.count == 1 && range.state[0].generation > 1 && range.state[0].split == kUnitWords &&
        !range.state[0].lazy) {
      auto* words = reinterpret_cast<volatile uint64_t*>(range.at[0]);
      for (uint32_t i = 0; i < kUnitWords; ++i) {
        if (plant == Plant::kZero) words[i] = 0;
        if (plant == Plant::kStale) words[i] = ExpectedWord(range.first, range.state[0].generation - 1, i);
        if (plant == Plant::kSwap) words[i] = ExpectedWord(range.first ^ 1, range.state[0].generation, i);
      }
      if (plant == Plant::kFlip) {
        const uint32_t index = random_.Below(kUnitWords);
        words[index] = words[index] ^ 1ull << random_.Below(64);
      }
      if (plant == Plant::kFault) mprotect(range.at[0], kUnitBytes, PROT_NONE);
      if (plant == Plant::kHang) {
        world_.Leave(index_);
        for (;;) pause();
      }
      ++planted;
    }
    Unlock(range, Op::kNone);
  }
}

void Worker::Run() {
  const Options& options = world_.options();
  world_.progress(index_).tid = static_cast<int32_t>(syscall(SYS_gettid));
  std::vector<Op> ops;
  Add(ops, kAccess);
  if (options.maps) Add(ops, kMaps);
  if (options.heap) Add(ops, kHeap);
  if (options.forks) Add(ops, kForks);
  if (direct_fd_ >= 0) ops.insert(ops.end(), 6, Op::kDirect);
  if (options.threads_come_and_go) ops.insert(ops.end(), 2, Op::kThread);

  Fill();
  for (uint32_t step = 0; !world_.stopping(); ++step) {
    world_.Enter(index_);
    if (step == 5000) Damage();
    Step(ops[random_.Below(static_cast<uint32_t>(ops.size()))]);
    world_.Leave(index_);
  }
  VerifyShare("the last verification");
  world_.progress(index_).op = static_cast<uint8_t>(Op::kNone);  // ended: cannot hang any more
}

}  // namespace uzswap::stress
