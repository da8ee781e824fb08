#include "tests/uffd/pauses.h"

#include "libzpool/base/pause_point.h"

namespace uzswap::test {

Pauses& Pauses::Get() {
  static Pauses instance;
  zp::SetPauseHandler(&Pauses::Handle);
  return instance;
}

void Pauses::Handle(const char* name) { Get().Stop(name); }

void Pauses::Stop(const std::string& name) {
  std::unique_lock<std::mutex> lock(mu_);
  const auto it = points_.find(name);
  if (it == points_.end() || it->second != State::kArmed) return;
  it->second = State::kReached;
  changed_.notify_all();
  changed_.wait(lock, [&] {
    const auto now = points_.find(name);
    return now == points_.end() || now->second == State::kReleased;
  });
  points_.erase(name);
}

void Pauses::Arm(const std::string& name) {
  std::lock_guard<std::mutex> lock(mu_);
  points_[name] = State::kArmed;
}

void Pauses::WaitReached(const std::string& name) {
  std::unique_lock<std::mutex> lock(mu_);
  changed_.wait(lock, [&] { return points_.contains(name) && points_[name] == State::kReached; });
}

bool Pauses::Reached(const std::string& name) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = points_.find(name);
  return it != points_.end() && it->second == State::kReached;
}

void Pauses::Release(const std::string& name) {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = points_.find(name);
  if (it == points_.end()) return;
  if (it->second == State::kArmed) {
    points_.erase(it);  // nobody came
  } else {
    it->second = State::kReleased;
  }
  changed_.notify_all();
}

void Pauses::ReleaseAll() {
  std::lock_guard<std::mutex> lock(mu_);
  for (auto it = points_.begin(); it != points_.end();) {
    if (it->second == State::kArmed) {
      it = points_.erase(it);
    } else {
      (it++)->second = State::kReleased;
    }
  }
  changed_.notify_all();
}

}  // namespace uzswap::test
