// What Connection and HandleRequest need of a daemon, without a daemon.
#pragma once

#include <memory>

#include "daemon/client/client_registry.h"
#include "libzpool/index/index_arena.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

struct MadeDaemon : ClientHost {
  MadeDaemon() {
    zp::PageStore::Options options;
    options.capacity = zp::MiB(16);
    options.topology = zp::Topology::Made({zp::NodeId(0), zp::NodeId(2)}, {{10, 20}, {20, 10}}).value();
    store = std::move(*zp::PageStore::Create(options));
    index_arena = std::move(*zp::IndexArena::Create());
    table = std::make_unique<ClientTable>(std::move(*ClientTable::Create()));
  }
  void AdoptChild(std::shared_ptr<Client>) override {}
  void WantReclaim() override {}
  ClientServices services() { return {*store, *index_arena, *table, *this}; }

  std::unique_ptr<zp::PageStore> store;
  std::unique_ptr<zp::IndexArena> index_arena;
  std::unique_ptr<ClientTable> table;
};

}  // namespace uzswap
