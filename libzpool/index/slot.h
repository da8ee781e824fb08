// What the index knows about a page: one tagged word.
#pragma once

#include <cstdint>
#include <optional>

#include "libzpool/base/check.h"
#include "libzpool/pool/handle.h"

namespace zp {

// Layout, low bits last:
//
//    63                                                    3 2   0
//   +-------------------------------------------------------+-----+
//   | 0                                                     | 000 |  empty: nothing of ours
//   | pattern, 61 bits, sign-extended to 64                 | 001 |  same-filled
//   | 0 (29)                    | handle (32)               | 010 |  an object in the pool
//   | 0 (29)                    | number (32)               | 011 |  standby: a raw copy, held elsewhere
//   | 0 (21)        | kind (8)  | payload (32)              | 100 |  busy: transient, opaque here
//   +-------------------------------------------------------+-----+
//
// Standby and busy belong to the owner of the index. Tag 7 marks a child in inner nodes and is never a slot.
// A value; copying it moves no ownership: who owns the reference that a handle slot stands for is said where
// slots are passed.
class Slot {
 public:
  constexpr Slot() = default;

  static constexpr Slot Empty() { return Slot(); }
  // Nothing if the pattern needs more than 61 bits as a signed number; such a page is stored by the codec (it
  // shrinks to 30 bytes).
  static constexpr std::optional<Slot> SameFilled(uint64_t pattern) {
    const uint64_t raw = (pattern << kTagBits) | kSameFilled;
    const Slot slot(raw);
    if (slot.pattern() != pattern) return std::nullopt;
    return slot;
  }
  static constexpr Slot FromHandle(Handle handle) {
    return Slot((uint64_t{handle.value()} << kTagBits) | kHandle);
  }
  static constexpr Slot Standby(uint32_t n) { return Slot((uint64_t{n} << kTagBits) | kStandby); }
  static constexpr Slot Busy(uint8_t kind, uint32_t payload) {
    return Slot((uint64_t{kind} << (kTagBits + 32)) | (uint64_t{payload} << kTagBits) | kBusy);
  }
  // From raw(); for memory that is our own. Validate what was recovered with is_valid().
  static constexpr Slot FromRaw(uint64_t raw) { return Slot(raw); }

  constexpr bool is_empty() const { return raw_ == 0; }
  constexpr bool is_same_filled() const { return tag() == kSameFilled; }
  constexpr bool is_handle() const { return tag() == kHandle; }
  constexpr bool is_standby() const { return tag() == kStandby; }
  constexpr bool is_busy() const { return tag() == kBusy; }
  // Whether the page's bytes are with the store: same-filled or handle.
  constexpr bool is_stored() const { return is_same_filled() || is_handle(); }
  // Whether the word is one that a constructor above makes.
  constexpr bool is_valid() const {
    switch (tag()) {
      case kEmpty:
        return raw_ == 0;
      case kSameFilled:
        return true;
      case kHandle:
      case kStandby:
        return raw_ >> (kTagBits + 32) == 0;
      case kBusy:
        return raw_ >> (kTagBits + 40) == 0;
      default:
        return false;
    }
  }

  // Each needs the matching predicate.
  constexpr uint64_t pattern() const { return static_cast<uint64_t>(static_cast<int64_t>(raw_) >> kTagBits); }
  constexpr Handle handle() const { return Handle(static_cast<uint32_t>(raw_ >> kTagBits)); }
  constexpr uint32_t standby() const { return static_cast<uint32_t>(raw_ >> kTagBits); }
  constexpr uint8_t busy_kind() const { return static_cast<uint8_t>(raw_ >> (kTagBits + 32)); }
  constexpr uint32_t busy_payload() const { return static_cast<uint32_t>(raw_ >> kTagBits); }

  constexpr uint64_t raw() const { return raw_; }
  friend constexpr bool operator==(Slot, Slot) = default;

 private:
  static constexpr unsigned kTagBits = 3;
  enum Tag : uint64_t { kEmpty = 0, kSameFilled = 1, kHandle = 2, kStandby = 3, kBusy = 4 };

  explicit constexpr Slot(uint64_t raw) : raw_(raw) {}
  constexpr uint64_t tag() const { return raw_ & ((1 << kTagBits) - 1); }

  uint64_t raw_ = 0;
};
static_assert(sizeof(Slot) == sizeof(uint64_t));

}  // namespace zp
