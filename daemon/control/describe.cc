#include "daemon/control/describe.h"

#include <unistd.h>

namespace uzswap {

using nlohmann::json;

namespace {

double Ratio(uint64_t stored_bytes, uint64_t pool_bytes) {
  return pool_bytes == 0 ? 0.0 : static_cast<double>(stored_bytes) / static_cast<double>(pool_bytes);
}

json DescribeLatency(const LatencyHistogram& latency) {
  const auto us = [](uint64_t ns) { return static_cast<double>(ns) / 1000.0; };
  return {{"p50", us(latency.PercentileNs(500))},
          {"p99", us(latency.PercentileNs(990))},
          {"max", us(latency.max_ns())}};
}

}  // namespace

json DescribeClient(const Client& client, const char* state) {
  const ClientStats& stats = client.stats();
  const auto counts = client.stored_counts();
  const uint64_t stored_pages = counts.handles + counts.same_filled;
  const uint64_t stored_bytes = stored_pages * zp::kPageBytes;
  const uint64_t object_bytes = Read(stats.object_bytes);
  return {
      {"id", client.id()},
      {"pid", client.identity().pid},
      {"uid", client.identity().uid},
      {"comm", client.identity().comm},
      {"agent", client.has_agent()},
      {"state", state},
      {"codec", zp::kCodecNames[static_cast<size_t>(client.codec())]},
      {"pool", zp::kPoolNames[static_cast<size_t>(client.pool())]},
      {"limit_bytes", client.limit_bytes()},
      {"resident_bytes", Read(stats.resident_bytes)},
      {"resident_peak_bytes", Read(stats.resident_peak_bytes)},
      {"stored_pages", stored_pages},
      {"stored_bytes", stored_bytes},
      {"stored_peak_bytes", Read(stats.stored_peak_pages) * zp::kPageBytes},
      {"same_filled_pages", counts.same_filled},
      {"pool_bytes", object_bytes},
      {"pool_peak_bytes", Read(stats.object_peak_bytes)},
      {"ratio", Ratio(stored_bytes, object_bytes)},
      {"evicted_pages", Read(stats.evicted_pages)},
      {"faults",
       {{"stored", Read(stats.faults_stored)},
        {"zero_fill", Read(stats.faults_zero_fill)},
        {"fault_around_pages", Read(stats.fault_around_pages)},
        {"read_ahead_pages", Read(stats.read_ahead_pages)},
        {"duplicate", Read(stats.faults_duplicate)},
        {"retried", Read(stats.faults_retried)},
        {"throttled", Read(stats.faults_throttled)}}},
      {"events",
       {{"unmap", Read(stats.events_unmap)},
        {"remove", Read(stats.events_remove)},
        {"remap", Read(stats.events_remap)},
        {"fork", Read(stats.events_fork)}}},
      {"latency_us", DescribeLatency(stats.latency)},
      {"refused",
       {{"busy", Read(stats.refused_busy)},
        {"pinned", Read(stats.refused_pinned)},
        {"hole", Read(stats.refused_hole)},
        {"not_ours", Read(stats.refused_not_ours)},
        {"stale", Read(stats.refused_stale)},
        {"doomed", Read(stats.refused_doomed)},
        {"no_memory", Read(stats.refused_no_memory)},
        {"failed", Read(stats.refused_failed)},
        {"corrupt", Read(stats.corrupt)},
        {"conflicts", Read(stats.conflicts)},
        {"revoked", Read(stats.revoked)}}},
  };
}

json DescribeAll(const StatRequest& request, const ClientRegistry& registry, const zp::PageStore& store,
                 const zp::IndexArena& index_arena, const Options& options, double uptime_seconds,
                 const Restarts& restarts) {
  const auto mine = [&](uid_t uid) { return request.uid == 0 || request.uid == uid; };
  json clients = json::array();
  uint64_t count = 0, resident = 0, stored_pages = 0, same_filled = 0, evicted = 0, faults_stored = 0,
           faults_zero = 0;
  LatencyHistogram latency;
  for (const auto& client : registry.All()) {
    if (!mine(client->identity().uid)) continue;
    if (request.pid != 0 && client->identity().pid != request.pid) continue;
    client->SampleResident();
    const ClientStats& stats = client->stats();
    const auto counts = client->stored_counts();
    ++count;
    resident += Read(stats.resident_bytes);
    stored_pages += counts.handles + counts.same_filled;
    same_filled += counts.same_filled;
    evicted += Read(stats.evicted_pages);
    faults_stored += Read(stats.faults_stored);
    faults_zero += Read(stats.faults_zero_fill);
    latency.Merge(stats.latency);
    const bool limited = client->limit_bytes() != 0;
    clients.push_back(DescribeClient(*client, limited ? "limited" : "active"));
  }
  if (request.include_gone) {
    for (const std::string& text : registry.Gone()) {
      json gone = json::parse(text, nullptr, false);
      if (gone.is_discarded() || !mine(gone["uid"].get<uid_t>())) continue;
      if (request.pid == 0 || gone["pid"] == request.pid) clients.push_back(std::move(gone));
    }
  }
  const zp::PoolStats pool = store.stats();
  return {
      {"schema", "uzswap.stat/1"},
      {"daemon",
       {{"pid", getpid()},
        {"version", kVersionText},
        {"uptime_seconds", uptime_seconds},
        {"embedded", options.embedded},
        {"restarts", restarts.count},
        {"since_restart_seconds", restarts.since_seconds},
        {"codec", options.codec},
        {"pool", options.pool}}},
      {"clients", std::move(clients)},
      {"totals",
       {{"clients", count},
        {"resident_bytes", resident},
        {"stored_pages", stored_pages},
        {"stored_bytes", stored_pages * zp::kPageBytes},
        {"same_filled_pages", same_filled},
        {"pool_bytes", pool.pool_bytes},
        {"object_bytes", pool.stored_bytes},
        {"raw_pages", pool.raw_pages},
        {"pool_limit_bytes", pool.capacity_bytes},
        {"metadata_bytes", pool.metadata_bytes + index_arena.metadata_bytes()},
        {"ratio", Ratio(stored_pages * zp::kPageBytes, pool.pool_bytes)},
        {"evicted_pages", evicted},
        {"faults_stored", faults_stored},
        {"faults_zero_fill", faults_zero},
        {"latency_us", DescribeLatency(latency)}}},
  };
}

json DescribeNodes(const zp::PageStore& store, const PoolKeeper& keeper) {
  const zp::CompactorStats moved = keeper.stats();
  json nodes = json::array();
  for (const zp::NodeId node : store.topology().nodes()) {
    const zp::NodeStats stats = store.node_stats(node);
    nodes.push_back({{"node", node.value()},
                     {"accepts", stats.accepts},
                     {"pool_bytes", stats.pool_bytes},
                     {"object_bytes", stats.stored_bytes},
                     {"objects", stats.objects},
                     {"followed_bytes", moved.followed_bytes[node.value()]}});
  }
  return {{"schema", "uzswap.node-list/1"},
          {"nodes", std::move(nodes)},
          {"compaction", {{"objects", moved.objects}, {"bytes", moved.bytes}}},
          {"balanced_bytes", moved.balanced.bytes},
          {"demoted_bytes", moved.demoted.bytes},
          {"followed_bytes", moved.followed_bytes_of_all()}};
}

}  // namespace uzswap
