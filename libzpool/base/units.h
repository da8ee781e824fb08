// Units as types: page numbers, counts of pages and bytes, node numbers. Constructors are explicit and
// arithmetic is checked, so that a count cannot become an address, and an overflow is a crash with a line
// number instead of a wrong page.
#pragma once

#include <compare>
#include <cstdint>

#include "libzpool/base/check.h"

namespace zp {

inline constexpr uint64_t kPageShift = 12;
inline constexpr uint64_t kPageBytes = uint64_t{1} << kPageShift;

// A page number has 45 bits: 57-bit addresses (five-level page tables) in pages of 4 KiB.
inline constexpr uint64_t kPageIndexBits = 57 - kPageShift;
inline constexpr uint64_t kPageIndexLimit = uint64_t{1} << kPageIndexBits;

namespace internal {

constexpr uint64_t CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  ZP_CHECK(!__builtin_add_overflow(a, b, &sum), "unit arithmetic overflows");
  return sum;
}

constexpr uint64_t CheckedSub(uint64_t a, uint64_t b) {
  ZP_CHECK(a >= b, "unit arithmetic goes below zero");
  return a - b;
}

constexpr uint64_t CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  ZP_CHECK(!__builtin_mul_overflow(a, b, &product), "unit arithmetic overflows");
  return product;
}

}  // namespace internal

// (NOLINT at the comparisons: clang-tidy 14 takes the 0 that they are compiled with for a null pointer.)

// A number of bytes.
class Bytes {
 public:
  constexpr Bytes() = default;
  explicit constexpr Bytes(uint64_t bytes) : value_(bytes) {}
  constexpr uint64_t value() const { return value_; }

  friend constexpr Bytes operator+(Bytes a, Bytes b) {
    return Bytes(internal::CheckedAdd(a.value_, b.value_));
  }
  friend constexpr Bytes operator-(Bytes a, Bytes b) {
    return Bytes(internal::CheckedSub(a.value_, b.value_));
  }
  friend constexpr auto operator<=>(Bytes, Bytes) = default;  // NOLINT(modernize-use-nullptr)

 private:
  uint64_t value_ = 0;
};

constexpr Bytes KiB(uint64_t n) { return Bytes(internal::CheckedMul(n, uint64_t{1} << 10)); }
constexpr Bytes MiB(uint64_t n) { return Bytes(internal::CheckedMul(n, uint64_t{1} << 20)); }
constexpr Bytes GiB(uint64_t n) { return Bytes(internal::CheckedMul(n, uint64_t{1} << 30)); }

// A number of pages.
class PageCount {
 public:
  constexpr PageCount() = default;
  explicit constexpr PageCount(uint64_t pages) : value_(pages) {}
  constexpr uint64_t value() const { return value_; }
  constexpr Bytes bytes() const { return Bytes(internal::CheckedMul(value_, kPageBytes)); }

  friend constexpr PageCount operator+(PageCount a, PageCount b) {
    return PageCount(internal::CheckedAdd(a.value_, b.value_));
  }
  friend constexpr PageCount operator-(PageCount a, PageCount b) {
    return PageCount(internal::CheckedSub(a.value_, b.value_));
  }
  constexpr PageCount& operator+=(PageCount n) { return *this = *this + n; }
  constexpr PageCount& operator-=(PageCount n) { return *this = *this - n; }
  friend constexpr auto operator<=>(PageCount, PageCount) = default;  // NOLINT(modernize-use-nullptr)

 private:
  uint64_t value_ = 0;
};

// The number of a page in one client's address space: address / 4096.
class PageIndex {
 public:
  constexpr PageIndex() = default;
  explicit constexpr PageIndex(uint64_t page) : value_(page) {}
  // The page that holds `address`.
  static constexpr PageIndex FromAddress(uint64_t address) { return PageIndex(address >> kPageShift); }

  constexpr uint64_t value() const { return value_; }
  // The page's first byte.
  constexpr uint64_t address() const { return internal::CheckedMul(value_, kPageBytes); }

  friend constexpr PageIndex operator+(PageIndex p, PageCount n) {
    return PageIndex(internal::CheckedAdd(p.value_, n.value()));
  }
  friend constexpr PageIndex operator-(PageIndex p, PageCount n) {
    return PageIndex(internal::CheckedSub(p.value_, n.value()));
  }
  friend constexpr PageCount operator-(PageIndex a, PageIndex b) {
    return PageCount(internal::CheckedSub(a.value_, b.value_));
  }
  constexpr PageIndex& operator+=(PageCount n) { return *this = *this + n; }
  constexpr PageIndex& operator++() { return *this = *this + PageCount(1); }
  friend constexpr auto operator<=>(PageIndex, PageIndex) = default;  // NOLINT(modernize-use-nullptr)

 private:
  uint64_t value_ = 0;
};

// A NUMA node's number as the kernel counts it; numbers may have holes.
class NodeId {
 public:
  constexpr NodeId() = default;
  explicit constexpr NodeId(uint8_t node) : value_(node) {}
  constexpr uint8_t value() const { return value_; }
  friend constexpr auto operator<=>(NodeId, NodeId) = default;  // NOLINT(modernize-use-nullptr)

 private:
  uint8_t value_ = 0;
};

}  // namespace zp
