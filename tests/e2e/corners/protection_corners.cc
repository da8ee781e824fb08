// Protections and locks that change while memory is evicted.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

void Protect(const Memory& memory, int protection) {
  Expect(mprotect(memory.at, memory.bytes(), protection) == 0, "mprotect: %s", strerror(errno));
}

void ProtectParts() {
  const Memory memory = MapEvicted(kPages);
  const Memory readable = memory.Part(8, 8);
  const Memory hidden = memory.Part(24, 8);
  const Memory executable = memory.Part(40, 8);
  Protect(readable, PROT_READ);
  Protect(hidden, PROT_NONE);
  Protect(executable, kReadWrite | PROT_EXEC);
  Expect(SignalOf([&] { Dirty(readable.at); }) == SIGSEGV, "read-only memory was written");
  Expect(SignalOf([&] { Touch(hidden.at); }) == SIGSEGV, "hidden memory was read");
  Expect(syscall(SYS_write, -1, hidden.at, 1) == -1 && errno == EBADF, "write(2) of an invalid descriptor");
  readable.Check(1, "read-only, missing");
  executable.Check(1, "executable, missing");
  memory.Part(0, 8).Check(1, "beside");
  Protect(hidden, kReadWrite);
  hidden.Check(1, "hidden and shown again");
  Protect(memory, kReadWrite);
  memory.Check(1, "all of it again");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "evicted after that");
}

// What a kernel writes through a system call: refused where the program may not write, whatever is missing.
void SystemCallIntoReadOnly() {
  const Memory memory = MapEvicted(4);
  Protect(memory, PROT_READ);
  int ends[2];
  Expect(pipe(ends) == 0 && write(ends[1], "12345678", 8) == 8, "pipe: %s", strerror(errno));
  Say("read into read-only memory: %s", Outcome(read(ends[0], memory.at, 8)).c_str());
  memory.Check(1, "read-only memory that the kernel was to write");
}

// A write barrier: memory is read-only, and the handler of SIGSEGV makes it writable.
Memory barrier;
void OnBarrier(int) {
  if (mprotect(barrier.at, barrier.bytes(), kReadWrite) != 0) _exit(1);
}

void WriteBarrier() {
  barrier = MapEvicted(kPages);
  Protect(barrier, PROT_READ);
  (void)signal(SIGSEGV, OnBarrier);
  auto* word = reinterpret_cast<volatile uint64_t*>(barrier.page(5));
  word[0] = 42;
  Expect(word[0] == 42 && word[1] == PatternWord(1, 5, 1), "the page behind the barrier is another");
  barrier.Part(6, kPages - 6).Check(1, "behind the barrier");
}

void ReadOnlyStays() {
  const Memory memory = Map(kPages);
  memory.Fill(1);
  Protect(memory, PROT_READ);
  memory.Stays("");
  memory.Check(1, "read-only memory");
  Protect(memory, kReadWrite);
  memory.Evict();
  memory.Check(1, "memory that was read-only");
}

void LockAfterEviction() {
  const Memory memory = MapEvicted(kPages);
  Expect(mlock(memory.at, memory.bytes()) == 0, "mlock: %s", strerror(errno));
  Expect(memory.Present() == kPages, "%zu of %zu locked pages are in memory", memory.Present(), kPages);
  memory.Check(1, "locked");
  memory.Stays("not_ours");
  Expect(munlock(memory.at, memory.bytes()) == 0, "munlock: %s", strerror(errno));
  memory.Evict();
  memory.Check(1, "unlocked and evicted again");
  // Locked page by page, as they are touched.
  memory.Evict();
  Expect(syscall(SYS_mlock2, memory.at, memory.bytes(), 1 /* MLOCK_ONFAULT */) == 0, "mlock2: %s",
         strerror(errno));
  memory.Part(0, 8).Check(1, "locked on fault");
  memory.Part(0, 8).Stays("not_ours");
  memory.Check(1, "locked on fault, all of it");
  Expect(munlock(memory.at, memory.bytes()) == 0, "munlock: %s", strerror(errno));
  // A part: the mapping becomes three.
  memory.Evict();
  Expect(mlock(memory.page(16), 16 * kPage) == 0, "mlock: %s", strerror(errno));
  memory.Check(1, "with a locked part");
}

void LockAll() {
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  (void)setrlimit(RLIMIT_MEMLOCK, &unlimited);
  const Memory memory = MapEvicted(kPages);
  if (mlockall(MCL_CURRENT) != 0) Skip("mlockall: %s", strerror(errno));
  Expect(memory.Present() == kPages, "%zu of %zu locked pages are in memory", memory.Present(), kPages);
  memory.Check(1, "locked with everything");
  memory.Stays("not_ours");
  Expect(munlockall() == 0, "munlockall: %s", strerror(errno));
  memory.Evict();
  Expect(mlockall(MCL_FUTURE) == 0, "mlockall: %s", strerror(errno));
  const Memory later = Map(kPages);
  Expect(later.Present() == kPages, "new memory is not populated");
  later.Fill(2);
  later.Stays("not_ours");
  memory.Check(1, "evicted before MCL_FUTURE");
  Expect(munlockall() == 0, "munlockall: %s", strerror(errno));
  later.Evict();
  later.Check(2, "locked from its beginning, then not");
  memory.Evict();
  memory.Check(1, "after all that");
}

// Sealed mappings cannot be unmapped or moved; their pages can be taken and brought back.
void Sealed() {
  constexpr long kMseal = 462;
  const Memory memory = MapEvicted(kPages);
  if (syscall(kMseal, memory.at, memory.bytes(), 0) != 0) Skip("mseal: %s (Linux 6.10)", strerror(errno));
  Say("munmap of sealed memory: %s", Outcome(munmap(memory.at, memory.bytes())).c_str());
  Say("mprotect of sealed memory: %s", Outcome(mprotect(memory.at, kPage, PROT_READ)).c_str());
  memory.Check(1, "sealed");
  memory.Evict();
  memory.Check(1, "sealed and evicted again");
}

void ProtectionKeys() {
  const int key = pkey_alloc(0, 0);
  if (key < 0) Skip("no protection keys: %s", strerror(errno));
  const Memory memory = MapEvicted(kPages);
  Expect(pkey_mprotect(memory.at, memory.bytes(), kReadWrite, key) == 0, "pkey_mprotect: %s",
         strerror(errno));
  Expect(pkey_set(key, PKEY_DISABLE_ACCESS) == 0, "pkey_set: %s", strerror(errno));
  Expect(SignalOf([&] { Touch(memory.at); }) == SIGSEGV, "memory behind a key was read");
  Expect(pkey_set(key, 0) == 0, "pkey_set: %s", strerror(errno));
  memory.Check(1, "behind a key");
}

}  // namespace

std::vector<Corner> ProtectionCorners() {
  return {{"mprotect_parts", ProtectParts},
          {"system_call_into_read_only", SystemCallIntoReadOnly},
          {"write_barrier", WriteBarrier},
          {"read_only_stays", ReadOnlyStays},
          {"mlock", LockAfterEviction},
          {"mlockall", LockAll},
          {"mseal", Sealed},
          {"protection_keys", ProtectionKeys}};
}

}  // namespace uzswap::corners
