// Which NUMA nodes there are and how far they lie from each other. Injected, so that tests make machines up.
#pragma once

#include <cstdint>
#include <vector>

#include "libzpool/base/result.h"
#include "libzpool/base/units.h"

namespace zp {

// A location word has six bits for the node.
inline constexpr unsigned kMaxNodes = 64;

// A value: copy it freely. Node numbers may have holes; nodes without CPUs are nodes like others.
class Topology {
 public:
  // One node, number 0, nothing bound to it.
  static Topology SingleNode();
  // The machine's, by libnuma: nodes that have memory and that this process may use. One node 0 where there
  // is no NUMA. Nodes numbered 64 and above are left out.
  static Topology Detect();
  // A made-up machine; frames are not bound. `distances` is a square matrix in the order of `nodes`, 10 on
  // the diagonal by custom. kInvalid: no nodes, a number twice or above 63, or a matrix of another size.
  static Result<Topology> Made(std::vector<NodeId> nodes, std::vector<std::vector<uint32_t>> distances);

  // The same and one node more, the farthest from all: one that is gone from the machine, say. `node` is
  // below 64 and not in nodes().
  Topology With(NodeId node) const;

  const std::vector<NodeId>& nodes() const { return nodes_; }
  // Whether the numbers mean nodes of this machine, to which memory can be bound.
  bool is_real() const { return is_real_; }
  // The position of `node` in nodes(), or -1.
  int IndexOf(NodeId node) const;
  // Positions in nodes(), nearest to `node` first, itself before all. An unknown node gets the order of the
  // first. Valid as long as this object lives.
  const std::vector<uint8_t>& FallbackOrder(NodeId node) const;

 private:
  Topology(std::vector<NodeId> nodes, const std::vector<std::vector<uint32_t>>& distances, bool is_real);

  std::vector<NodeId> nodes_;
  std::vector<std::vector<uint8_t>> order_;  // per position in nodes_: positions by distance
  int8_t index_of_[kMaxNodes];
  bool is_real_ = false;
};

}  // namespace zp
