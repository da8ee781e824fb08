// The stable name of a stored object.
#pragma once

#include <compare>
#include <cstdint>

namespace zp {

// An index into a HandleTable; never an address, so the object may move while the handle stays. 0 is no
// handle. A Slot has 29 bits for it, so the table stops at 2^29 - 1 objects: 2 TiB of pages.
class Handle {
 public:
  static constexpr unsigned kBits = 29;
  static constexpr uint32_t kMax = (uint32_t{1} << kBits) - 1;

  constexpr Handle() = default;
  explicit constexpr Handle(uint32_t index) : index_(index) {}
  constexpr uint32_t value() const { return index_; }
  constexpr bool is_null() const { return index_ == 0; }
  friend constexpr auto operator<=>(Handle, Handle) = default;

 private:
  uint32_t index_ = 0;
};

}  // namespace zp
