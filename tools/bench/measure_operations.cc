#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "libzpool/base/epochs.h"
#include "libzpool/base/memory_file.h"
#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/zsmalloc_pool.h"
#include "tools/bench/error.h"
#include "tools/bench/goal.h"
#include "tools/bench/interrupt.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/random.h"
#include "tools/bench/stats.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kObjectBytes = 2048;
// Operations between two looks at the clock, which costs as much as one of them.
constexpr unsigned kBatch = 64;
constexpr uint64_t kOperations = uint64_t{1} << 15;   // of each kind, a thread and round
constexpr uint64_t kMostObjects = uint64_t{1} << 18;  // 512 MiB
constexpr unsigned kMostThreads = 2;

double NsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

using Bytes = std::array<std::byte, kObjectBytes>;

// The length as a store has it: the compiler does not know it, else it would not call the library's memcpy.
size_t ObjectBytes() {
  size_t bytes = kObjectBytes;
  asm volatile("" : "+r"(bytes));
  return bytes;
}

void Copy(std::byte* to, const std::byte* from) {
  std::memcpy(to, from, ObjectBytes());
  asm volatile("" : : : "memory");
}

// What a PageStore does for a page that is encoded already.
class RawStore {
 public:
  explicit RawStore(uint64_t objects) : budget_(objects * kObjectBytes * 2 / kPageBytes) {
    auto arena = zp::FrameArena::Create({zp::NodeId(0), zp::Bytes(objects * kObjectBytes * 2)}, budget_);
    auto handles = zp::HandleTable::Create(objects * 2);
    if (!arena.ok() || !handles.ok()) throw BenchError("the pool cannot be made: no memory");
    arena_ = std::move(arena).value();
    handles_ = std::move(handles).value();
    auto pool = zp::ZsmallocPool::Create(*arena_, *handles_);
    if (!pool.ok()) throw BenchError("the pool cannot be made: no memory");
    pool_ = std::move(pool).value();
  }

  zp::Handle Store(const Bytes& bytes) {
    const auto offset = pool_->Allocate(kObjectBytes);
    if (!offset.ok()) throw BenchError("the pool is full");
    arena_->Write(*offset, std::span(bytes).first(ObjectBytes()));
    zp::Location location;
    location.offset = *offset;
    location.length = kObjectBytes;
    const auto handle = handles_->Insert(location, {}, 0);
    if (!handle.ok()) throw BenchError("the pool has no handles");
    pool_->Bind(*offset, *handle);
    return *handle;
  }
  void Load(zp::Handle handle, Bytes& out) const {
    const zp::Epochs::Guard reading = epochs_.Enter();
    const zp::Location location = zp::Location::Decode(handles_->Lookup(handle));
    std::memcpy(out.data(), arena_->At(location.offset), location.length);
  }
  void Free(zp::Handle handle) {
    if (!handles_->Unref(handle)) return;
    const zp::Location location = handles_->Retire(handle);
    pool_->Free(location.offset, location.length);
    handles_->Recycle(handle);
  }

 private:
  zp::FrameBudget budget_;
  zp::Epochs epochs_;
  std::unique_ptr<zp::FrameArena> arena_;
  std::unique_ptr<zp::HandleTable> handles_;
  std::unique_ptr<zp::ZsmallocPool> pool_;
};

// ns per operation.
struct Times {
  double store = 0, load = 0, free = 0;
  double copy_in = 0, copy_out = 0;  // memcpy to and from places that are in no cache
  double copy_in_done = 0;           // the same to, one after the other
  double miss = 0;                   // a read at a place that is known when the last is done
  double grow = 0, shrink = 0;       // storing into a pool that grows, freeing all that is in one
};

// What one thread has: its own objects in the shared store, and a share of the memory for plain copies.
struct Share {
  std::vector<zp::Handle> handles;
  std::byte* memory = nullptr;
  uint64_t places = 0;
  Times times;
};

// In batches, so that each object freed and stored is in no cache, and the pool stays as large as it is. The
// median batch counts: what another process does to a few of them, by taking the CPU away, is not the pool's.
void RunShare(RawStore& store, uint64_t seed, Share& share) {
  Random random(seed);
  alignas(64) Bytes bytes{};
  std::vector<zp::Handle>& handles = share.handles;
  std::array<uint64_t, kBatch> at;
  std::array<std::byte*, kBatch> places;
  const auto choose_places = [&] {
    for (std::byte*& place : places) place = share.memory + random.Below(share.places) * kObjectBytes;
  };
  // What fn() takes for each of a batch, in ns.
  const auto time = [&](std::vector<double>& batches, auto&& fn) {
    const Clock::time_point start = Clock::now();
    fn();
    batches.push_back(NsSince(start) / kBatch);
  };
  std::vector<double> free, stored, load, in, out, done_in, miss;
  for (uint64_t done = 0; done < kOperations; done += kBatch) {
    CheckInterrupted();
    for (unsigned i = 0; i < kBatch; ++i) {
      // The last ones are those of the batch.
      at[i] = handles.size() - 1 - i;
      std::swap(handles[at[i]], handles[random.Below(at[i] + 1)]);
    }
    time(free, [&] {
      for (const uint64_t i : at) store.Free(handles[i]);
    });
    time(stored, [&] {
      for (const uint64_t i : at) handles[i] = store.Store(bytes);
    });
    for (uint64_t& i : at) i = random.Below(handles.size());
    time(load, [&] {
      for (const uint64_t i : at) store.Load(handles[i], bytes);
    });
    choose_places();
    time(in, [&] {
      for (std::byte* place : places) Copy(place, bytes.data());
    });
    choose_places();
    std::atomic<uint64_t> nothing{0};
    time(done_in, [&] {
      // Where the next goes is known when this one is done: so no two overlap, as with objects.
      for (std::byte* place : places) Copy(place + nothing.fetch_add(0), bytes.data());
    });
    choose_places();
    time(out, [&] {
      for (const std::byte* place : places) Copy(bytes.data(), place);
    });
    choose_places();
    time(miss, [&] {
      uint64_t nought = 0;
      for (const std::byte* place : places) {
        nought = std::to_integer<uint64_t>(place[nought]);
        asm volatile("and $0, %0" : "+r"(nought));
      }
    });
  }
  Times& times = share.times;
  times = {};
  times.free = Median(free);
  times.store = Median(stored);
  times.load = Median(load);
  times.copy_in = Median(in);
  times.copy_in_done = Median(done_in);
  times.copy_out = Median(out);
  times.miss = Median(miss);
}

// fn(share) on a thread for each; what one throws is thrown.
template <typename Fn>
void Together(std::vector<Share>& shares, Fn&& fn) {
  std::atomic<size_t> waiting{shares.size()};
  std::vector<std::exception_ptr> failures(shares.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < shares.size(); ++i) {
    threads.emplace_back([&, i] {
      --waiting;
      while (waiting.load() != 0) std::this_thread::yield();
      try {
        fn(shares[i], i);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure != nullptr) std::rethrow_exception(failure);
  }
}

// Medians over rounds, and over threads.
Times Measure(const Options& options, uint64_t objects, unsigned thread_count) {
  RawStore store(objects);
  auto memory = zp::MemoryFile::Create("bench-copies", zp::FileKind::kFrames, 0, objects * kObjectBytes);
  if (!memory.ok() || !memory->Populate(0, memory->size()).ok())
    throw BenchError("no memory to compare with");
  std::vector<Share> shares(thread_count);
  Together(shares, [&](Share& share, size_t i) {
    const uint64_t own = objects / thread_count;
    const Bytes bytes{};
    share.handles.reserve(own);
    const Clock::time_point start = Clock::now();
    while (share.handles.size() < own) share.handles.push_back(store.Store(bytes));
    share.times.grow = NsSince(start) / static_cast<double>(own);
    share.places = own;
    share.memory = memory->data() + i * own * kObjectBytes;
  });
  std::vector<double> grow, shrink, store_ns, load_ns, free_ns, in_ns, out_ns, done_ns, miss_ns;
  for (const Share& share : shares) grow.push_back(share.times.grow);
  for (unsigned round = 0; round < options.rounds; ++round) {
    Together(shares, [&](Share& share, size_t i) {
      RunShare(store, options.seed + round * kMostThreads + i, share);
    });
    for (const Share& share : shares) {
      store_ns.push_back(share.times.store);
      load_ns.push_back(share.times.load);
      free_ns.push_back(share.times.free);
      in_ns.push_back(share.times.copy_in);
      out_ns.push_back(share.times.copy_out);
      done_ns.push_back(share.times.copy_in_done);
      miss_ns.push_back(share.times.miss);
    }
  }
  Together(shares, [&](Share& share, size_t) {
    const Clock::time_point start = Clock::now();
    for (const zp::Handle handle : share.handles) store.Free(handle);
    share.times.shrink = NsSince(start) / static_cast<double>(share.handles.size());
  });
  for (const Share& share : shares) shrink.push_back(share.times.shrink);
  return {Median(store_ns), Median(load_ns), Median(free_ns), Median(in_ns), Median(out_ns),
          Median(done_ns),  Median(miss_ns), Median(grow),    Median(shrink)};
}

nlohmann::json AsJson(const Times& times) {
  return {{"store_ns", times.store},       {"load_ns", times.load},
          {"free_ns", times.free},         {"copy_in_ns", times.copy_in},
          {"copy_out_ns", times.copy_out}, {"copy_in_done_ns", times.copy_in_done},
          {"miss_ns", times.miss},         {"store_growing_ns", times.grow},
          {"free_all_ns", times.shrink}};
}

}  // namespace

void MeasureOperations(const Options& options, Report& report) {
  const uint64_t objects = std::min(options.megabytes << 20, kMostObjects * kObjectBytes) / kObjectBytes;
  const Times one = Measure(options, objects, 1);
  const Times two = Measure(options, objects, kMostThreads);
  nlohmann::json& details = report.Part("details")["pool"]["operations"];
  details = {{"objects", objects}, {"one_thread", AsJson(one)}, {"two_threads", AsJson(two)}};
  struct Row {
    const char* name;
    double one, two;            // ns
    double copy_one, copy_two;  // what it is compared with
    const char* copy;
  };
  for (const Row& row :
       {Row{"store", one.store, two.store, one.copy_in, two.copy_in, "memcpy to places in no cache"},
        Row{"load", one.load, two.load, one.copy_out, two.copy_out, "memcpy from places in no cache"},
        Row{"free", one.free, two.free, one.copy_out, two.copy_out, "memcpy from places in no cache"}}) {
    const std::string name = std::string("object_") + row.name;
    report.Add(name + "_ns", row.one, std::nullopt,
               std::string(row.name) + " of 2 KiB without codec, one thread, wall time");
    report.Add(name + "_to_memcpy", row.one / row.copy_one, std::nullopt, std::string("this / ") + row.copy);
    AddWithGoal(report, name + "_to_memcpy_and_miss", row.one / (row.copy_one + one.miss), AtMost(1.5),
                "the same / memcpy and one cache miss");
    AddWithGoal(report, name + "_two_threads", row.two / row.one, AtMost(1),
                "each of two threads / one thread alone");
    report.Add(name + "_two_threads_memcpy", row.copy_two / row.copy_one, std::nullopt,
               "the same of memcpy: what the machine's memory does to it");
  }
  report.Add("object_miss_ns", one.miss, std::nullopt,
             "a read at random in as much memory, when the last one is done: one cache miss");
  report.Add("object_store_to_memcpy_done", one.store / one.copy_in_done, std::nullopt,
             "store / memcpy to places that are known when the last copy is done");
  report.Add("object_store_growing_ns", one.grow, std::nullopt,
             "store into a pool that grows: with the kernel's work for half a frame");
  report.Add("object_free_all_ns", one.shrink, std::nullopt, "free of all, in order: frames go back");
}

}  // namespace uzswap::bench
