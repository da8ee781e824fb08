// Where the frames of a store really lie, as the kernel says.
#pragma once

#include <cstdint>
#include <map>

#include "libzpool/store/page_store.h"

namespace zp::testing {

// How many frames lie on each node.
using FramesByNode = std::map<int, uint64_t>;

// By the node of an arena: the nodes that its populated frames lie on, all of them looked up by
// move_pages(2). The arenas' headers are left out. Maps the files anew and populates nothing. Nobody may be
// in the store.
std::map<int, FramesByNode> FramePlaces(const PageStore& store);

}  // namespace zp::testing
