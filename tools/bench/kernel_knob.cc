#include "tools/bench/kernel_knob.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "libzpool/base/fd.h"
#include "tools/bench/error.h"

namespace uzswap::bench {

std::string ReadKnob(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool WriteKnob(const std::string& path, const std::string& value) {
  const zp::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd.valid() && ::write(fd.get(), value.data(), value.size()) == static_cast<ssize_t>(value.size());
}

KnobGuard::KnobGuard(std::string path, const std::string& value)
    : path_(std::move(path)), before_(ReadKnob(path_)) {
  if (!WriteKnob(path_, value)) ThrowErrno("write " + value + " to " + path_);
}

KnobGuard::~KnobGuard() {
  if (!WriteKnob(path_, before_)) {
    std::fprintf(stderr, "uzswap-bench: cannot restore %s to %s: %s\n", path_.c_str(), before_.c_str(),
                 std::strerror(errno));
  }
}

}  // namespace uzswap::bench
