// The stable name of a stored object.
#pragma once

#include <compare>
#include <cstdint>

namespace zp {

// An index into a HandleTable; never an address, so the object may move while the handle stays. 0 is no
// handle.
class Handle {
 public:
  constexpr Handle() = default;
  explicit constexpr Handle(uint32_t index) : index_(index) {}
  constexpr uint32_t value() const { return index_; }
  constexpr bool is_null() const { return index_ == 0; }
  friend constexpr auto operator<=>(Handle, Handle) = default;

 private:
  uint32_t index_ = 0;
};

}  // namespace zp
