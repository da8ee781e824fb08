#include "tests/stress/world.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>

namespace uzswap::stress {
namespace {

Progress* MapProgress(uint32_t workers) {
  void* memory =
      mmap(nullptr, workers * sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Progress*>(memory);
}

}  // namespace

World::World(const Options& options)
    : options_(options),
      memory_(options),
      snapshot_(memory_.units()),
      progress_(MapProgress(options.threads)),
      reporter_(options, memory_) {
  if (progress_ == nullptr) reporter_.Trouble("no memory for the progress of the workers");
}

void World::Enter(uint32_t worker) {
  for (;;) {
    progress_[worker].in_operation.store(1);
    if (stopped_.load() == 0) return;
    progress_[worker].in_operation.store(0);
    stopped_.wait(1);
  }
}

bool World::StopOthers(uint32_t worker) {
  uint32_t free = 0;
  if (!stopped_.compare_exchange_strong(free, 1)) return false;
  for (uint32_t i = 0; i < options_.threads; ++i) {
    while (i != worker && progress_[i].in_operation.load() != 0) sched_yield();
  }
  return true;
}

void World::Resume() {
  stopped_.store(0);
  stopped_.notify_all();
}

void World::Check(const char* who, Op op, uint32_t unit, const std::byte* at, UnitState& state, bool some) {
  if (state.absent) return;
  const auto* words = reinterpret_cast<const volatile uint64_t*>(at);
  if (!state.lazy) {
    // A few words still meet each page that the unit touches: first, last, and the middle.
    const uint32_t step = some ? (kUnitWords - 1) / 2 : 1;
    for (uint32_t i = 0; i < kUnitWords; i += step) {
      const uint64_t found = words[i];
      if (found != state.Expected(unit, i)) reporter_.WrongWord(who, op, unit, at, state, i, found);
    }
    return;
  }

  // The page may go at any moment, but only once and as a whole: a second look that is not all zero proves an
  // error.
  for (int look = 0;; ++look) {
    uint64_t seen[kUnitWords];
    for (uint32_t i = 0; i < kUnitWords; ++i) seen[i] = words[i];
    if (std::all_of(seen, seen + kUnitWords, [](uint64_t word) { return word == 0; })) {
      state.Zeroed();
      return;
    }
    uint32_t wrong = 0;
    while (wrong < kUnitWords && seen[wrong] == state.Expected(unit, wrong)) ++wrong;
    if (wrong == kUnitWords) return;
    if (look == 1) reporter_.WrongWord(who, op, unit, at, state, wrong, seen[wrong]);
  }
}

void World::WriteAll(uint32_t unit, std::byte* at, UnitState& state) {
  ++state.generation;
  state.split = kUnitWords;
  state.lazy = false;
  auto* words = reinterpret_cast<volatile uint64_t*>(at);
  for (uint32_t i = 0; i < kUnitWords; ++i) words[i] = ExpectedWord(unit, state.generation, i);
}

void World::WriteSome(uint32_t unit, std::byte* at, UnitState& state, uint32_t count) {
  if (state.lazy) {  // what a partial write would leave of the rest is the kernel's choice
    WriteAll(unit, at, state);
    return;
  }
  if (state.split == kUnitWords) {
    state.previous = state.generation;
    state.split = 0;
  }
  if (state.split == 0) ++state.generation;
  auto* words = reinterpret_cast<volatile uint64_t*>(at);
  const uint32_t end = std::min(state.split + count, kUnitWords);
  for (uint32_t i = state.split; i < end; ++i) words[i] = ExpectedWord(unit, state.generation, i);
  state.split = end;
}

}  // namespace uzswap::stress
