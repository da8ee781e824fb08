// The two words of a handle's entry: where the object lies, and whose page it is.
#pragma once

#include <cstdint>

#include "libzpool/base/units.h"
#include "libzpool/codec/codec.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/frame/topology.h"

namespace zp {

enum class EntryState : uint8_t {
  kFree = 0,      // a fresh, zeroed entry is free; the offset bits then hold the next free handle
  kReserved = 1,  // taken from the free list, not published yet; after a crash it is free
  kLive = 2,      // the object is readable
};

// Layout of the word:
//
//    63  58 57                      22 21  18 17        6 5    4 3        0
//   +------+--------------------------+------+-----------+------+----------+
//   | node |  offset / 16 bytes       | codec| length-1  | state|generation|
//   |  6   |  36 (1 TiB per node)     |  4   |    12     |  2   |    4     |
//   +------+--------------------------+------+-----------+------+----------+
//
// One word, so that a move is one compare-and-swap. The generation goes up each time an entry is freed, so
// that a mover who loaded the word before cannot publish for the entry's next object.
struct Location {
  NodeId node;
  uint64_t offset = 0;  // bytes from the start of the node's arena; a multiple of 16
  CodecId codec = CodecId::kRaw;
  uint32_t length = 1;  // bytes, 1..4096
  EntryState state = EntryState::kFree;
  uint8_t generation = 0;

  static constexpr unsigned kGenerationBits = 4, kStateBits = 2, kLengthBits = 12, kCodecBits = 4,
                            kOffsetBits = 36, kNodeBits = 6;
  static constexpr unsigned kStateShift = kGenerationBits;
  static constexpr unsigned kLengthShift = kStateShift + kStateBits;
  static constexpr unsigned kCodecShift = kLengthShift + kLengthBits;
  static constexpr unsigned kOffsetShift = kCodecShift + kCodecBits;
  static constexpr unsigned kNodeShift = kOffsetShift + kOffsetBits;
  static constexpr uint64_t kGranuleBytes = 16;

  constexpr uint64_t Encode() const {
    return (uint64_t{node.value()} << kNodeShift) | ((offset / kGranuleBytes) << kOffsetShift) |
           (uint64_t{static_cast<uint8_t>(codec)} << kCodecShift) | (uint64_t{length - 1} << kLengthShift) |
           (uint64_t{static_cast<uint8_t>(state)} << kStateShift) | generation;
  }
  static constexpr Location Decode(uint64_t word) {
    Location location;
    location.node = NodeId(static_cast<uint8_t>(word >> kNodeShift));
    location.offset = ((word >> kOffsetShift) & Mask(kOffsetBits)) * kGranuleBytes;
    location.codec = static_cast<CodecId>((word >> kCodecShift) & Mask(kCodecBits));
    location.length = static_cast<uint32_t>((word >> kLengthShift) & Mask(kLengthBits)) + 1;
    location.state = static_cast<EntryState>((word >> kStateShift) & Mask(kStateBits));
    location.generation = static_cast<uint8_t>(word & Mask(kGenerationBits));
    return location;
  }
  // Whether a load may read it.
  constexpr bool is_readable() const { return state == EntryState::kLive; }

 private:
  static constexpr uint64_t Mask(unsigned bits) { return (uint64_t{1} << bits) - 1; }
};
static_assert(Location::kNodeShift + Location::kNodeBits == 64);
static_assert(uint64_t{1} << Location::kNodeBits == kMaxNodes);
static_assert(uint64_t{1} << Location::kLengthBits == kPageBytes);
static_assert(1u << Location::kCodecBits == kCodecIdLimit);

// Whose page an object is: {client : 19, page : 45}. The second index of the pool, from object back to owner.
// An object that clones share has several owners; the word names the one that stored it, or the last one that
// was set, and whoever goes by it looks the page up there before believing it.
struct Owner {
  uint32_t client = 0;
  PageIndex page;
  // Whose bytes these are, across clones: a number that only those know who may load them. It is not in the
  // word; the store mixes it into the page's checksum, see PageStore::Load.
  uint32_t domain = 0;

  static constexpr unsigned kClientBits = 64 - kPageIndexBits;
  static constexpr uint32_t kClientLimit = uint32_t{1} << kClientBits;

  constexpr uint64_t Encode() const {
    return (uint64_t{client} << kPageIndexBits) | (page.value() & (kPageIndexLimit - 1));
  }
  static constexpr Owner Decode(uint64_t word) {
    return Owner{static_cast<uint32_t>(word >> kPageIndexBits), PageIndex(word & (kPageIndexLimit - 1)), 0};
  }
  friend constexpr bool operator==(const Owner&, const Owner&) = default;
};
static_assert(Owner::kClientBits == 19);

}  // namespace zp
