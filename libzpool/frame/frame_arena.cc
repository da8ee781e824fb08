#include "libzpool/frame/frame_arena.h"

#include <numaif.h>

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "libzpool/base/pause_point.h"
#include "libzpool/frame/topology.h"

namespace zp {
namespace {

constexpr uint32_t kFramesLayoutVersion = 2;
// 36 bits of 16-byte granules, see location.h.
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 40;
// Every size class may have spans of its own that are hardly filled: 256 classes of one span are 64 MiB, and
// four nodes' worth of slack costs nothing but addresses.
constexpr uint64_t kReserveSlackBytes = uint64_t{256} << 20;
constexpr uint64_t kReserveFactor = 4;

uint64_t ReserveBytes(Bytes capacity) {
  const uint64_t wanted =
      std::min(capacity.value(), kMaxArenaBytes / kReserveFactor) * kReserveFactor + kReserveSlackBytes;
  const uint64_t block = kSpanBytes * kSpansPerBlock;
  return std::min((wanted + block - 1) / block * block, kMaxArenaBytes);
}

// Preferred, not bound: where a bound node is full the kernel does not refuse the page, it kills a process.
Status PreferNode(std::byte* at, uint64_t bytes, NodeId node) {
  const unsigned long mask = 1UL << node.value();
  // The kernel reads maxnode - 1 bits.
  if (::mbind(at, bytes, MPOL_PREFERRED, &mask, sizeof(mask) * 8 + 1, 0) != 0) return ErrnoError("mbind");
  return OkStatus();
}

// Whether none of the pages is known to lie on another node. A place that the kernel does not tell is in
// order.
bool NoneElsewhere(std::byte* at, uint32_t count, NodeId node) {
  while (count > 0) {
    const uint32_t asked = std::min(count, kFramesPerSpan);
    void* pages[kFramesPerSpan];
    int places[kFramesPerSpan];
    for (uint32_t i = 0; i < asked; ++i) pages[i] = at + i * kPageBytes;
    // Without nodes to move to this moves nothing and says where the pages are.
    if (::move_pages(0, asked, pages, nullptr, places, 0) != 0) return true;
    for (uint32_t i = 0; i < asked; ++i) {
      if (places[i] >= 0 && places[i] != node.value()) return false;
    }
    at += asked * kPageBytes;
    count -= asked;
  }
  return true;
}

// Header page and tags, in whole pages.
uint64_t TagsEnd(uint64_t bytes) {
  return kPageBytes + (bytes / kSpanBytes * sizeof(uint16_t) + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// The lowest run of set bits.
struct Run {
  uint32_t first;
  uint32_t count;
  uint64_t mask;
};
Run LowestRun(uint64_t frames) {
  const uint32_t first = static_cast<uint32_t>(std::countr_zero(frames));
  const uint32_t count = static_cast<uint32_t>(std::countr_one(frames >> first));
  const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  return {first, count, ones << first};
}

}  // namespace

Result<std::unique_ptr<FrameArena>> FrameArena::Create(const Options& options, FrameBudget& budget) {
  const uint64_t bytes = ReserveBytes(options.capacity);
  MemoryFile file =
      ZP_TRY(MemoryFile::Create("uzswap-frames", FileKind::kFrames, kFramesLayoutVersion, bytes));
  if (options.bind) ZP_TRY(PreferNode(file.data(), file.size(), options.node));
  file.header().params[0] = options.node.value();
  file.header().params[1] = kSpanBytes;
  file.header().params[2] = kPageBytes;  // where the tags lie
  ZP_TRY(file.Populate(kPageBytes, TagsEnd(bytes) - kPageBytes));
  return std::unique_ptr<FrameArena>(new FrameArena(options, budget, std::move(file)));
}

Result<MemoryFile> FrameArena::AdoptFile(UniqueFd fd) {
  MemoryFile file = ZP_TRY(MemoryFile::Adopt(std::move(fd), FileKind::kFrames, kFramesLayoutVersion));
  const FileHeader& header = file.header();
  if (header.params[0] >= kMaxNodes || header.params[1] != kSpanBytes || header.params[2] != kPageBytes ||
      file.size() % kSpanBytes != 0 || file.size() > kMaxArenaBytes ||
      FirstSpan(file.size()) >= file.size() / kSpanBytes)
    return Error{Errc::kInvalid, 0, "the measures of a file of frames"};
  return file;
}

Result<std::unique_ptr<FrameArena>> FrameArena::Recover(MemoryFile file, bool bind, FrameBudget& budget) {
  const uint64_t bytes = file.size();
  const Options options{NodeOf(file), Bytes(bytes), bind};
  if (bind) ZP_TRY(PreferNode(file.data(), bytes, options.node));
  // They are there, but for a file that was damaged.
  ZP_TRY(file.Populate(kPageBytes, TagsEnd(bytes) - kPageBytes));
  const uint32_t first = FirstSpan(bytes);
  if (first * kSpanBytes > TagsEnd(bytes)) file.Punch(TagsEnd(bytes), first * kSpanBytes - TagsEnd(bytes));
  std::unique_ptr<FrameArena> arena(new (std::nothrow) FrameArena(options, budget, std::move(file)));
  if (arena == nullptr) return Error{Errc::kNoMemory, 0, "arena of frames"};
  for (uint32_t span = 0; span < first; ++span) arena->tags_[span].store(0, std::memory_order_relaxed);
  return arena;
}

void FrameArena::AdoptSpan(uint32_t span, uint64_t present) {
  const uint64_t count = static_cast<uint64_t>(std::popcount(present));
  budget_.TakeAlways(count);
  taken_.fetch_add(count, std::memory_order_relaxed);
  MutexLock lock(mu_);
  free_spans_[span / 64] &= ~(uint64_t{1} << (span % 64));
  highest_span_.store(std::max(span, highest_span_.load(std::memory_order_relaxed)),
                      std::memory_order_relaxed);
}

void FrameArena::ClearSpan(uint32_t span, uint64_t present) {
  PunchRuns(span, present);
  tags_[span].store(0, std::memory_order_release);
}

FrameArena::FrameArena(const Options& options, FrameBudget& budget, MemoryFile file)
    : node_(options.node),
      bind_(options.bind),
      budget_(budget),
      file_(std::move(file)),
      tags_(reinterpret_cast<std::atomic<uint16_t>*>(file_.data() + kPageBytes)),
      span_count_(static_cast<uint32_t>(file_.size() / kSpanBytes)),
      free_spans_((span_count_ + 63) / 64, 0) {
  MutexLock lock(mu_);
  for (uint32_t span = FirstSpan(file_.size()); span < span_count_; ++span)
    free_spans_[span / 64] |= uint64_t{1} << (span % 64);
}

FrameArena::~FrameArena() {
  ZP_DCHECK(frames_in_use() == 0, "an arena is destroyed before its owners emptied it");
}

Result<uint32_t> FrameArena::AllocateSpan(SpanTag tag) {
  MutexLock lock(mu_);
  while (first_word_ < free_spans_.size() && free_spans_[first_word_] == 0) ++first_word_;
  if (first_word_ == free_spans_.size()) return Error{Errc::kNoMemory, 0, "span of frames"};
  uint64_t& word = free_spans_[first_word_];
  const uint32_t span =
      static_cast<uint32_t>(first_word_ * 64) + static_cast<uint32_t>(std::countr_zero(word));
  word &= word - 1;
  if (span > highest_span_.load(std::memory_order_relaxed))
    highest_span_.store(span, std::memory_order_relaxed);
  tags_[span].store(static_cast<uint16_t>(static_cast<uint16_t>(tag.owner) | tag.size_class << 8),
                    std::memory_order_release);
  ZP_PAUSE_POINT("frames.tagged");
  return span;
}

void FrameArena::FreeSpan(uint32_t span) {
  MutexLock lock(mu_);
  const uint64_t bit = uint64_t{1} << (span % 64);
  ZP_CHECK(span > 0 && span < span_count_ && (free_spans_[span / 64] & bit) == 0, "span freed twice");
  tags_[span].store(0, std::memory_order_release);
  ZP_PAUSE_POINT("frames.untagged");
  free_spans_[span / 64] |= bit;
  first_word_ = std::min(first_word_, size_t{span / 64});
}

uint32_t FrameArena::lowest_free_span() const {
  MutexLock lock(mu_);
  for (size_t word = first_word_; word < free_spans_.size(); ++word) {
    if (free_spans_[word] != 0)
      return static_cast<uint32_t>(word * 64) + static_cast<uint32_t>(std::countr_zero(free_spans_[word]));
  }
  return span_count_;
}

template <typename Make>
Status FrameArena::PopulateRuns(uint32_t span, uint64_t frames, Make&& make) {
  for (uint64_t rest = frames; rest != 0;) {
    const Run run = LowestRun(rest);
    const uint64_t offset = span * kSpanBytes + run.first * kPageBytes;
    ZP_TRY(make(offset, run.count * kPageBytes));
    ZP_PAUSE_POINT("frames.populated");
    if (bind_ && !NoneElsewhere(At(offset), run.count, node_))
      return Error{Errc::kNoMemory, 0, "frames of the node"};
    rest &= ~run.mask;
  }
  return OkStatus();
}

Status FrameArena::Populate(uint32_t span, uint64_t frames) {
  return PopulateRuns(span, frames,
                      [&](uint64_t offset, uint64_t bytes) { return file_.Populate(offset, bytes); });
}

Status FrameArena::PopulateFresh(uint32_t span, uint64_t frames) {
  return PopulateRuns(span, frames,
                      [&](uint64_t offset, uint64_t bytes) { return file_.PopulateFresh(offset, bytes); });
}

void FrameArena::PunchRuns(uint32_t span, uint64_t frames) {
  for (uint64_t rest = frames; rest != 0;) {
    const Run run = LowestRun(rest);
    file_.Punch(span * kSpanBytes + run.first * kPageBytes, run.count * kPageBytes);
    rest &= ~run.mask;
  }
}

void FrameArena::Punch(uint32_t span, uint64_t frames) {
  PunchRuns(span, frames);
  ZP_PAUSE_POINT("frames.punched");
  const uint64_t count = static_cast<uint64_t>(std::popcount(frames));
  taken_.fetch_sub(count, std::memory_order_relaxed);
  budget_.Give(count);
}

uint64_t FrameArena::metadata_bytes() const { return span_count_ * sizeof(uint16_t) + span_count_ / 8; }

}  // namespace zp
