#include "daemon/control/requests.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include "daemon/control/describe.h"
#include "daemon/keeper/handover.h"
#include "daemon/reclaim/reclaimer.h"
#include "daemon/sys/packet_socket.h"

namespace uzswap {

using nlohmann::json;

namespace {

Reply Failure(int status, const std::string& text) {
  return {status, json{{"error", text}}.dump(), false, nullptr, false};
}

bool IsNumber(const json& request, const char* key) {
  return request.contains(key) && request[key].is_number_unsigned();
}

// The clients of "pid" that the asker may steer; an error in `reply` if there are none.
std::vector<std::shared_ptr<Client>> Targets(const json& request, const RequestContext& context,
                                             Reply* reply) {
  std::vector<std::shared_ptr<Client>> mine;
  if (!IsNumber(request, "pid")) {
    *reply = Failure(EINVAL, "the request needs \"pid\", the number of an attached process");
    return mine;
  }
  const auto pid = static_cast<pid_t>(request["pid"].get<uint64_t>());
  auto all = pid == 0 ? std::vector<std::shared_ptr<Client>>() : context.registry.FindPid(pid);
  for (auto& client : all) {
    if (context.uid == 0 || context.uid == client->identity().uid) mine.push_back(client);
  }
  if (mine.empty()) {
    *reply =
        all.empty()
            ? Failure(ESRCH,
                      fmt::format("process {} is not attached; `uzswap stat` lists those that are", pid))
            : Failure(EPERM,
                      fmt::format("process {} belongs to another user; ask as that user or as root", pid));
  }
  return mine;
}

Reply HandleStat(const json& request, const RequestContext& context) {
  StatRequest stat;
  stat.uid = context.uid;
  if (request.contains("pid") && !IsNumber(request, "pid"))
    return Failure(EINVAL, "\"pid\" has to be a process number");
  if (IsNumber(request, "pid")) stat.pid = static_cast<pid_t>(request["pid"].get<uint64_t>());
  stat.include_gone = request.value("include_gone", json(false)) == json(true);
  return {0,
          DescribeAll(stat, context.registry, context.store, context.index_arena, context.options,
                      context.uptime_seconds, context.restarts)
              .dump(-1, ' ', false, json::error_handler_t::replace),
          false, nullptr, false};
}

Reply HandleLimit(const json& request, const RequestContext& context) {
  Reply reply;
  const auto targets = Targets(request, context, &reply);
  if (targets.empty()) return reply;
  if (!IsNumber(request, "limit_bytes"))
    return Failure(EINVAL, "the request needs \"limit_bytes\" (0: no limit)");
  const uint64_t limit = request["limit_bytes"].get<uint64_t>();
  if (limit != 0 && limit < wire::kMinLimitBytes)
    return Failure(EINVAL, "the limit is below 4 MiB, less than a process needs to live");
  for (const auto& client : targets) client->SetLimit(limit);
  return {0, json{{"schema", "uzswap.ok/1"}}.dump(), true, nullptr, false};
}

Reply HandleReclaim(const json& request, const RequestContext& context) {
  Reply reply;
  auto targets = Targets(request, context, &reply);
  if (targets.empty()) return reply;
  if (!IsNumber(request, "bytes")) return Failure(EINVAL, "the request needs \"bytes\", how much to evict");
  const uint64_t bytes = request["bytes"].get<uint64_t>();
  reply.later = [targets, bytes] {
    auto scratch = std::make_unique<FaultScratch>();
    uint64_t pages = 0;
    for (const auto& client : targets) pages += Reclaimer::ReclaimNow(*client, bytes, *scratch);
    return json{{"schema", "uzswap.reclaim/1"}, {"pages", pages}};
  };
  return reply;
}

Reply HandleRestore(const json& request, const RequestContext& context) {
  Reply reply;
  auto targets = Targets(request, context, &reply);
  if (targets.empty()) return reply;
  reply.later = [targets] {
    auto scratch = std::make_unique<FaultScratch>();
    uint64_t pages = 0;
    uint64_t failed = 0;
    for (const auto& client : targets) {
      const auto result = client->Restore(false, *scratch);
      pages += result.pages;
      failed += result.failed;
    }
    return json{{"schema", "uzswap.restore/1"}, {"pages", pages}, {"failed", failed}};
  };
  return reply;
}

// "node": a number that the pool has; nothing and an error in `reply` otherwise.
std::optional<zp::NodeId> NodeOf(const json& request, const RequestContext& context, Reply* reply) {
  const auto& nodes = context.store.topology().nodes();
  if (IsNumber(request, "node")) {
    const uint64_t number = request["node"].get<uint64_t>();
    for (const zp::NodeId node : nodes) {
      if (node.value() == number) return node;
    }
  }
  std::string there;
  for (const zp::NodeId node : nodes) there += fmt::format("{}{}", there.empty() ? "" : ", ", node.value());
  *reply = Failure(EINVAL, fmt::format("the request needs \"node\", a node of the pool: {}", there));
  return std::nullopt;
}

Reply HandleNode(const json& request, const RequestContext& context) {
  const std::string action =
      request.contains("action") && request["action"].is_string() ? request["action"].get<std::string>() : "";
  if (action == "list")
    return {0, DescribeNodes(context.store, context.pool_keeper).dump(), false, nullptr, false};
  if (action != "drain" && action != "open" && action != "balance")
    return Failure(EINVAL, "the request needs \"action\": list, drain, open or balance");
  if (context.uid != 0) return Failure(EPERM, "only root may move the pool; ask as root");
  Reply reply;
  if (action == "balance") {
    reply.later = [&keeper = context.pool_keeper] {
      return json{{"schema", "uzswap.node-balance/1"}, {"moved_bytes", keeper.Balance()}};
    };
    return reply;
  }
  const auto node = NodeOf(request, context, &reply);
  if (!node.has_value()) return reply;
  if (action == "open") {
    context.pool_keeper.Open(*node);
    return {0, json{{"schema", "uzswap.ok/1"}}.dump(), false, nullptr, false};
  }
  const auto& nodes = context.store.topology().nodes();
  const bool elsewhere = std::any_of(nodes.begin(), nodes.end(), [&](zp::NodeId other) {
    return other != *node && context.store.NodeAccepts(other);
  });
  if (!elsewhere)
    return Failure(EINVAL, "no other node takes what would be moved; `uzswap node open` one first");
  context.pool_keeper.Close(*node);  // now, so that a second request cannot close the last one
  reply.later = [&keeper = context.pool_keeper, node = *node] {
    const PoolKeeper::Drained done = keeper.Drain(node);
    return json{{"schema", "uzswap.node-drain/1"},
                {"moved_bytes", done.moved_bytes},
                {"left_bytes", done.left_bytes},
                {"pinned", done.pinned_spans},
                {"without_target", done.without_target}};
  };
  return reply;
}

// Another program goes on with everything, if it says that it can.
Reply HandleUpgrade(const json& request, const RequestContext& context) {
  if (context.uid != 0 && context.uid != geteuid())
    return Failure(EPERM, "only root and the daemon's own user may replace it; ask as one of them");
  if (!request.contains("program") || !request["program"].is_string())
    return Failure(EINVAL, "the request needs \"program\", the path of another uzswapd");
  Reply reply;
  reply.hand_over = true;
  reply.later = [&table = context.table, program = request["program"].get<std::string>()] {
    const std::string why_not = WhyNotSuccessor(program, table);
    if (!why_not.empty()) return json{{"error", why_not}};
    program.copy(table.header().successor, program.size());
    return json{{"schema", "uzswap.upgrade/1"}, {"restarts", table.header().restarts + 1}};
  };
  return reply;
}

}  // namespace

Reply HandleRequest(const std::string& text, const RequestContext& context) {
  const json request = json::parse(text, nullptr, false);
  if (request.is_discarded() || !request.is_object() || !request.contains("verb") ||
      !request["verb"].is_string()) {
    return Failure(EINVAL, "the request is not JSON with a \"verb\"; use the uzswap of this release");
  }
  const auto& verb = request["verb"].get_ref<const std::string&>();
  if (verb == "ping")
    return {0, json{{"schema", "uzswap.ping/1"}, {"pid", getpid()}, {"version", kVersionText}}.dump(), false,
            nullptr, false};
  if (verb == "stat") return HandleStat(request, context);
  if (verb == "limit") return HandleLimit(request, context);
  if (verb == "reclaim") return HandleReclaim(request, context);
  if (verb == "restore") return HandleRestore(request, context);
  if (verb == "node") return HandleNode(request, context);
  if (verb == "upgrade") return HandleUpgrade(request, context);
  return Failure(EOPNOTSUPP, "this daemon does not know that verb; it may be older than your uzswap");
}

void SendReply(int socket, const Reply& reply) {
  auto file = zp::CreateMemfd("uzswap-reply", 0);
  wire::ControlReply message{};
  message.header = MakeHeader(wire::MessageType::kControlReply, sizeof(message));
  message.status = reply.status;
  if (!file.ok() || pwrite(file->get(), reply.json.data(), reply.json.size(), 0) !=
                        static_cast<ssize_t>(reply.json.size())) {
    message.status = ENOMEM;
    (void)SendPacket(socket, AsBytes(message));
    return;
  }
  (void)SendPacket(socket, AsBytes(message), file->get());
}

}  // namespace uzswap
