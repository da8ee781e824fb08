#include "tools/uzswap/json_field.h"

namespace uzswap::cli {

using nlohmann::json;

const json& Member(const json& object, const char* name) {
  static const json kNothing;
  if (!object.is_object()) return kNothing;
  const auto found = object.find(name);
  return found == object.end() ? kNothing : *found;
}

uint64_t AsCount(const json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  if (!value.is_number()) return 0;
  const double number = value.get<double>();
  return number >= 0 && number < 0x1p63 ? static_cast<uint64_t>(number) : 0;
}

uint64_t CountField(const json& object, const char* name) { return AsCount(Member(object, name)); }

double NumberField(const json& object, const char* name) {
  const json& value = Member(object, name);
  return value.is_number() ? value.get<double>() : 0;
}

bool FlagField(const json& object, const char* name) {
  const json& value = Member(object, name);
  return value.is_boolean() && value.get<bool>();
}

std::string TextField(const json& object, const char* name) {
  const json& value = Member(object, name);
  if (!value.is_string()) return "";
  std::string text = value.get<std::string>();
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

}  // namespace uzswap::cli
