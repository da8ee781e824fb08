// For exact interleavings: something of the test's runs where a thread reaches a pause point.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "libzpool/base/pause_point.h"

namespace zp::testing {

// One at a time, and installed while no thread is near a point.
class Points {
 public:
  Points() {
    current() = this;
    SetPauseHandler(+[](const char* name) { current()->Reach(name); });
  }
  ~Points() {
    SetPauseHandler(nullptr);
    current() = nullptr;
  }
  Points(const Points&) = delete;
  Points& operator=(const Points&) = delete;
  // `fn` runs in the thread that reaches the point.
  void On(const std::string& name, std::function<void()> fn) { actions_[name] = std::move(fn); }

 private:
  static Points*& current() {
    static Points* points = nullptr;
    return points;
  }
  void Reach(const char* name) {
    const auto action = actions_.find(name);
    if (action != actions_.end()) action->second();
  }
  std::map<std::string, std::function<void()>> actions_;
};

}  // namespace zp::testing
