// How much memory the machine can give.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace uzswap {

// Bytes that can be had without killing anybody: MemAvailable and free swap of a /proc/meminfo. Nothing if it
// cannot be read.
std::optional<uint64_t> AvailableBytes(const std::string& meminfo = "/proc/meminfo");

// Whether `stored_bytes` of pages can go home, each of which frees its part of the pool. 0: they can; else
// the bytes that are missing. What is not known is no reason to refuse.
uint64_t MissingToBringHome(uint64_t stored_bytes, uint64_t pool_bytes, std::optional<uint64_t> available);

}  // namespace uzswap
