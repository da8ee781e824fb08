// The summary that `uzswap run --report` prints at the end.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "tools/uzswap/stat_snapshot.h"

namespace uzswap::cli {

// Finds out which clients of the daemon belong to one program: the program itself and its descendants.
//
// Idea: the daemon knows pids, not families, and a client that has ended has no family any more. So Observe
// is called now and then while the program runs and follows /proc's parent pids; the program's own pid needs
// no such look. Limit: a descendant that lived and ended between two looks, or whose parent did, is not seen.
class RunClients {
 public:
  // `before`: what the daemon lists before the program starts; those ids are others' (a pid may come again).
  explicit RunClients(const StatSnapshot& before);
  // All clients are ours: an embedded daemon.
  RunClients() : all_(true) {}

  void Observe(const StatSnapshot& now, uint64_t program_pid);
  // Ours among those of a snapshot, the one with the greatest resident peak first.
  std::vector<ClientStat> Select(const StatSnapshot& snapshot, uint64_t program_pid) const;

 private:
  bool all_ = false;
  std::set<uint64_t> foreign_;  // ids
  std::set<uint64_t> family_;   // ids
};

// True if `pid` is `ancestor` or descends from it, by /proc. False also if it has ended.
bool DescendsFrom(uint64_t pid, uint64_t ancestor);

// The summary; `clients` as from Select. No client: says that the program did not attach. Ends with a
// newline.
std::string RenderRunReport(const std::string& command, double seconds,
                            const std::vector<ClientStat>& clients);

}  // namespace uzswap::cli
