#include "libzpool/pool/zspage.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "libzpool/base/check.h"

namespace zp {

Zspage* Zspage::New(uint32_t span, uint32_t size_class) {
  const uint64_t bytes = BytesOf(size_class);
  void* memory = ::operator new (bytes, std::align_val_t{kAlignment}, std::nothrow);
  if (memory == nullptr) return nullptr;
  Zspage* zspage = new (memory) Zspage(span, size_class);
  std::memset(static_cast<void*>(zspage->used()), 0, bytes - sizeof(Zspage));
  return zspage;
}

uint64_t Zspage::BytesOf(uint32_t size_class) {
  const uint32_t objects = SizeClassGeometry::ObjectsPerZspage(size_class);
  return sizeof(Zspage) + WordsOf(objects) * sizeof(uint64_t) + objects * sizeof(std::atomic<uint32_t>);
}

void Zspage::Destroy(Zspage* zspage) {
  zspage->~Zspage();
  ::operator delete (zspage, std::align_val_t{kAlignment});
}

Zspage::Zspage(uint32_t span, uint32_t size_class)
    : span_(span),
      size_class_(static_cast<uint16_t>(size_class)),
      object_bytes_(static_cast<uint16_t>(SizeClassGeometry::ObjectBytes(size_class))),
      objects_(SizeClassGeometry::ObjectsPerZspage(size_class)) {}

FullnessGroup Zspage::group() const {
  if (live_ == objects_) return FullnessGroup::kFull;
  return static_cast<FullnessGroup>(live_ * 4 / objects_);
}

int Zspage::FindFree() const {
  const int slot = FirstFreeInOpen(open_, taken_);
  return slot >= 0 ? slot : FirstFreeIn(0, objects_, 0);
}

int Zspage::FirstFreeInOpen(uint64_t open, uint64_t must_be_taken) const {
  for (; open != 0; open &= open - 1) {
    uint32_t first = 0;
    uint32_t end = 0;
    SlotsOf(static_cast<uint32_t>(std::countr_zero(open)), &first, &end);
    const int slot = FirstFreeIn(first, end, must_be_taken);
    if (slot >= 0) return slot;
  }
  return -1;
}

int Zspage::HighestUsed(uint32_t limit) const {
  for (uint32_t word = (limit + 63) / 64; word-- > 0;) {
    uint64_t in_use = used()[word];
    if (limit < (word + 1) * 64) in_use &= (uint64_t{1} << (limit % 64)) - 1;
    if (in_use != 0)
      return static_cast<int>(word * 64 + 63 - static_cast<uint32_t>(std::countl_zero(in_use)));
  }
  return -1;
}

int Zspage::LowestUsed(uint32_t begin) const {
  for (uint32_t word = begin / 64; word < WordsOf(objects_); ++word) {
    uint64_t in_use = used()[word];
    if (word == begin / 64) in_use &= ~uint64_t{0} << (begin % 64);
    if (in_use != 0) return static_cast<int>(word * 64 + static_cast<uint32_t>(std::countr_zero(in_use)));
  }
  return -1;
}

uint64_t Zspage::FramesOf(uint32_t slot) const {
  const uint32_t begin = slot * object_bytes_;
  const uint32_t first = begin / kPageBytes;
  const uint32_t last = (begin + object_bytes_ - 1) / kPageBytes;
  return (uint64_t{1} << first) | (uint64_t{1} << last);
}

void Zspage::Occupy(uint32_t slot) {
  ZP_DCHECK(!is_occupied(slot), "slot is in use");
  used()[slot / 64] |= uint64_t{1} << (slot % 64);
  handles()[slot].store(0, std::memory_order_relaxed);
  ++claimed_;
  ++live_;
  Refresh(FramesOf(slot));
}

void Zspage::Vacate(uint32_t slot) {
  ZP_CHECK(is_occupied(slot), "object freed twice");
  used()[slot / 64] &= ~(uint64_t{1} << (slot % 64));
  if (handle(slot).is_null()) --claimed_;
  --live_;
  Refresh(FramesOf(slot));
}

void Zspage::Add(uint32_t slot, SlotSet* slots) const {
  slots->words[slot / 64] |= uint64_t{1} << (slot % 64);
  slots->frames |= FramesOf(slot);
  ++slots->count;
}

void Zspage::OccupyAll(const SlotSet& slots) {
  for (size_t word = 0; word < WordsOf(objects_); ++word) {
    ZP_DCHECK((used()[word] & slots.words[word]) == 0, "slot is in use");
    used()[word] |= slots.words[word];
  }
  live_ += slots.count;
  Refresh(slots.frames);
}

void Zspage::VacateAll(const SlotSet& slots) {
  for (size_t word = 0; word < WordsOf(objects_); ++word) {
    ZP_CHECK((used()[word] & slots.words[word]) == slots.words[word], "object freed twice");
    used()[word] &= ~slots.words[word];
  }
  live_ -= slots.count;
  Refresh(slots.frames);
}

uint32_t Zspage::SlotAt(uint64_t offset_in_span) const {
  ZP_CHECK(HasSlotAt(offset_in_span), "no object begins here");
  return static_cast<uint32_t>(offset_in_span / object_bytes_);
}

void Zspage::MarkTaken(uint64_t frames) {
  taken_ |= frames;
  Refresh(frames);
}

uint64_t Zspage::BeginPunch() {
  const uint64_t frames = idle_;
  idle_ = 0;
  punching_ |= frames;
  open_ &= ~frames;
  return frames;
}

void Zspage::EndPunch(uint64_t frames) {
  punching_ &= ~frames;
  taken_ &= ~frames;
  present_ &= ~frames;
}

int Zspage::FirstFreeIn(uint32_t begin, uint32_t end, uint64_t must_be_taken) const {
  for (uint32_t slot = begin; slot < end;) {
    const uint64_t free = ~used()[slot / 64] >> (slot % 64);
    if (free == 0) {
      slot = (slot / 64 + 1) * 64;
      continue;
    }
    slot += static_cast<uint32_t>(std::countr_zero(free));
    if (slot >= end) return -1;
    const uint64_t frames = FramesOf(slot);
    const uint64_t forbidden = (frames & punching_) | (must_be_taken != 0 ? frames & ~must_be_taken : 0);
    if (forbidden == 0) return static_cast<int>(slot);
    // On to the first that begins behind the frame, so that a frame costs one look.
    const uint32_t behind = static_cast<uint32_t>((63 - std::countl_zero(forbidden) + 1) * kPageBytes);
    slot = (behind + object_bytes_ - 1) / object_bytes_;
  }
  return -1;
}

void Zspage::SlotsOf(uint32_t frame, uint32_t* first, uint32_t* end) const {
  const uint32_t begin_byte = frame * static_cast<uint32_t>(kPageBytes);
  const uint32_t end_byte = begin_byte + static_cast<uint32_t>(kPageBytes);
  *first = begin_byte / object_bytes_;
  *end = std::min((end_byte + object_bytes_ - 1) / object_bytes_, objects_);
}

bool Zspage::HasObject(uint32_t frame) const {
  uint32_t first = 0;
  uint32_t end = 0;
  SlotsOf(frame, &first, &end);
  const int slot = LowestUsed(first);
  return slot >= 0 && static_cast<uint32_t>(slot) < end;
}

void Zspage::Refresh(uint64_t frames) {
  for (uint64_t rest = frames & taken_ & ~punching_; rest != 0; rest &= rest - 1) {
    uint32_t first = 0;
    uint32_t end = 0;
    SlotsOf(static_cast<uint32_t>(std::countr_zero(rest)), &first, &end);
    uint64_t any = 0;
    uint64_t free = 0;
    for (uint32_t word = first / 64; word * 64 < end; ++word) {
      uint64_t its = ~uint64_t{0};
      if (word == first / 64) its &= ~uint64_t{0} << (first % 64);
      if (end < (word + 1) * 64) its &= (uint64_t{1} << (end % 64)) - 1;
      any |= used()[word] & its;
      free |= ~used()[word] & its;
    }
    const uint64_t bit = rest & -rest;
    idle_ = any == 0 ? idle_ | bit : idle_ & ~bit;
    open_ = free != 0 ? open_ | bit : open_ & ~bit;
  }
}

}  // namespace zp
