// zbud stores by CPU: a test that means to fill frames stays on one.
#pragma once

#include <sched.h>

#include <algorithm>

namespace zp::testing {

// Keeps this thread, and those that it starts, on the CPU where it is, until Release or its end.
class OneCpu {
 public:
  OneCpu() {
    sched_getaffinity(0, sizeof(before_), &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<unsigned>(std::max(0, sched_getcpu())), &one);
    sched_setaffinity(0, sizeof(one), &one);
  }
  ~OneCpu() { Release(); }
  OneCpu(const OneCpu&) = delete;
  OneCpu& operator=(const OneCpu&) = delete;
  void Release() { sched_setaffinity(0, sizeof(before_), &before_); }

 private:
  cpu_set_t before_;
};

}  // namespace zp::testing
