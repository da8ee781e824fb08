#include "tests/stress/report.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace uzswap::stress {
namespace {

constexpr const char* kOpNames[] = {"nothing",
                                    "read",
                                    "write",
                                    "madvise(DONTNEED)",
                                    "madvise(FREE)",
                                    "madvise(GUARD)",
                                    "mmap over it",
                                    "mremap",
                                    "mremap(DONTUNMAP)",
                                    "mremap to another size",
                                    "munmap and mmap",
                                    "mprotect",
                                    "realloc",
                                    "free and malloc",
                                    "read(2)/write(2)",
                                    "O_DIRECT",
                                    "fork, some units",
                                    "fork, all stopped",
                                    "fork, wiped",
                                    "thread"};
static_assert(sizeof(kOpNames) / sizeof(*kOpNames) == static_cast<size_t>(Op::kCount));

Reporter* g_reporter;
std::atomic<bool> g_reported;

__attribute__((format(printf, 1, 2))) void Say(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const ssize_t written =
      write(STDERR_FILENO, text, std::min<size_t>(sizeof text - 1, static_cast<size_t>(length)));
  static_cast<void>(written);
}

void Describe(const char* what, uint64_t word) {
  const Origin origin = OriginOf(word);
  if (origin.ours) {
    Say("  %s 0x%016llx: unit %u, generation %u, word %u, %s\n", what, static_cast<unsigned long long>(word),
        origin.unit, origin.generation, origin.index, NameOf(origin.kind));
  } else {
    Say("  %s 0x%016llx: %s\n", what, static_cast<unsigned long long>(word),
        word == 0 ? "zero" : "no word of ours");
  }
}

// The first line of a small file in /proc, without its newline.
void ReadLine(const char* path, char* line, size_t size) {
  line[0] = 0;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  const ssize_t got = read(fd, line, size - 1);
  close(fd);
  line[std::max<ssize_t>(got, 0)] = 0;
  if (char* end = strchr(line, '\n')) *end = 0;
}

// The mappings within 4 MiB of an address.
void SayMappings(uint64_t at) {
  constexpr uint64_t kNear = 4u << 20;
  const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  char line[256];
  size_t length = 0;
  char chunk[4096];
  for (ssize_t got; (got = read(fd, chunk, sizeof chunk)) > 0;) {
    for (ssize_t i = 0; i < got; ++i) {
      if (chunk[i] != '\n') {
        if (length < sizeof line - 1) line[length++] = chunk[i];
        continue;
      }
      line[length] = 0;
      length = 0;
      char* rest = nullptr;
      const uint64_t start = strtoull(line, &rest, 16), end = strtoull(rest + 1, nullptr, 16);
      if (start <= at + kNear && at <= end + kNear)
        Say("  mapping  %s%s\n", line, start <= at && at < end ? "  <- here" : "");
    }
  }
  close(fd);
}

}  // namespace

const char* NameOf(Op op) { return op < Op::kCount ? kOpNames[static_cast<size_t>(op)] : "?"; }

Reporter::Reporter(const Options& options, Memory& memory) : memory_(memory), stop_(options.stop_on_failure) {
  snprintf(replay_, sizeof replay_, "%s", ReplayLine(options).c_str());
  g_reporter = this;
}

void Reporter::End(int status) {
  Say("replay: %s\n", replay_);
  if (stop_) raise(SIGSTOP);
  _exit(status);
}

void Reporter::WrongWord(const char* who, Op op, uint32_t unit, const std::byte* at,
                         const UnitState& expected, uint32_t index, uint64_t found) {
  if (g_reported.exchange(true)) {
    // Another thread is already telling its story; ours adds nothing.
    for (;;) pause();
  }
  Shadow& shadow = memory_.shadow();
  Say("verifier: FAILED: wrong word at %p: unit %u (%s), word %u of %u; pid %d, found by %s during %s, %llu "
      "ms in\n",
      static_cast<const void*>(at + index * 8), unit, memory_.is_page(unit) ? "a page" : "malloc", index,
      kUnitWords, getpid(), who, NameOf(op), static_cast<unsigned long long>(NowMs()));
  const uint64_t wanted = expected.Expected(unit, index);
  Say("  state    generation %u up to word %u, then %u%s\n", expected.generation, expected.split,
      expected.previous, expected.lazy ? ", or all zero (MADV_FREE)" : "");
  Describe("expected", wanted);
  Describe("found   ", found);
  const Origin origin = OriginOf(found);
  const char* verdict = found == 0 && wanted != 0 ? "ZERO: the content was lost"
                        : wanted == 0             ? "REVIVED: content where zeros are due"
                        : !origin.ours            ? "DAMAGED: not a word that anybody wrote"
                        : origin.unit != unit     ? "SWAPPED: another unit's content"
                        : origin.generation < std::max(expected.generation, expected.previous)
                            ? "STALE: older content of this unit"
                        : origin.generation > expected.generation
                            ? "FUTURE: newer content than was written here"
                            : "MISPLACED: another word of this unit";
  Say("  verdict  %s\n", verdict);
  Say("  last     %s, %llu ms before\n", NameOf(shadow.last_op(unit)),
      static_cast<unsigned long long>(NowMs() - shadow.last_ms(unit)));

  // The whole unit, read again: how much is wrong, and does it last?
  uint32_t wrong = 0, zero = 0, first = kUnitWords, last = 0;
  for (uint32_t i = 0; i < kUnitWords; ++i) {
    const uint64_t now = reinterpret_cast<const volatile uint64_t*>(at)[i];
    if (now == expected.Expected(unit, i)) continue;
    ++wrong;
    zero += now == 0;
    first = std::min(first, i);
    last = i;
  }
  if (wrong != 0) {
    Say("  again    %u words wrong, %u of them zero, from word %u to %u\n", wrong, zero, first, last);
  } else {
    Say("  again    all right now: the wrong word was there for a moment\n");
  }
  // Neighbours that nobody holds now: is it one page, or a whole stretch?
  for (uint32_t other = unit < 3 ? 0 : unit - 3; other < unit + 6 && other < memory_.units(); ++other) {
    const auto state = other == unit ? std::nullopt : shadow.TryLock(other);
    if (!state || state->absent || state->lazy) continue;
    wrong = 0;
    for (uint32_t i = 0; i < kUnitWords; ++i) {
      wrong +=
          reinterpret_cast<const volatile uint64_t*>(shadow.address(other))[i] != state->Expected(other, i);
    }
    Say("  beside   unit %u at %p: %u words wrong\n", other, static_cast<const void*>(shadow.address(other)),
        wrong);
  }
  SayMappings(reinterpret_cast<uint64_t>(at));
  End(1);
}

void Reporter::Failure(const char* text) {
  if (g_reported.exchange(true)) {
    for (;;) pause();
  }
  Say("verifier: FAILED: %s\n", text);
  End(1);
}

void Reporter::Trouble(const char* text) {
  Say("verifier: %s\n", text);
  End(3);
}

void Reporter::DescribeThreads(const Progress* progress, uint32_t threads) {
  for (uint32_t i = 0; i < threads; ++i) {
    const uint32_t unit = progress[i].unit;
    const int32_t tid = progress[i].tid;
    char path[64], wchan[64], call[192];
    snprintf(path, sizeof path, "/proc/self/task/%d/wchan", tid);
    ReadLine(path, wchan, sizeof wchan);
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    ReadLine(path, call, sizeof call);
    Say("  worker %u (tid %d): %llu operations, %s of unit %u at %p, wchan %s, syscall %s", i, tid,
        static_cast<unsigned long long>(progress[i].operations),
        NameOf(static_cast<Op>(progress[i].op.load())), unit,
        static_cast<void*>(unit < memory_.units() ? memory_.shadow().address(unit) : nullptr), wchan, call);
    if (const int32_t child = progress[i].child) {
      snprintf(path, sizeof path, "/proc/%d/wchan", child);
      ReadLine(path, wchan, sizeof wchan);
      snprintf(path, sizeof path, "/proc/%d/syscall", child);
      ReadLine(path, call, sizeof call);
      Say(", waits for child %d (wchan %s, syscall %s)", child, wchan, call);
    }
    Say("\n");
  }
}

void Reporter::OnFault(int signal, siginfo_t* info, void*) {
  if (g_reported.exchange(true)) {
    for (;;) pause();
  }
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  Say("verifier: FAILED: %s (code %d) at %p, pid %d, %llu ms in\n", signal == SIGBUS ? "SIGBUS" : "SIGSEGV",
      info->si_code, info->si_addr, getpid(), static_cast<unsigned long long>(NowMs()));
  if (signal == SIGBUS) Say("  SIGBUS in anonymous memory: the page was poisoned, its content is lost\n");
  Shadow& shadow = g_reporter->memory_.shadow();
  for (uint32_t unit = 0; unit < shadow.units(); ++unit) {
    const auto base = reinterpret_cast<uintptr_t>(shadow.address(unit));
    if (at < base || at >= base + kUnitBytes) continue;
    const UnitState state = shadow.Peek(unit);
    Say("  unit %u, byte %zu: generation %u up to word %u, then %u; last %s, %llu ms before\n", unit,
        static_cast<size_t>(at - base), state.generation, state.split, state.previous,
        NameOf(shadow.last_op(unit)), static_cast<unsigned long long>(NowMs() - shadow.last_ms(unit)));
  }
  g_reporter->End(1);
}

void Reporter::InstallFaultHandlers() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace uzswap::stress
