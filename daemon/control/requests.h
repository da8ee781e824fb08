// Control requests: JSON in, JSON out (daemon/wire/control.md).
//
// Threads: HandleRequest on the server's thread; `later` on the thread for long operations.
// Failure: a malformed request or a missing right is a Reply with an errno and a text that names the fix.
#pragma once

#include <sys/types.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/client/client_registry.h"
#include "daemon/control/describe.h"
#include "daemon/options.h"
#include "daemon/pool/pool_keeper.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

struct RequestContext {
  ClientRegistry& registry;
  zp::PageStore& store;
  zp::IndexArena& index_arena;
  PoolKeeper& pool_keeper;
  ClientTable& table;
  const Options& options;
  double uptime_seconds;  // since the first daemon of this state
  Restarts restarts;
  uid_t uid;  // who asks
};

struct Reply {
  int status = 0;  // 0 or an errno value
  std::string json;
  bool limits_changed = false;
  std::function<nlohmann::json()> later;  // set: the answer takes time, and this makes it
  // The daemon is to end when it has answered, unless the answer is an error: the table names who goes on.
  bool hand_over = false;
};

Reply HandleRequest(const std::string& text, const RequestContext& context);
// Sends the reply's JSON as a memfd; a peer that is gone is ignored.
void SendReply(int socket, const Reply& reply);

}  // namespace uzswap
