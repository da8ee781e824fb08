// Operations in which somebody else touches the memory: the kernel, a device, a thread that lives for this
// alone.
#include <unistd.h>

#include <cstring>
#include <system_error>
#include <thread>

#include "tests/stress/worker.h"

namespace uzswap::stress {

// Out with pwrite, compared in a buffer on the stack; a new generation in with pread.
void Worker::SystemCall() {
  Range range;
  LockAnywhere(range, 1);
  if (range.count == 1) {
    alignas(8) std::byte copy[kUnitBytes];
    UnitState& state = range.state[0];
    if (pwrite(pipe_fd_, range.at[0], kUnitBytes, 0) != kUnitBytes)
      world_.reporter().Failure("write(2) from the memory failed or was short");
    if (pread(pipe_fd_, copy, kUnitBytes, 0) != kUnitBytes)
      world_.reporter().Trouble("read(2) of the memfd failed");
    world_.Check("a worker, in what write(2) took", Op::kSystemCall, range.first, copy, state);
    UnitState next = state;
    World::WriteAll(range.first, copy, next);
    if (pwrite(pipe_fd_, copy, kUnitBytes, 0) != kUnitBytes)
      world_.reporter().Trouble("write(2) to the memfd failed");
    if (pread(pipe_fd_, range.at[0], kUnitBytes, 0) != kUnitBytes)
      world_.reporter().Failure("read(2) into the memory failed or was short");
    state = next;
    Check(range, Op::kSystemCall, true);
  }
  Unlock(range, Op::kSystemCall);
}

// Pages are pinned while a device reads and writes them: they must not be taken, or the device's data is
// lost.
void Worker::Direct() {
  Range range;
  LockMapped(range, 1 + random_.Below(8));
  if (range.count != 0) {
    Check(range, Op::kDirect, true);
    const size_t bytes = static_cast<size_t>(range.count) * kUnitBytes;
    // Decided now: content that may still turn to zero cannot be compared with a file.
    for (uint32_t i = 0; i < range.count; ++i) {
      if (range.state[i].lazy) World::WriteAll(range.first + i, range.at[i], range.state[i]);
    }
    const auto length = static_cast<ssize_t>(bytes);
    if (pwrite(direct_fd_, range.at[0], bytes, 0) != length)
      world_.reporter().Failure("O_DIRECT write failed or was short");
    memset(range.at[0], 0x33, bytes);
    if (pread(direct_fd_, range.at[0], bytes, 0) != length)
      world_.reporter().Failure("O_DIRECT read failed or was short");
    Check(range, Op::kDirect);
  }
  Unlock(range, Op::kDirect);
}

void Worker::Thread() {
  Range range;
  LockAnywhere(range, 4);
  try {
    std::thread([&] {
      // Its stack must be what it wrote there, however long the checks wait for memory.
      volatile uint64_t on_stack[1024];
      for (uint32_t i = 0; i < 1024; ++i) on_stack[i] = ExpectedWord(range.first, 1, i % kUnitWords);
      Check(range, Op::kThread);
      for (uint32_t i = 0; i < range.count; ++i)
        World::WriteSome(range.first + i, range.at[i], range.state[i], 64);
      for (uint32_t i = 0; i < 1024; ++i) {
        if (on_stack[i] != ExpectedWord(range.first, 1, i % kUnitWords))
          world_.reporter().Failure("a thread's stack changed");
      }
    }).join();
  } catch (const std::system_error&) {
    world_.reporter().Trouble("no thread could be started");
  }
  Check(range, Op::kThread, true);
  Unlock(range, Op::kThread);
}

}  // namespace uzswap::stress
