// Owner of a memory mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "libzpool/base/result.h"

namespace zp {

// Unmaps when destroyed. Move-only; data() stays the same when moved. Not thread-safe itself; the memory is
// whatever its users make it.
class Mapping {
 public:
  Mapping() = default;
  ~Mapping() { Unmap(); }
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      Unmap();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Maps `bytes` bytes of `fd` from `offset` (a multiple of 4096), shared, readable and writable. The
  // descriptor may be closed after.
  static Result<Mapping> Shared(int fd, uint64_t offset, size_t bytes);
  // Private zeroed memory, populated when touched; only address space is reserved (MAP_NORESERVE).
  static Result<Mapping> Anonymous(size_t bytes);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  bool valid() const { return data_ != nullptr; }

 private:
  Mapping(std::byte* data, size_t size) : data_(data), size_(size) {}
  void Unmap();

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace zp
