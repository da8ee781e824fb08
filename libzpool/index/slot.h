// What the index knows about a page: one tagged word of 32 bits.
#pragma once

#include <cstdint>
#include <optional>

#include "libzpool/base/check.h"
#include "libzpool/pool/handle.h"

namespace zp {

// Layout, low bits last:
//
//    31                              3 2   0
//   +---------------------------------+-----+
//   | 0                               | 000 |  empty: nothing of ours
//   | pattern, 29 bits, sign-extended | 001 |  same-filled: a narrow pattern
//   | handle (29)                     | 010 |  an object in the pool; 0: lost
//   | handle (29)                     | 011 |  the same, filling
//   | kind (5)  | payload (24)        | 100 |  busy: transient, opaque here
//   | 0 | 0 (12) | unit (16)          | 101 |  same-filled: a unit of two bytes, four times
//   | 1 | 0 (12) | unit (16)          | 101 |  the same, filling
//   | pattern, 29 bits, sign-extended | 110 |  same-filled: a narrow pattern, filling
//   +---------------------------------+-----+
//
// *Stored* is what has its bytes with the store. *Filling* is a stored slot whose page is on its way home:
// one thread has it and will settle it. It still says which object that is, and stands for a reference to it
// as before, so that a successor of a process that dies in the middle finds both. *Lost* is a stored slot
// whose bytes are gone: it loads as corrupt and has no object, so who touches the page is told, and never
// gets zeros. Busy belongs to the owner of the index. Tag 7 marks a child in inner nodes and is never a slot.
// A page has one word only: the second form of same-filled is used where the first cannot be. Cost: a slot
// per page is most of what the index costs, hence 32 bits; what they can't name is refused where
//   it is made (handles, see Handle::kMax) or kept in another way (patterns, see SameFilled).
// A value; copying it moves no ownership: who owns the reference that a handle slot stands for is said where
// slots are passed.
class Slot {
 public:
  static constexpr unsigned kTagBits = 3;
  static constexpr unsigned kNumberBits = 32 - kTagBits;
  static constexpr unsigned kBusyPayloadBits = 24;
  static constexpr unsigned kBusyKindBits = kNumberBits - kBusyPayloadBits;
  // The largest of each; beyond them is a ZP_CHECK.
  static constexpr uint32_t kMaxBusyPayload = (uint32_t{1} << kBusyPayloadBits) - 1;
  static constexpr uint8_t kMaxBusyKind = (1u << kBusyKindBits) - 1;
  static_assert(Handle::kBits == kNumberBits);

  constexpr Slot() = default;

  static constexpr Slot Empty() { return Slot(); }
  // Nothing if the pattern neither fits 29 bits as a signed number nor repeats its low 16 bits (as a byte
  // eight times does); such a page is stored by the codec (it shrinks to 30 bytes).
  static constexpr std::optional<Slot> SameFilled(uint64_t pattern) {
    const uint32_t low = static_cast<uint32_t>(pattern);
    const Slot narrow((low << kTagBits) | kSameFilled);
    if (narrow.pattern() == pattern) return narrow;
    const Slot repeated(((low & 0xffff) << kTagBits) | kRepeated);
    if (repeated.pattern() == pattern) return repeated;
    return std::nullopt;
  }
  static constexpr Slot FromHandle(Handle handle) {
    ZP_CHECK(handle.value() <= Handle::kMax, "a handle that a slot cannot hold");
    return Slot((handle.value() << kTagBits) | kHandle);
  }
  static constexpr Slot Lost() { return Slot(kHandle); }
  static constexpr Slot Busy(uint8_t kind, uint32_t payload) {
    ZP_CHECK(kind <= kMaxBusyKind && payload <= kMaxBusyPayload, "a busy state that a slot cannot hold");
    return Slot((uint32_t{kind} << (kTagBits + kBusyPayloadBits)) | (payload << kTagBits) | kBusy);
  }
  // From raw(); for memory that is our own. Validate what was recovered with is_valid().
  static constexpr Slot FromRaw(uint32_t raw) { return Slot(raw); }

  constexpr bool is_empty() const { return raw_ == 0; }
  constexpr bool is_same_filled() const {
    return tag() == kSameFilled || (tag() == kRepeated && (raw_ & kRepeatedFilling) == 0);
  }
  constexpr bool is_handle() const { return tag() == kHandle && !is_lost(); }
  constexpr bool is_lost() const { return raw_ == kHandle; }
  constexpr bool is_busy() const { return tag() == kBusy; }
  // Whether the page's bytes are with the store: same-filled or handle; or should be: lost.
  constexpr bool is_stored() const { return is_same_filled() || tag() == kHandle; }
  constexpr bool is_filling() const {
    return tag() == kFillingHandle || tag() == kFillingSameFilled ||
           (tag() == kRepeated && (raw_ & kRepeatedFilling) != 0);
  }
  // Whether the word is one that a constructor above makes, or Filling of one.
  constexpr bool is_valid() const {
    switch (tag()) {
      case kEmpty:
        return raw_ == 0;
      case kHandle:
      case kFillingHandle:
      case kBusy:
        return true;
      default: {
        const Slot settled = Settled();
        return settled.is_same_filled() && SameFilled(settled.pattern()) == settled;
      }
    }
  }

  // The filling form of a stored slot.
  constexpr Slot Filling() const {
    ZP_CHECK(is_stored(), "only what is stored can be on its way home");
    if (tag() == kRepeated) return Slot(raw_ | kRepeatedFilling);
    return Slot((raw_ & ~kTagMask) | (tag() == kHandle ? kFillingHandle : kFillingSameFilled));
  }
  // The stored slot of which a filling one is the filling form; any other slot as it is.
  constexpr Slot Settled() const {
    switch (tag()) {
      case kFillingHandle:
        return Slot((raw_ & ~kTagMask) | kHandle);
      case kFillingSameFilled:
        return Slot((raw_ & ~kTagMask) | kSameFilled);
      case kRepeated:
        return Slot(raw_ & ~kRepeatedFilling);
      default:
        return *this;
    }
  }

  // Each needs the matching predicate.
  constexpr uint64_t pattern() const {
    if (tag() == kRepeated) return uint64_t{number()} * 0x0001000100010001;
    return static_cast<uint64_t>(int64_t{static_cast<int32_t>(raw_) >> kTagBits});
  }
  constexpr Handle handle() const { return Handle(number()); }
  constexpr uint8_t busy_kind() const { return static_cast<uint8_t>(number() >> kBusyPayloadBits); }
  constexpr uint32_t busy_payload() const { return number() & kMaxBusyPayload; }

  constexpr uint32_t raw() const { return raw_; }
  friend constexpr bool operator==(Slot, Slot) = default;

 private:
  enum Tag : uint32_t {
    kEmpty = 0,
    kSameFilled = 1,
    kHandle = 2,
    kFillingHandle = 3,
    kBusy = 4,
    kRepeated = 5,
    kFillingSameFilled = 6,
  };
  static constexpr uint32_t kTagMask = (1u << kTagBits) - 1;
  static constexpr uint32_t kRepeatedFilling = 1u << 31;

  explicit constexpr Slot(uint32_t raw) : raw_(raw) {}
  constexpr uint32_t tag() const { return raw_ & kTagMask; }
  // What stands beside the tag.
  constexpr uint32_t number() const { return raw_ >> kTagBits; }

  uint32_t raw_ = 0;
};
static_assert(sizeof(Slot) == sizeof(uint32_t));

}  // namespace zp
