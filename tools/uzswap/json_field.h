// Members of somebody else's JSON, without exceptions: what is missing or of another type reads as nothing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace uzswap::cli {

// The member, or a null value that lives for ever. `object` may be anything.
const nlohmann::json& Member(const nlohmann::json& object, const char* name);

// Negative and too great numbers read as 0.
uint64_t AsCount(const nlohmann::json& value);
uint64_t CountField(const nlohmann::json& object, const char* name);
double NumberField(const nlohmann::json& object, const char* name);
bool FlagField(const nlohmann::json& object, const char* name);
// Printable ASCII: a process names itself, and its name must not reach the terminal as an escape sequence.
std::string TextField(const nlohmann::json& object, const char* name);

}  // namespace uzswap::cli
