// Reading and writing one-line kernel files (/sys, /proc).
#pragma once

#include <string>

namespace uzswap::bench {

// The first line without its newline; "" if the file cannot be read.
std::string ReadKnob(const std::string& path);
// False, with errno set, if the kernel did not take it.
[[nodiscard]] bool WriteKnob(const std::string& path, const std::string& value);

// Sets a file to `value` and puts back on destruction what was there.
class KnobGuard {
 public:
  // Throws BenchError if the kernel does not take the value.
  KnobGuard(std::string path, const std::string& value);
  ~KnobGuard();
  KnobGuard(const KnobGuard&) = delete;
  KnobGuard& operator=(const KnobGuard&) = delete;

 private:
  const std::string path_;
  const std::string before_;
};

}  // namespace uzswap::bench
