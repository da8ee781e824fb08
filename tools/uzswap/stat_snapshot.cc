#include "tools/uzswap/stat_snapshot.h"

#include <fmt/format.h>

#include "tools/uzswap/json_field.h"

namespace uzswap::cli {
namespace {

using nlohmann::json;

constexpr char kSchema[] = "uzswap.stat/1";

std::vector<NamedCount> Counts(const json& object, const char* name) {
  std::vector<NamedCount> counts;
  const json& group = Member(object, name);
  if (!group.is_object()) return counts;
  for (const auto& [key, value] : group.items()) counts.push_back({key, AsCount(value)});
  return counts;
}

Latency LatencyOf(const json& object) {
  const json& l = Member(object, "latency_us");
  return {NumberField(l, "p50"), NumberField(l, "p99"), NumberField(l, "max")};
}

ClientStat ParseClient(const json& c) {
  ClientStat client;
  client.id = CountField(c, "id");
  client.pid = CountField(c, "pid");
  client.uid = CountField(c, "uid");
  client.comm = TextField(c, "comm");
  client.agent = FlagField(c, "agent");
  client.state = TextField(c, "state");
  client.codec = TextField(c, "codec");
  client.pool = TextField(c, "pool");
  client.limit_bytes = CountField(c, "limit_bytes");
  client.resident_bytes = CountField(c, "resident_bytes");
  client.resident_peak_bytes = CountField(c, "resident_peak_bytes");
  client.stored_pages = CountField(c, "stored_pages");
  client.stored_bytes = CountField(c, "stored_bytes");
  client.stored_peak_bytes = CountField(c, "stored_peak_bytes");
  client.same_filled_pages = CountField(c, "same_filled_pages");
  client.pool_bytes = CountField(c, "pool_bytes");
  client.pool_peak_bytes = CountField(c, "pool_peak_bytes");
  client.ratio = NumberField(c, "ratio");
  client.evicted_pages = CountField(c, "evicted_pages");
  client.faults = Counts(c, "faults");
  client.events = Counts(c, "events");
  client.refused = Counts(c, "refused");
  client.latency = LatencyOf(c);
  return client;
}

}  // namespace

uint64_t CountOf(const std::vector<NamedCount>& counts, const std::string& name) {
  for (const NamedCount& c : counts) {
    if (c.name == name) return c.count;
  }
  return 0;
}

uint64_t ClientStat::faults_stored() const { return CountOf(faults, "stored"); }

uint64_t ClientStat::refused_total() const {
  uint64_t sum = 0;
  for (const NamedCount& r : refused) sum += r.count;
  return sum;
}

OrMessage<StatSnapshot> ParseStat(const json& json) {
  if (TextField(json, "schema") != kSchema) {
    return Message{
        fmt::format("the daemon's figures have the schema '{}', this uzswap reads '{}': install both from "
                    "one release, or use --json",
                    TextField(json, "schema"), kSchema)};
  }
  StatSnapshot s;
  const auto& daemon = Member(json, "daemon");
  s.daemon_pid = CountField(daemon, "pid");
  s.daemon_version = TextField(daemon, "version");
  s.uptime_seconds = NumberField(daemon, "uptime_seconds");
  s.embedded = FlagField(daemon, "embedded");
  s.codec = TextField(daemon, "codec");
  s.pool = TextField(daemon, "pool");
  const auto& clients = Member(json, "clients");
  if (clients.is_array()) {
    for (const auto& c : clients) s.clients.push_back(ParseClient(c));
  }
  const auto& totals = Member(json, "totals");
  s.totals.resident_bytes = CountField(totals, "resident_bytes");
  s.totals.stored_pages = CountField(totals, "stored_pages");
  s.totals.stored_bytes = CountField(totals, "stored_bytes");
  s.totals.same_filled_pages = CountField(totals, "same_filled_pages");
  s.totals.pool_bytes = CountField(totals, "pool_bytes");
  s.totals.object_bytes = CountField(totals, "object_bytes");
  s.totals.pool_limit_bytes = CountField(totals, "pool_limit_bytes");
  s.totals.metadata_bytes = CountField(totals, "metadata_bytes");
  s.totals.ratio = NumberField(totals, "ratio");
  s.totals.evicted_pages = CountField(totals, "evicted_pages");
  s.totals.faults_stored = CountField(totals, "faults_stored");
  s.totals.faults_zero_fill = CountField(totals, "faults_zero_fill");
  s.totals.latency = LatencyOf(totals);
  return s;
}

}  // namespace uzswap::cli
