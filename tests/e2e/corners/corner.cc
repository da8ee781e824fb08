#include "tests/e2e/corners/corner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace uzswap::corners {
namespace {

constexpr int kEvictTries = 100;  // each of a fifth of a second or more
constexpr size_t kLineBytes = 4096;

int driver = -1;
bool native = true;
int pagemap = -1;
pid_t pagemap_of = 0;

thread_local sigjmp_buf* recovery = nullptr;

// Without allocating: what is said must not depend on the memory that is tried.
void Send(const char* word, const char* format, va_list arguments) {
  char line[kLineBytes];
  int used = snprintf(line, sizeof(line), "%s ", word);
  used += vsnprintf(line + used, sizeof(line) - static_cast<size_t>(used), format, arguments);
  if (static_cast<size_t>(used) >= sizeof(line)) used = sizeof(line) - 1;
  (void)send(driver, line, static_cast<size_t>(used), MSG_NOSIGNAL);
}

void OnFault(int signal) {
  if (recovery == nullptr) {
    (void)::signal(signal, SIG_DFL);
    (void)raise(signal);
    return;
  }
  siglongjmp(*recovery, signal);
}

}  // namespace

void Connect(int socket, bool is_native) {
  driver = socket;
  native = is_native;
}

bool IsNative() { return native; }

int DriverSocket() { return driver; }

void Say(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Send("result", format, arguments);
  va_end(arguments);
}

void Known(const char* key, const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  (void)vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char line[kLineBytes];
  const int used = snprintf(line, sizeof(line), "known %s %s", key, text);
  (void)send(driver, line, static_cast<size_t>(used), MSG_NOSIGNAL);
}

void Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Send("fail", format, arguments);
  va_end(arguments);
  _exit(1);
}

void Skip(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Send("skip", format, arguments);
  va_end(arguments);
  _exit(0);
}

void Expect(bool condition, const char* format, ...) {
  if (condition) return;
  va_list arguments;
  va_start(arguments, format);
  Send("fail", format, arguments);
  va_end(arguments);
  _exit(1);
}

std::string Ask(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Send("ask", format, arguments);
  va_end(arguments);
  char answer[kLineBytes];
  ssize_t got = 0;
  while ((got = recv(driver, answer, sizeof(answer), 0)) < 0 && errno == EINTR) {
  }
  if (got <= 0) _exit(1);  // the driver is gone
  return {answer, static_cast<size_t>(got)};
}

std::string Outcome(long returned) { return returned >= 0 ? "0" : strerrorname_np(errno); }

uint64_t Stat(const char* path, pid_t pid) {
  if (native) return 0;
  return strtoull(Ask("stat %d %s", pid != 0 ? pid : getpid(), path).c_str(), nullptr, 10);
}

uint64_t PatternWord(uint64_t generation, uint64_t page, uint64_t i) {
  uint64_t x = (generation << 48 | page << 9 | i) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  return i % 2 == 0 ? x ^ x >> 27 : page << 16 | generation;  // half of it compresses
}

void Memory::Fill(uint64_t generation) const {
  for (size_t p = 0; p < pages; ++p) {
    auto* words = reinterpret_cast<volatile uint64_t*>(page(p));
    for (size_t i = 0; i < kPage / 8; ++i) words[i] = PatternWord(generation, first + p, i);
  }
}

void Memory::Check(uint64_t generation, const char* when) const {
  for (size_t p = 0; p < pages; ++p) {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(page(p));
    for (size_t i = 0; i < kPage / 8; ++i) {
      const uint64_t found = words[i];
      if (found == PatternWord(generation, first + p, i)) continue;
      Fail("%s: page %zu, word %zu is %016lx, generation %lu has %016lx", when, p, i, found, generation,
           PatternWord(generation, first + p, i));
    }
  }
}

void Memory::CheckZero(const char* when) const {
  for (size_t p = 0; p < pages; ++p) {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(page(p));
    for (size_t i = 0; i < kPage / 8; ++i) {
      const uint64_t found = words[i];
      if (found != 0) Fail("%s: page %zu, word %zu is %016lx, not zero", when, p, i, found);
    }
  }
}

size_t Memory::Present() const {
  // The file speaks of the process that opened it. The descriptor is kept: /proc may go out of sight.
  if (pagemap_of != getpid()) {
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    pagemap_of = getpid();
  }
  size_t present = 0;
  for (size_t p = 0; p < pages; ++p) {
    uint64_t entry = 0;
    const auto offset = static_cast<off_t>(reinterpret_cast<uintptr_t>(page(p)) / kPage * sizeof(entry));
    if (pread(pagemap, &entry, sizeof(entry), offset) != sizeof(entry)) Fail("pagemap cannot be read");
    present += entry >> 63;
  }
  return present;
}

void Memory::Evict(pid_t pid) const {
  (void)Present();  // opens pagemap
  if (native) return;
  for (int tries = 0; tries < kEvictTries; ++tries) {
    (void)Ask("evict %d", pid != 0 ? pid : getpid());
    if (Present() != 0) continue;
    const uint64_t stored = Stat("stored_pages", pid);
    Expect(stored >= pages, "no page is in memory, but only %lu of %zu are stored", stored, pages);
    return;
  }
  Fail("%zu of %zu pages are never evicted; refused: %s", Present(), pages,
       Ask("stat %d refused", pid != 0 ? pid : getpid()).c_str());
}

void Memory::Stays(const char* reason) const {
  const size_t before = Present();
  if (native) return;
  const std::string path = std::string("refused.") + reason;
  const uint64_t counted = *reason != 0 ? Stat(path.c_str()) : 0;
  for (int round = 0; round < 3; ++round) (void)Ask("evict %d", getpid());
  Expect(Present() == before, "%zu of %zu pages are left in memory", Present(), before);
  if (*reason == 0) return;
  const uint64_t now = Stat(path.c_str());
  Expect(now >= counted + before, "%s: %lu, before %lu; %s", path.c_str(), now, counted,
         Ask("stat %d refused", getpid()).c_str());
}

Memory Map(size_t pages, size_t alignment) {
  const size_t bytes = pages * kPage;
  void* place = mmap(nullptr, bytes + alignment + 2 * kPage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) Fail("mmap: %s", strerror(errno));
  const uintptr_t start =
      (reinterpret_cast<uintptr_t>(place) + kPage + alignment - 1) / alignment * alignment;
  void* at = mmap(reinterpret_cast<void*>(start), bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED) Fail("mmap: %s", strerror(errno));
  return {static_cast<std::byte*>(at), pages, 0};
}

Memory MapEvicted(size_t pages) {
  const Memory memory = Map(pages);
  memory.Fill(1);
  memory.Evict();
  return memory;
}

int SignalOf(const std::function<void()>& access) {
  struct sigaction action {};
  action.sa_handler = OnFault;
  action.sa_flags = SA_NODEFER | SA_ONSTACK;
  (void)sigaction(SIGSEGV, &action, nullptr);
  (void)sigaction(SIGBUS, &action, nullptr);
  sigjmp_buf back;
  recovery = &back;
  const int signal = sigsetjmp(back, 1);
  if (signal == 0) access();
  recovery = nullptr;  // NOLINT(clang-analyzer-core.StackAddressEscape)
  return signal;
}

void InChild(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child < 0) Fail("fork: %s", strerror(errno));
  if (child == 0) {
    body();
    _exit(0);
  }
  AwaitChild(child);
}

void AwaitChild(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) Fail("waitpid: %s", strerror(errno));
  }
  Expect(status == 0, "child %d ended with %s %d", child, WIFSIGNALED(status) ? "signal" : "status",
         WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

}  // namespace uzswap::corners
