// What the command line says.
#pragma once

#include <cstdint>
#include <string>

namespace uzswap::bench {

struct Options {
  std::string command;           // "fault", "evict", "pool", "native", "all"
  std::string against = "none";  // "zram", "zswap", "none"
  uint64_t megabytes = 256;      // MiB of memory on each side
  std::string pages;             // file of page samples; "" built-in
  uint64_t seed = 1;
  unsigned rounds = 5;
  unsigned gap_us = 0;           // computing between two random touches
  unsigned milliseconds = 1000;  // of one run of `native`
  bool ours = true;              // --no-ours: the peer alone
  bool json = false;
  std::string uzswap;                 // path of the CLI; "" look beside this program, then in PATH
  std::string swap_dir = "/var/tmp";  // for zswap's file

  uint64_t region_pages() const { return megabytes * 256; }
};

}  // namespace uzswap::bench
