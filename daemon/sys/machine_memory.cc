#include "daemon/sys/machine_memory.h"

#include <fstream>

namespace uzswap {

std::optional<uint64_t> AvailableBytes(const std::string& meminfo) {
  std::ifstream file(meminfo);
  std::string name;
  uint64_t kib = 0;
  std::string unit;
  std::optional<uint64_t> available;
  uint64_t swap = 0;
  while (file >> name >> kib && std::getline(file, unit)) {
    if (name == "MemAvailable:") available = kib * 1024;
    if (name == "SwapFree:") swap = kib * 1024;
  }
  if (available.has_value()) *available += swap;
  return available;
}

uint64_t MissingToBringHome(uint64_t stored_bytes, uint64_t pool_bytes, std::optional<uint64_t> available) {
  if (!available.has_value()) return 0;
  const uint64_t there = *available + pool_bytes;
  return stored_bytes > there ? stored_bytes - there : 0;
}

}  // namespace uzswap
