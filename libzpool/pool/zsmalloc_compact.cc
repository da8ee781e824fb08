// ZsmallocPool's compaction: objects of sparse zspages go into holes of others, or zspages are packed anew.
#include <algorithm>
#include <array>
#include <bit>
#include <optional>

#include "libzpool/base/pause_point.h"
#include "libzpool/pool/zsmalloc_pool.h"

namespace zp {
namespace {

// Zspages are packed anew if that frees one of so many of their frames.
constexpr uint64_t kMergeGain = 8;

}  // namespace

bool ZsmallocPool::AddMoving(Zspage* from, uint32_t slot, const Claim& to, CompactBatch* batch) const {
  const Handle handle = from->handle(slot);
  const std::optional<uint64_t> word = handles_.LookupAt(handle, arena_.node(), from->OffsetOf(slot));
  if (!word.has_value()) return false;
  batch->objects[batch->count++] = {handle, *word, slot, to};
  return true;
}

// All that is in `from`, or the first of it, into holes of others; it is in no list.
bool ZsmallocPool::ChooseHolesLocked(SizeClass& c, Zspage* from, CompactBatch* batch) {
  const uint32_t wanted = std::min(from->live(), kCompactObjects);
  for (int at = from->HighestUsed(from->objects()); at >= 0 && batch->count < wanted;
       at = from->HighestUsed(static_cast<uint32_t>(at))) {
    Claim claim;
    if (ClaimLocked(c, true, Limits::kKept, &claim) != ClaimOutcome::kClaimed) break;
    if (!AddMoving(from, static_cast<uint32_t>(at), claim, batch)) VacateLocked(c, claim.zspage, claim.slot);
  }
  // Some may be on their way in or out; but if there was no room for most, the frames would not come free.
  if (batch->count * 2 > wanted) return true;
  for (uint32_t i = 0; i < batch->count; ++i)
    VacateLocked(c, batch->objects[i].to.zspage, batch->objects[i].to.slot);
  batch->count = 0;
  return false;
}

ZsmallocPool::Choice ZsmallocPool::ChooseLocked(SizeClass& c, uint32_t waste_permille, CompactBatch* batch) {
  const uint64_t object_bytes = c.stats.object_bytes;
  const auto frames_for = [&](uint64_t objects) {
    return (objects * object_bytes + kPageBytes - 1) / kPageBytes;
  };
  const uint64_t objects = c.objects.load(std::memory_order_relaxed);
  const uint64_t in_use = c.stats.frames - c.stats.idle_frames;
  if (in_use <= frames_for(objects) ||
      (in_use - frames_for(objects)) * 1000 <= c.stats.frames * waste_permille)
    return {};
  Choice merge;
  uint64_t live = 0;
  uint64_t frames = 0;
  for (int group = 0; group < static_cast<int>(FullnessGroup::kFull); ++group) {
    Zspage* zspage = c.groups[static_cast<size_t>(group)].front();
    for (; zspage != nullptr && merge.count < kMergeSpans; zspage = GroupList::Next(zspage)) {
      // What cannot be isolated would stay, and the others be packed anew for nothing, again and again.
      if (zspage->pins != 0 || zspage->punching() != 0 || zspage->live() == 0 || zspage->HasUnbound())
        continue;
      if (merge.count == 0 && group < static_cast<int>(FullnessGroup::kAlmostFull)) {
        UnlinkLocked(c, zspage);
        zspage->isolated = true;
        Choice holes;
        holes.from = zspage;
        if (ChooseHolesLocked(c, zspage, batch)) return holes;
        zspage->isolated = false;
        RelinkLocked(c, zspage);
      }
      if (live + zspage->live() > zspage->objects()) break;
      live += zspage->live();
      frames += static_cast<uint64_t>(std::popcount(zspage->occupied()));
      merge.spans[merge.count++] = zspage->span();
    }
  }
  merge.frames = frames_for(live);
  const bool gains = frames > merge.frames && (frames - merge.frames) * kMergeGain >= frames;
  return gains ? merge : Choice{};
}

Compacted ZsmallocPool::Merge(SizeClass& c, const Choice& choice, Epochs& epochs) {
  const uint32_t size_class = classes_.NumberOf(c);
  const uint64_t all = ~uint64_t{0};
  const Result<uint32_t> target =
      Reserve({choice.frames >= 64 ? all : (uint64_t{1} << choice.frames) - 1, size_class});
  if (!target.ok()) return {};
  Compacted result;
  std::array<uint32_t, kMergeSpans> isolated;
  uint32_t count = 0;
  for (uint32_t i = 0; i < choice.count; ++i) {
    if (Isolate(choice.spans[i], {all, size_class}) == MigrateOutcome::kMoved)
      isolated[count++] = choice.spans[i];
  }
  uint32_t next = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const MigratedSpan moved = MoveSpan(isolated[i], *this, *target, &next, nullptr);
    result.objects += moved.objects;
    result.bytes += moved.bytes;
  }
  ZP_PAUSE_POINT("compact.published");
  epochs.Synchronize();
  for (uint32_t i = 0; i < count; ++i) Putback(isolated[i]);
  Putback(*target);
  return result;
}

Compacted ZsmallocPool::Compact(uint32_t size_class, uint32_t waste_permille, Epochs& epochs) {
  SizeClass& c = classes_[size_class];
  CompactBatch batch;
  Compacted result;
  Choice choice;
  {
    MutexLock lock(c.mu);
    choice = ChooseLocked(c, waste_permille, &batch);
  }
  Zspage* const from = choice.from;
  if (from == nullptr) return choice.count == 0 ? result : Merge(c, choice, epochs);
  for (uint32_t i = 0; i < batch.count; ++i) {
    Moving& object = batch.objects[i];
    object.moved =
        MoveObject(from, object.slot, *this, object.to.zspage, object.to.slot, object.handle, object.word);
    if (!object.moved) continue;
    ++result.objects;
    result.bytes += Location::Decode(object.word).length;
  }
  ZP_PAUSE_POINT("compact.published");
  epochs.Synchronize();
  PunchBatch punch;
  {
    MutexLock lock(c.mu);
    for (uint32_t i = 0; i < batch.count; ++i) {
      const Moving& object = batch.objects[i];
      if (object.moved) {
        VacateLocked(c, from, object.slot);
      } else {
        VacateLocked(c, object.to.zspage, object.to.slot);
      }
    }
    from->isolated = false;
    RelinkLocked(c, from);
    if (from->idle() != 0) TakeIdleLocked(c, from, &punch);
  }
  FinishPunch(c, &punch);
  return result;
}

}  // namespace zp
