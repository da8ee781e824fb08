// The figures as JSON: the schema stands in daemon/wire/control.md.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "daemon/client/client_registry.h"
#include "daemon/options.h"
#include "daemon/pool/pool_keeper.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

// `state`: "active", "limited" or "gone".
nlohmann::json DescribeClient(const Client& client, const char* state);

struct StatRequest {
  pid_t pid = 0;  // 0: all
  bool include_gone = false;
  uid_t uid = 0;  // who asks: root sees all, others their own
};
// How often the state changed hands, and how long ago (0: never).
struct Restarts {
  uint32_t count = 0;
  double since_seconds = 0;
};
nlohmann::json DescribeAll(const StatRequest& request, const ClientRegistry& registry,
                           const zp::PageStore& store, const zp::IndexArena& index_arena,
                           const Options& options, double uptime_seconds, const Restarts& restarts);

nlohmann::json DescribeNodes(const zp::PageStore& store, const PoolKeeper& keeper);

}  // namespace uzswap
