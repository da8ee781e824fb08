#include "daemon/control/estate.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "daemon/sys/clock.h"
#include "libzpool/base/pause_point.h"
#include "libzpool/frame/topology.h"

namespace uzswap {
namespace {

zp::PageStore::Options StoreOptions(const Options& options) {
  return {.topology = zp::Topology::Detect(),
          .capacity = zp::Bytes(options.pool_limit_bytes),
          .codec = *zp::FindCodec(options.codec),
          .pool = *zp::FindPool(options.pool)};
}

}  // namespace

// Where a successor finds the files.
void Estate::Note() {
  TableHeader& header = table->header();
  header.index_fd = index_arena->fd();
  for (int32_t& frames : header.frames_fd) frames = -1;
  size_t nodes = 0;
  store->ForEachMemfd([&](const char* name, int fd) {
    if (std::string_view(name) == "handles") {
      header.handles_fd = fd;
    } else {
      header.frames_fd[nodes++] = fd;
    }
  });
}

zp::Result<Estate> Estate::Create(const Options& options) {
  Estate estate;
  estate.table = std::make_unique<ClientTable>(ZP_TRY(ClientTable::Create()));
  estate.store = ZP_TRY(zp::PageStore::Create(StoreOptions(options)));
  estate.index_arena = ZP_TRY(zp::IndexArena::Create());
  estate.table->header().started_ns = MonotonicNs();
  estate.Note();
  return estate;
}

void Estate::Renumber(const FdStore& kept) {
  TableHeader& header = table->header();
  header.handles_fd = kept.Number("handles");
  header.index_fd = kept.Number("index");
  header.listener_fd = kept.Number("listener");
  for (size_t i = 0; i < std::size(header.frames_fd); ++i)
    header.frames_fd[i] = kept.Number(fmt::format("frames-{}", i));
  const auto records = table->Survivors();
  for (ClientRecord* const record : records) {
    // The descriptor of a fork's child that was not published is gone with the table that it was in.
    for (uffd_msg& message : record->messages) {
      if (message.event != UFFD_EVENT_FORK) continue;
      const bool known = std::any_of(records.begin(), records.end(), [&](const ClientRecord* child) {
        return child->parent_id == record->id && child->uffd_fd == static_cast<int>(message.arg.fork.ufd);
      });
      if (!known && &message >= record->messages + record->progress.steps / 2)
        spdlog::error("a forked child of pid {} is lost: it reads zeros where pages were stored",
                      record->pid);
    }
  }
  for (ClientRecord* const record : records) {
    for (uffd_msg& message : record->messages) {
      if (message.event == UFFD_EVENT_FORK) message.event = UFFD_EVENT_PAGEFAULT;  // nothing to be done
    }
    record->uffd_fd = kept.Number(fmt::format("c{}-uffd", record->id));
    if (record->ring_fd < 0) continue;
    record->ring_fd = kept.Number(fmt::format("c{}-ring", record->id));
    record->socket_fd = kept.Number(fmt::format("c{}-socket", record->id));
    for (int32_t& fd : record->memory_fds) fd = -1;
  }
}

zp::Result<Estate> Estate::TakeOver(const Options& options, const FdStore& kept) {
  Estate estate;
  estate.inherited = InheritedDescriptors::Find();
  const int number = options.successor >= 0 ? options.successor : kept.Number("clients");
  estate.table = std::make_unique<ClientTable>(ZP_TRY(ClientTable::Adopt(estate.inherited.Take(number))));
  if (options.successor < 0) estate.Renumber(kept);
  TableHeader& header = estate.table->header();
  zp::StoreFiles files;
  files.handles = estate.inherited.Take(header.handles_fd);
  for (const int32_t fd : header.frames_fd) {
    if (fd >= 0) files.frames.push_back(estate.inherited.Take(fd));
  }
  zp::RecoveryStats stats;
  estate.store = ZP_TRY(zp::PageStore::Recover(StoreOptions(options), std::move(files), &stats));
  estate.index_arena = ZP_TRY(zp::IndexArena::Recover(estate.inherited.Take(header.index_fd)));
  for (ClientRecord* const record : estate.table->Survivors()) {
    std::vector<zp::PageIndex> unfinished;
    auto index = zp::OffsetIndex::Recover(
        *estate.index_arena, *estate.store, Client::RootOf(record),
        [&](zp::PageIndex page, zp::Slot slot) {
          if (slot.is_busy() || slot.is_filling()) unfinished.push_back(page);
        },
        &stats);
    if (!index.ok()) return index.error();
    estate.heirs.push_back({record, std::move(*index), std::move(unfinished)});
  }
  ZP_PAUSE_POINT("estate.recovered");
  estate.index_arena->FinishRecovery();
  estate.store->FinishRecovery(&stats);
  estate.listener = estate.inherited.Take(header.listener_fd);
  ++header.restarts;
  header.restarted_ns = MonotonicNs();
  header.successor[0] = 0;
  estate.Note();
  spdlog::warn(
      "took over from a daemon that ended: {} clients, {} objects ({} orphans freed, {} refused), "
      "{} pages lost",
      estate.heirs.size(), stats.objects, stats.orphans, stats.dropped(), stats.lost_slots);
  return estate;
}

int Estate::Check(int table_fd) {
  auto table = ClientTable::Adopt(zp::UniqueFd(fcntl(table_fd, F_DUPFD_CLOEXEC, 0)));
  if (table.ok()) return 0;
  spdlog::error("this uzswapd {} cannot take over: {}", kVersionText, table.error().op);
  return 1;
}

}  // namespace uzswap
