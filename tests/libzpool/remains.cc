#include "tests/libzpool/remains.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace zp::testing {

UniqueFd CopyOf(int fd) {
  struct stat st {};
  ZP_CHECK(fstat(fd, &st) == 0, "fstat of a file to copy");
  UniqueFd copy = CreateMemfd("copy", static_cast<uint64_t>(st.st_size)).value();
  std::vector<std::byte> bytes(1 << 16);
  for (off_t data = lseek(fd, 0, SEEK_DATA); data >= 0;) {
    const off_t hole = lseek(fd, data, SEEK_HOLE);
    for (off_t at = data; at < hole;) {
      const size_t wanted = std::min(bytes.size(), static_cast<size_t>(hole - at));
      const ssize_t got = pread(fd, bytes.data(), wanted, at);
      if (got <= 0) break;  // punched meanwhile, by a thread that still runs
      ZP_CHECK(pwrite(copy.get(), bytes.data(), static_cast<size_t>(got), at) == got, "copy of a file");
      at += got;
    }
    data = lseek(fd, hole, SEEK_DATA);
  }
  return copy;
}

UniqueFd Again(int fd) { return UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

Remains Remains::Share() const {
  Remains again;
  again.files.handles = Again(files.handles.get());
  for (const UniqueFd& fd : files.frames) again.files.frames.push_back(Again(fd.get()));
  again.index = Again(index.get());
  for (size_t i = 0; i < kMostRoots; ++i) (*again.roots)[i] = (*roots)[i].load();
  return again;
}

Remains ShareRemains(const PageStore& store, const IndexArena& arena, std::shared_ptr<Roots> roots) {
  Remains remains;
  store.ForEachMemfd([&](const char* name, int fd) {
    if (std::strcmp(name, "handles") == 0) {
      remains.files.handles = Again(fd);
    } else {
      remains.files.frames.push_back(Again(fd));
    }
  });
  arena.ForEachMemfd([&](const char*, int fd) { remains.index = Again(fd); });
  remains.roots = std::move(roots);
  return remains;
}

Remains CopyRemains(const PageStore& store, const IndexArena& arena, const Roots& roots) {
  Remains remains;
  store.ForEachMemfd([&](const char* name, int fd) {
    if (std::strcmp(name, "handles") == 0) {
      remains.files.handles = CopyOf(fd);
    } else {
      remains.files.frames.push_back(CopyOf(fd));
    }
  });
  arena.ForEachMemfd([&](const char*, int fd) { remains.index = CopyOf(fd); });
  for (size_t i = 0; i < kMostRoots; ++i) (*remains.roots)[i] = roots[i].load();
  return remains;
}

std::unique_ptr<Revived> TryRevive(const PageStore::Options& options, Remains remains) {
  auto revived = std::make_unique<Revived>();
  revived->roots = std::move(remains.roots);
  auto store = PageStore::Recover(options, std::move(remains.files), &revived->stats);
  if (!store.ok()) return nullptr;
  revived->store = std::move(*store);
  auto arena = IndexArena::Recover(std::move(remains.index));
  if (!arena.ok()) return nullptr;
  revived->arena = std::move(*arena);
  for (size_t i = 0; i < kMostRoots; ++i) {
    std::atomic<uint32_t>* const root = &(*revived->roots)[i];
    revived->indexes.emplace_back();
    if (root->load() == 0) continue;
    auto index = OffsetIndex::Recover(
        *revived->arena, *revived->store, root,
        [&](PageIndex page, Slot slot) {
          revived->unsettled.push_back({i, page, slot});
        },
        &revived->stats);
    if (!index.ok()) return nullptr;
    revived->indexes.back() = std::make_unique<OffsetIndex>(std::move(*index));
  }
  revived->arena->FinishRecovery();
  revived->store->FinishRecovery(&revived->stats);
  return revived;
}

void Revived::Abandon() {
  arena->Abandon();
  store->Abandon();
  indexes.clear();
  *this = Revived();
}

Revived Revive(const PageStore::Options& options, Remains remains) {
  std::unique_ptr<Revived> revived = TryRevive(options, std::move(remains));
  ZP_CHECK(revived != nullptr, "recovery was refused");
  return std::move(*revived);
}

}  // namespace zp::testing
