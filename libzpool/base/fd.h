// Owner of a file descriptor.
#pragma once

#include <cstdint>
#include <utility>

#include "libzpool/base/result.h"

namespace zp {

// Closes its descriptor when destroyed. Move-only; not thread-safe.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;

  // The descriptor, or -1; owned by this object still.
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives the descriptor away; the caller closes it.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  // Closes what it holds and takes over `fd` (-1: nothing).
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// A new memfd of `bytes` bytes, close-on-exec, sparse: it takes no memory until it is written. `name` is what
// /proc shows. Errors: as memfd_create(2) and ftruncate(2); nothing is left behind.
Result<UniqueFd> CreateMemfd(const char* name, uint64_t bytes);

}  // namespace zp
