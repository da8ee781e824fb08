// What a run says: one JSON document, printed as it is (--json) or as a table.
//
// Layout ("uzswap.bench/1"):
//   { "schema", "command", "date", "machine": {…}, "versions": {…}, "options": {…},
//     "peer": {"kind", "available", "reason", "compressor"},
//     "results": { NAME: {"ours":F|null, "peer":F|null, "ratio":F|null}, … },    each compared figure, unit
//     in its name "details": {…} }                                                           per round,
//     stages, counters
//
// ratio = ours / peer; null where either is missing. "peer" of `native` is the native run.
//
// Threads: one.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace uzswap::bench {

class Report {
 public:
  explicit Report(const std::string& command);

  // Adds a compared figure, in the order of the table. `meaning` is the table's last column.
  void Add(const std::string& name, std::optional<double> ours, std::optional<double> peer,
           const std::string& meaning);
  // Any other part of the document ("options", "peer", "details").
  nlohmann::json& Part(const std::string& name) { return document_[name]; }

  std::string Json() const { return document_.dump(2); }
  std::string Table() const;

 private:
  struct Row {
    std::string name;
    std::optional<double> ours;
    std::optional<double> peer;
    std::string meaning;
  };

  nlohmann::json document_;
  std::vector<Row> rows_;
};

}  // namespace uzswap::bench
