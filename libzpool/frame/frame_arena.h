// The frames of one NUMA node.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "libzpool/base/fd.h"
#include "libzpool/base/memory_file.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"
#include "libzpool/frame/frame_budget.h"

namespace zp {

inline constexpr uint32_t kFramesPerSpan = 64;  // as many as one 64-bit mask describes
inline constexpr uint64_t kSpanBytes = kFramesPerSpan * kPageBytes;
inline constexpr uint32_t kSpansPerBlock = 8;  // a block is 2 MiB, what a huge page would need
static_assert(kSpanBytes * kSpansPerBlock == uint64_t{2} << 20);

// Who uses a span; recovery and migration find the owner from the frame by it.
enum class FrameOwner : uint8_t { kNone = 0, kZsmalloc = 1, kZbud = 2, kStandby = 3 };
inline constexpr int kFrameOwners = 4;

// Whether a store may be refused for the limits' sake.
enum class Limits : uint8_t {
  kKept,
  kOverLimit,  // no: the page exists nowhere else
};

// What is known of a span from outside.
struct SpanTag {
  FrameOwner owner = FrameOwner::kNone;
  uint8_t size_class = 0;  // as the owner counts
  friend constexpr bool operator==(const SpanTag&, const SpanTag&) = default;
};

// Idea: address space is plentiful, memory is not. An arena reserves several times its capacity as one
//   sparse memfd and hands it out in spans of 64 frames; a frame takes memory from Populate to Punch only.
//   So an owner can have contiguous addresses and partly filled spans without paying for what it does not
//   touch.
// Layout: [ the file's header page, then two bytes per span: owner and size class; whole spans | spans that
// are handed
//   out ], eight spans to a 2 MiB block. Spans are handed out lowest first, which keeps blocks at the end
//   empty.
// Cost: two bytes and a bit per span.
// Trade-off: the kernel is asked for frames of the node and gives others where that node is full; Populate
//   looks (one call of move_pages(2), which moves nothing) and refuses those. A binding policy would need no
//   look, but under it a full node brings the OOM killer.
// Threads: all methods may be called at any time; a span belongs to whom it was handed to.
// Locks: one mutex for the map of spans, a leaf: nothing else is taken and no system call is made under it.
class FrameArena {
 public:
  struct Options {
    NodeId node;
    Bytes capacity;     // sizes the reservation: four times this and 256 MiB, at most 1 TiB
    bool bind = false;  // frames lie on the node, or are refused
  };
  // `budget` must outlive the arena; several arenas share one.
  static Result<std::unique_ptr<FrameArena>> Create(const Options& options, FrameBudget& budget);

  // ---- Coming back (PageStore::Recover). Nobody else is in the arena until it is done.

  // The file of an arena whose process is gone. Errors: as MemoryFile::Adopt; kInvalid where its measures
  // make no sense.
  static Result<MemoryFile> AdoptFile(UniqueFd fd);
  static NodeId NodeOf(const MemoryFile& file) {
    return NodeId(static_cast<uint8_t>(file.header().params[0]));
  }
  // The arena in such a file; all spans are free, and what their tags say and which frames have memory tells
  // ForEachFound. `bind` as in Options.
  static Result<std::unique_ptr<FrameArena>> Recover(MemoryFile file, bool bind, FrameBudget& budget);
  // fn(span, tag, mask of the frames that have memory) -> Status for each span that has a tag or memory, in
  // order. fn calls one of the two below.
  template <typename Fn>
  Status ForEachFound(Fn&& fn) {
    const uint32_t first = FirstSpan(file_.size());
    MemoryFile::Extent extent = ZP_TRY(file_.NextExtent(first * kSpanBytes));
    for (uint32_t span = first; span < span_count_; ++span) {
      const uint64_t begin = span * kSpanBytes;
      uint64_t present = 0;
      while (!extent.empty() && extent.begin < begin + kSpanBytes) {
        present |= FramesBetween(extent.begin < begin ? 0 : extent.begin - begin, extent.end - begin);
        if (extent.end > begin + kSpanBytes) break;
        extent = ZP_TRY(file_.NextExtent(extent.end));
      }
      if (present != 0 || tags_[span].load(std::memory_order_relaxed) != 0)
        ZP_TRY(fn(span, tag(span), present));
    }
    return OkStatus();
  }
  // The span is in use, and of its frames those in the mask, which are taken from the budget, limit or not.
  void AdoptSpan(uint32_t span, uint64_t present) ZP_EXCLUDES(mu_);
  // The span is nobody's: its memory is given back, its tag taken off.
  void ClearSpan(uint32_t span, uint64_t present);
  // Lets go of the file as it is: what it holds is for a successor. Only destroying comes after.
  void Abandon() { taken_.store(0, std::memory_order_relaxed); }

  ~FrameArena();
  FrameArena(const FrameArena&) = delete;
  FrameArena& operator=(const FrameArena&) = delete;

  // Spans at the start of a file of `bytes` that header and tags take.
  static constexpr uint32_t FirstSpan(uint64_t bytes) {
    return static_cast<uint32_t>((kPageBytes + bytes / kSpanBytes * sizeof(uint16_t) + kSpanBytes - 1) /
                                 kSpanBytes);
  }

  NodeId node() const { return node_; }
  int fd() const { return file_.fd(); }
  uint32_t span_count() const { return span_count_; }
  FrameBudget& budget() { return budget_; }

  // A free span's number; its frames hold no memory. kNoMemory: no address space is left.
  Result<uint32_t> AllocateSpan(SpanTag tag) ZP_EXCLUDES(mu_);
  // The frames must have been punched.
  void FreeSpan(uint32_t span) ZP_EXCLUDES(mu_);
  // Whose the span is; kNone for one that is free. May be late by the time it is looked at.
  SpanTag tag(uint32_t span) const {
    const uint16_t word = tags_[span].load(std::memory_order_acquire);
    return {static_cast<FrameOwner>(word & 0xff), static_cast<uint8_t>(word >> 8)};
  }
  uint32_t lowest_free_span() const ZP_EXCLUDES(mu_);
  // No span from this one on was ever handed out.
  uint32_t span_limit() const { return highest_span_.load(std::memory_order_relaxed) + 1; }

  // Makes the frames of `span` that are in the mask present; those that are stay as they are. The caller took
  // them from the budget and counts them. kNoMemory: the node or the machine is full; some may be present,
  // punch them. Sleeps.
  Status Populate(uint32_t span, uint64_t frames);
  // The same for frames that hold nothing and that nobody else knows of yet.
  Status PopulateFresh(uint32_t span, uint64_t frames);
  // Gives their memory to the kernel and their number to the budget. Nobody may touch them meanwhile. Sleeps.
  void Punch(uint32_t span, uint64_t frames);

  // Takes `count` frames from the budget for this arena, or none. kOverLimit: all of them, whatever the
  // limits say.
  bool TryTake(uint32_t count, Limits limits = Limits::kKept) {
    if (limits == Limits::kOverLimit) {
      budget_.TakeAlways(count);
      return Took(count);
    }
    return HasRoom(count) && budget_.TryTake(count) && Took(count);
  }
  // For the target of a migration, see FrameBudget::kMigrationReserve.
  bool TryTakeForMigration(uint32_t count) {
    return HasRoom(count) && budget_.TryTakeForMigration(count) && Took(count);
  }
  // Frames that this arena may have at most, beside the budget of all. Concurrent takers may pass it by a few
  // frames.
  void set_limit_frames(uint64_t frames) { limit_.store(frames, std::memory_order_relaxed); }
  uint64_t limit_frames() const { return limit_.load(std::memory_order_relaxed); }
  // Frames taken and not punched: populated ones, and those about to be.
  uint64_t frames_in_use() const { return taken_.load(std::memory_order_relaxed); }

  // The byte at `offset` of the arena. Valid as long as the arena lives; touch it only while its frame is
  // populated.
  std::byte* At(uint64_t offset) const { return file_.data() + offset; }
  // Copies an object to `offset`, which nobody touched lately. All its lines are asked for first: the stores
  // of a copy come into the cache one behind the other, and whoever publishes the object waits for the last.
  // A store of 2 KiB takes 0.42 us so, and 0.59 without.
  void Write(uint64_t offset, std::span<const std::byte> bytes) {
    std::byte* const to = At(offset);
    for (size_t line = 0; line < bytes.size(); line += kLineBytes) __builtin_prefetch(to + line);
    std::memcpy(to, bytes.data(), bytes.size());
  }
  // Bytes that tags and the map of spans take.
  uint64_t metadata_bytes() const;

 private:
  // make(file offset, bytes) for each run of frames, which then are seen to lie on the node.
  template <typename Make>
  Status PopulateRuns(uint32_t span, uint64_t frames, Make&& make);
  FrameArena(const Options& options, FrameBudget& budget, MemoryFile file);
  void PunchRuns(uint32_t span, uint64_t frames);
  // The frames of a span that lie between two offsets in it; the end may be behind it.
  static uint64_t FramesBetween(uint64_t begin, uint64_t end) {
    const uint64_t first = begin / kPageBytes;
    const uint64_t count = (end < kSpanBytes ? end : kSpanBytes) / kPageBytes - first;
    return (count == kFramesPerSpan ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << first;
  }
  bool HasRoom(uint32_t count) const { return frames_in_use() + count <= limit_frames(); }
  bool Took(uint32_t count) {
    taken_.fetch_add(count, std::memory_order_relaxed);
    return true;
  }

  static constexpr size_t kLineBytes = 64;

  const NodeId node_;
  const bool bind_;
  FrameBudget& budget_;
  MemoryFile file_;
  std::atomic<uint16_t>* const tags_;
  const uint32_t span_count_;
  std::atomic<uint64_t> taken_{0};
  std::atomic<uint64_t> limit_{~uint64_t{0} >> 1};
  std::atomic<uint32_t> highest_span_{0};

  mutable Mutex mu_;
  std::vector<uint64_t> free_spans_ ZP_GUARDED_BY(mu_);  // one bit per span, set: free
  size_t first_word_ ZP_GUARDED_BY(mu_) = 0;             // no free span lies in a word before this one
};

}  // namespace zp
