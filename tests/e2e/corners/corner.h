// A corner: one way in which a program changes or shares its memory, done to memory that was just evicted.
//
// Idea: corners_test.py runs each corner twice, natively and under uzswap, and both must say the same. A
// corner checks content itself, and asks its driver for what a program cannot do to itself: evict it, tell
// what `stat` tells of it, look at it from outside. Requests and what is said go through a socket, one packet
// each.
//
// What a corner says: `result` lines, which must be the same natively and under uzswap; `known` lines, for
// the differences that daemon/DESIGN.md lists, whose value under uzswap the driver has in a table; `fail` and
// `skip`.
//
// Threads: everything here from any thread; Ask is one request at a time for the whole program and its
// children.
#pragma once

#include <setjmp.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace uzswap::corners {

inline constexpr size_t kPage = 4096;

struct Corner {
  const char* name;
  void (*run)();
};

// What the files beside this one know.
std::vector<Corner> MappingCorners();
std::vector<Corner> ProtectionCorners();
std::vector<Corner> AdviceCorners();
std::vector<Corner> ProcessCorners();
std::vector<Corner> ThreadCorners();
std::vector<Corner> InputOutputCorners();
std::vector<Corner> KernelCorners();

// The connection to the driver. Native: no uzswap is there, and nothing is ever evicted.
void Connect(int socket, bool native);
bool IsNative();
int DriverSocket();
void Say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void Known(const char* key, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void Skip(const char* format, ...) __attribute__((format(printf, 1, 2)));
void Expect(bool condition, const char* format, ...) __attribute__((format(printf, 2, 3)));
std::string Ask(const char* format, ...) __attribute__((format(printf, 1, 2)));
// "0" for success, else the name of errno: for what is said of a system call.
std::string Outcome(long returned);
// A figure of `stat` about this process (or `pid`), by its path: "refused.busy". 0 natively, or if it is no
// client.
uint64_t Stat(const char* path, pid_t pid = 0);

// Whole pages of memory whose content is known: word i of page p holds a word of (generation, first + p, i),
// so a part, or memory that was moved, knows what it should hold.
struct Memory {
  std::byte* at = nullptr;
  size_t pages = 0;
  uint64_t first = 0;

  size_t bytes() const { return pages * kPage; }
  std::byte* page(size_t n) const { return at + n * kPage; }
  Memory Part(size_t from, size_t count) const { return {page(from), count, first + from}; }
  Memory At(void* elsewhere) const { return {static_cast<std::byte*>(elsewhere), pages, first}; }

  void Fill(uint64_t generation) const;
  // The program fails if a word is another; `when` says what was done before.
  void Check(uint64_t generation, const char* when) const;
  void CheckZero(const char* when) const;
  // Number of pages that are in memory, as /proc/self/pagemap shows it.
  size_t Present() const;
  // Natively nothing. Under uzswap: has it evicted, and returns when no page is in memory and `stat` counts
  // at least as many stored ones. `pid`: another process that has this memory at the same place.
  void Evict(pid_t pid = 0) const;
  // Under uzswap: evicts all that can go, and sees that all of this stayed, counted as `reason` ("" if it is
  // never chosen).
  void Stays(const char* reason) const;
};
uint64_t PatternWord(uint64_t generation, uint64_t page, uint64_t i);

// A private anonymous mapping with an inaccessible page on either side, so that no other mapping becomes one
// with it.
Memory Map(size_t pages, size_t alignment = kPage);
// The same, filled with generation 1 and evicted.
Memory MapEvicted(size_t pages);

// The signal (SIGSEGV or SIGBUS) that `access` ends in; 0: none.
int SignalOf(const std::function<void()>& access);
inline void Touch(const std::byte* at) { (void)*reinterpret_cast<const volatile std::byte*>(at); }
inline void Dirty(std::byte* at) { *reinterpret_cast<volatile std::byte*>(at) = std::byte{0x77}; }

// Runs `body` in a forked child; its exit status is 0, or this process fails. What fails in the child is said
// there.
void InChild(const std::function<void()>& body);
void AwaitChild(pid_t child);

}  // namespace uzswap::corners
