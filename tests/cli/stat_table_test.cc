// Golden: what `uzswap stat` and the report print. A change here is a change that users see.
#include "tools/uzswap/stat_table.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tools/uzswap/run_report.h"
#include "tools/uzswap/stat_snapshot.h"

namespace uzswap::cli {
namespace {

using nlohmann::json;

constexpr char kStat[] = R"({
  "schema": "uzswap.stat/1",
  "daemon": {"pid": 812, "version": "0.1.0", "uptime_seconds": 245.2, "embedded": false, "codec": "lz4", "pool": "zsmalloc"},
  "clients": [
    {"id": 1, "pid": 4711, "uid": 1000, "comm": "redis-server", "agent": true, "state": "limited",
     "limit_bytes": 157286400, "resident_bytes": 157200000, "resident_peak_bytes": 158000000,
     "stored_pages": 38400, "stored_bytes": 157286400, "stored_peak_bytes": 160000000, "same_filled_pages": 12,
     "pool_bytes": 92000000, "pool_peak_bytes": 94000000, "ratio": 1.7096, "evicted_pages": 123456,
     "faults": {"stored": 98765, "zero_fill": 20, "fault_around_pages": 300, "read_ahead_pages": 0, "duplicate": 2, "retried": 1},
     "events": {"unmap": 3, "remove": 40, "remap": 0, "fork": 1}, "latency_us": {"p50": 6.52, "p99": 44.0, "max": 1234.5},
     "refused": {"busy": 12, "pinned": 0, "hole": 130, "not_ours": 0, "stale": 7, "doomed": 0, "no_memory": 0, "failed": 0, "corrupt": 0}},
    {"id": 2, "pid": 0, "uid": 1000, "comm": "redis-server", "agent": false, "state": "active",
     "limit_bytes": 0, "resident_bytes": 0, "resident_peak_bytes": 0, "stored_pages": 0, "stored_bytes": 0,
     "same_filled_pages": 0, "pool_bytes": 0, "ratio": 0, "evicted_pages": 0, "faults": {"stored": 0}, "events": {},
     "latency_us": {"p50": 0, "p99": 0, "max": 0}, "refused": {}}],
  "totals": {"clients": 2, "resident_bytes": 157200000, "stored_pages": 38400, "stored_bytes": 157286400,
     "same_filled_pages": 12, "pool_bytes": 93000000, "object_bytes": 92000000, "pool_limit_bytes": 4294967296,
     "metadata_bytes": 1200000, "ratio": 1.6912, "evicted_pages": 123456, "faults_stored": 98765, "faults_zero_fill": 20,
     "latency_us": {"p50": 6.52, "p99": 44.0, "max": 1234.5}}
})";

StatSnapshot Parse(const json& value) {
  auto snapshot = ParseStat(value);
  EXPECT_TRUE(snapshot.ok());
  return std::move(snapshot).value();
}

StatSnapshot Example() { return Parse(json::parse(kStat)); }

TEST(StatTable, Golden) {
  EXPECT_EQ(RenderStatTable(Example()),
            R"( PID COMMAND       LIMIT RESIDENT STORED  POOL RATIO FAULTS   P50  P99 REFUSED
4711 redis-server   150M     150M   150M 87.7M  1.71  98765 6.5us 44us     149
   ? redis-server*  none        0      0     0     -      0     -    -       0
     total                   150M   150M 88.7M  1.69  98765 6.5us 44us     149
* a forked child without an agent of its own: its faults are served, it is not evicted
uzswapd 812, up 4 min 05 s: lz4, zsmalloc, pool limit 4G, metadata 1.14M
)");
}

TEST(StatTable, ClientsThatAreKeptOtherwiseAreNamed) {
  StatSnapshot snapshot = Example();
  snapshot.clients[0].codec = "lz4";
  snapshot.clients[0].pool = "zbud";
  snapshot.clients[1].codec = "lz4";
  snapshot.clients[1].pool = "zsmalloc";
  EXPECT_NE(RenderStatTable(snapshot).find("\n4711 is kept as lz4 in zbud\nuzswapd 812"), std::string::npos);
  EXPECT_EQ(RenderStatTable(snapshot).find("zsmalloc\nuzswapd"), std::string::npos);
  EXPECT_NE(
      RenderClientDetails(snapshot.clients[0]).find("pool       87.7M, ratio 1.71, peak 89.6M (lz4, zbud)\n"),
      std::string::npos);
}

TEST(StatTable, DetailsGolden) {
  EXPECT_EQ(RenderClientDetails(Example().clients[0]),
            R"(redis-server (pid 4711, uid 1000), client 1, limited
  limit      150M
  resident   150M, peak 151M
  stored     150M (38400 pages, of them 12 same-filled), peak 153M
  pool       87.7M, ratio 1.71, peak 89.6M
  evicted    123k pages
  faults     98765 stored, 300 fault around pages, 20 zero fill, 2 duplicate, 1 retried
  latency    p50 6.5us, p99 44us, max 1.2ms (the daemon's share)
  refused    130 hole, 12 busy, 7 stale
  events     40 remove, 3 unmap, 1 fork
)");
}

TEST(StatTable, NobodyAttached) {
  json value = json::parse(kStat);
  value["clients"] = json::array();
  EXPECT_EQ(RenderStatTable(Parse(value)),
            R"(no client is attached; `uzswap run --limit SIZE -- CMD` starts one
uzswapd 812, up 4 min 05 s: lz4, zsmalloc, pool limit 4G, metadata 1.14M
)");
}

TEST(StatTable, FitsEightyColumnsWithWideFigures) {
  StatSnapshot snapshot = Example();
  snapshot.clients.resize(1);
  ClientStat& c = snapshot.clients[0];
  c.pid = 4194303;
  c.comm = "fifteen-letters";
  c.limit_bytes = c.resident_bytes = c.stored_bytes = c.pool_bytes = (uint64_t{12} << 30) + 123456789;
  c.faults = {{"stored", 123'456'789}};
  c.latency = {123.4, 123456.7, 1e6};
  c.refused = {{"busy", 123'456'789}};
  std::stringstream lines(RenderStatTable(snapshot));
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), kTableWidth) << line;
}

TEST(StatSnapshot, WrongTypesReadAsNothing) {
  const StatSnapshot s = Parse(json::parse(
      R"({"schema":"uzswap.stat/1","daemon":7,"totals":[],"clients":[{"pid":"x","comm":5,"resident_bytes":-1,
          "ratio":"much","agent":1,"faults":[1],"refused":{"busy":"y"},"stored_pages":1e300},null,3]})"));
  ASSERT_EQ(s.clients.size(), 3u);
  EXPECT_EQ(s.clients[0].pid, 0u);
  EXPECT_EQ(s.clients[0].resident_bytes, 0u);
  EXPECT_EQ(s.clients[0].stored_pages, 0u);
  EXPECT_EQ(s.clients[0].refused_total(), 0u);
  EXPECT_FALSE(RenderStatTable(s).empty());
}

TEST(StatSnapshot, OtherSchemaIsRefused) {
  EXPECT_FALSE(ParseStat(json::parse(R"({"schema":"uzswap.stat/2"})")).ok());
  EXPECT_FALSE(ParseStat(json::parse("[]")).ok());
}

TEST(StatSnapshot, ProcessNamesDoNotReachTheTerminalAsEscapes) {
  const StatSnapshot s =
      Parse(json::parse(R"({"schema":"uzswap.stat/1","clients":[{"pid":1,"comm":"\u001b[2Jx\n"}]})"));
  EXPECT_EQ(s.clients[0].comm, "?[2Jx?");
}

TEST(RunReport, Golden) {
  EXPECT_EQ(RenderRunReport("redis-server", 12.34, {Example().clients[0]}),
            R"(uzswap: redis-server (pid 4711) ended after 12.3 s
  resident  peak 151M (limit 150M)
  stored    peak 153M, in a pool of 89.6M (ratio 1.70)
  evicted   123k pages (482M)
  faults    98765 from the pool, p50 6.5us, p99 44us, max 1.2ms
  refused   130 hole, 12 busy, 7 stale
)");
}

TEST(RunReport, NothingEvicted) {
  ClientStat c = Example().clients[1];
  c.pid = 5;
  c.comm = "sh";
  EXPECT_EQ(RenderRunReport("sh", 0.5, {c}), R"(uzswap: sh (pid 5) ended after 0.5 s
  resident  peak 0 (no limit)
  stored    nothing: it never had to give a page away
  refused   none
)");
}

TEST(RunReport, SaysThatNothingAttached) {
  EXPECT_NE(RenderRunReport("sh", 0.5, {}).find("never attached"), std::string::npos);
}

TEST(RunReport, ManyProcessesAreSummedUp) {
  std::vector<ClientStat> clients(10, Example().clients[0]);
  const std::string text = RenderRunReport("make", 3, clients);
  EXPECT_NE(text.find("make ended after 3.0 s, 10 processes attached"), std::string::npos) << text;
  EXPECT_NE(text.find("6 more, smaller"), std::string::npos) << text;
}

TEST(RunClients, OwnPidAndSeenDescendantsAreOurs) {
  StatSnapshot before;
  before.clients.resize(1);
  before.clients[0].id = 1;
  before.clients[0].pid = 100;  // an earlier process of the pid that the program is going to get
  before.clients[0].state = "gone";
  RunClients clients(before);
  StatSnapshot now = before;
  now.clients.resize(3);
  now.clients[1].id = 2;
  now.clients[1].pid = 100;
  now.clients[2].id = 3;
  now.clients[2].pid = static_cast<uint64_t>(getpid());  // no descendant of pid 100
  clients.Observe(now, 100);
  const auto ours = clients.Select(now, 100);
  ASSERT_EQ(ours.size(), 1u);
  EXPECT_EQ(ours[0].id, 2u);
}

TEST(DescendsFrom, FollowsParents) {
  const auto me = static_cast<uint64_t>(getpid());
  EXPECT_TRUE(DescendsFrom(me, me));
  EXPECT_TRUE(DescendsFrom(me, static_cast<uint64_t>(getppid())));
  EXPECT_FALSE(DescendsFrom(static_cast<uint64_t>(getppid()), me));
}

}  // namespace
}  // namespace uzswap::cli
