#include "libzpool/frame/topology.h"

#include <numa.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace zp {

Topology::Topology(std::vector<NodeId> nodes, const std::vector<std::vector<uint32_t>>& distances,
                   bool is_real)
    : nodes_(std::move(nodes)), is_real_(is_real) {
  std::memset(index_of_, -1, sizeof(index_of_));
  for (size_t i = 0; i < nodes_.size(); ++i) {
    index_of_[nodes_[i].value()] = static_cast<int8_t>(i);
    std::vector<uint8_t> order(nodes_.size());
    std::iota(order.begin(), order.end(), uint8_t{0});
    std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) {
      // A node is its own nearest, whatever the matrix says.
      if ((a == i) != (b == i)) return a == i;
      return distances[i][a] < distances[i][b];
    });
    order_.push_back(std::move(order));
  }
}

Topology Topology::SingleNode() { return Topology({NodeId(0)}, {{10}}, false); }

Topology Topology::Detect() {
  if (numa_available() < 0) return SingleNode();
  std::vector<NodeId> nodes;
  bitmask* const allowed = numa_get_mems_allowed();
  for (int node = 0; node <= numa_max_node() && node < static_cast<int>(kMaxNodes); ++node) {
    long long free_bytes = 0;
    if (numa_bitmask_isbitset(allowed, static_cast<unsigned>(node)) &&
        numa_node_size64(node, &free_bytes) > 0) {
      nodes.push_back(NodeId(static_cast<uint8_t>(node)));
    }
  }
  numa_bitmask_free(allowed);
  if (nodes.empty()) return SingleNode();
  std::vector<std::vector<uint32_t>> distances(nodes.size(), std::vector<uint32_t>(nodes.size()));
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (size_t j = 0; j < nodes.size(); ++j) {
      const int distance = numa_distance(nodes[i].value(), nodes[j].value());
      distances[i][j] = distance > 0 ? static_cast<uint32_t>(distance) : UINT32_MAX;  // 0: not known
    }
  }
  return Topology(std::move(nodes), distances, true);
}

Result<Topology> Topology::Made(std::vector<NodeId> nodes, std::vector<std::vector<uint32_t>> distances) {
  const Error invalid{Errc::kInvalid, 0, "made-up topology"};
  if (nodes.empty() || nodes.size() > kMaxNodes || distances.size() != nodes.size()) return invalid;
  uint64_t seen = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].value() >= kMaxNodes || distances[i].size() != nodes.size()) return invalid;
    const uint64_t bit = uint64_t{1} << nodes[i].value();
    if ((seen & bit) != 0) return invalid;
    seen |= bit;
  }
  return Topology(std::move(nodes), distances, false);
}

Topology Topology::With(NodeId node) const {
  Topology more = *this;
  const uint8_t index = static_cast<uint8_t>(nodes_.size());
  std::vector<uint8_t> its_order = order_[0];
  its_order.insert(its_order.begin(), index);
  for (std::vector<uint8_t>& order : more.order_) order.push_back(index);
  more.order_.push_back(std::move(its_order));
  more.nodes_.push_back(node);
  more.index_of_[node.value()] = static_cast<int8_t>(index);
  return more;
}

int Topology::IndexOf(NodeId node) const { return node.value() < kMaxNodes ? index_of_[node.value()] : -1; }

const std::vector<uint8_t>& Topology::FallbackOrder(NodeId node) const {
  const int index = IndexOf(node);
  return order_[index < 0 ? 0 : static_cast<size_t>(index)];
}

}  // namespace zp
