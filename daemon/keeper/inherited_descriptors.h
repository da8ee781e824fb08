// The descriptors that a successor was started with, by number.
//
// Idea: everything that the daemon before had open is open here, too. What the client table names is taken
// once each; all the rest (epoll sets, half-open connections, the files of clients that ended) is closed.
// Threads: one.
#pragma once

#include <set>

#include "libzpool/base/fd.h"

namespace uzswap {

class InheritedDescriptors {
 public:
  // None.
  InheritedDescriptors() = default;
  // All that are open now but for 0 to 2; they will not survive an exec.
  static InheritedDescriptors Find();

  // Invalid: it is not open, or was taken before.
  zp::UniqueFd Take(int number);
  // Closes what was not taken.
  void CloseRest();

 private:
  std::set<int> open_;
};

}  // namespace uzswap
