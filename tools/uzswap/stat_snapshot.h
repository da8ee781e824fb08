// The daemon's `stat` answer as plain values (schema uzswap.stat/1 in daemon/wire/control.md).
//
// A field that is missing or of another type reads as 0, false or "": a newer or older daemon of the same
// schema then still gives a table. Names are the schema's.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/uzswap/or_message.h"

namespace uzswap::cli {

struct Latency {
  double p50_us = 0;
  double p99_us = 0;
  double max_us = 0;
};

struct NamedCount {
  std::string name;
  uint64_t count = 0;
};

struct ClientStat {
  uint64_t id = 0;
  uint64_t pid = 0;  // 0: a forked child whose pid is not known
  uint64_t uid = 0;
  std::string comm;
  bool agent = false;  // false: its faults are served, but it is not evicted
  std::string state;   // active, limited, gone
  std::string codec;   // "" from an older daemon
  std::string pool;
  uint64_t limit_bytes = 0;
  uint64_t resident_bytes = 0;
  uint64_t resident_peak_bytes = 0;
  uint64_t stored_pages = 0;
  uint64_t stored_bytes = 0;
  uint64_t stored_peak_bytes = 0;
  uint64_t same_filled_pages = 0;
  uint64_t pool_bytes = 0;
  uint64_t pool_peak_bytes = 0;
  double ratio = 0;
  uint64_t evicted_pages = 0;
  std::vector<NamedCount> faults;
  std::vector<NamedCount> events;
  std::vector<NamedCount> refused;
  Latency latency;

  bool gone() const { return state == "gone"; }
  uint64_t faults_stored() const;
  uint64_t refused_total() const;
};

struct StatTotals {
  uint64_t resident_bytes = 0;
  uint64_t stored_pages = 0;
  uint64_t stored_bytes = 0;
  uint64_t same_filled_pages = 0;
  uint64_t pool_bytes = 0;
  uint64_t object_bytes = 0;
  uint64_t pool_limit_bytes = 0;
  uint64_t metadata_bytes = 0;
  double ratio = 0;
  uint64_t evicted_pages = 0;
  uint64_t faults_stored = 0;
  uint64_t faults_zero_fill = 0;
  Latency latency;
};

struct StatSnapshot {
  uint64_t daemon_pid = 0;
  std::string daemon_version;
  double uptime_seconds = 0;
  bool embedded = false;
  std::string codec;
  std::string pool;
  std::vector<ClientStat> clients;
  StatTotals totals;
};

// Message: the answer is of another schema.
OrMessage<StatSnapshot> ParseStat(const nlohmann::json& json);

// The count of that name, 0 if there is none.
uint64_t CountOf(const std::vector<NamedCount>& counts, const std::string& name);

}  // namespace uzswap::cli
