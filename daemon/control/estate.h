// What a daemon starts with: new and empty, or what another one left.
//
// Idea: everything that must outlive a process is here, made or taken over before any thread runs. A
// successor recovers the pool and each client's index (libzpool/DESIGN.md), and hands the clients to the
// Server, which lets them go on one by one.
//
// Threads: one.
#pragma once

#include <memory>
#include <vector>

#include "daemon/client/client.h"
#include "daemon/keeper/fd_store.h"
#include "daemon/keeper/inherited_descriptors.h"
#include "daemon/options.h"
#include "daemon/state/client_table.h"
#include "libzpool/index/index_arena.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

struct Estate {
  // A client that was recovered as far as its index; its record says the rest.
  struct Heir {
    ClientRecord* record;
    zp::OffsetIndex index;
    std::vector<zp::PageIndex> unfinished;
  };

  std::unique_ptr<ClientTable> table;
  std::unique_ptr<zp::PageStore> store;
  std::unique_ptr<zp::IndexArena> index_arena;
  InheritedDescriptors inherited;
  std::vector<Heir> heirs;
  zp::UniqueFd listener;  // of the daemon before; invalid: there was none

  static zp::Result<Estate> Create(const Options& options);
  // From the client table at `options.successor`, or from what a service manager kept. kUnsupported: it has a
  // layout that this program cannot read. Whatever the error, nothing has changed: another program can still
  // take over.
  static zp::Result<Estate> TakeOver(const Options& options, const FdStore& kept);
  // Whether this program could: looks at the layouts alone. 0, or an exit status after saying why.
  static int Check(int table_fd);

 private:
  void Note();
  // Writes the numbers of what a service manager kept into the table.
  void Renumber(const FdStore& kept);
};

}  // namespace uzswap
