#include "tools/bench/swap_area.h"

#include <fcntl.h>
#include <sys/swap.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>
#include <utility>

#include "tools/bench/error.h"
#include "tools/bench/page_source.h"

namespace uzswap::bench {
namespace {

// The on-disk header; the first 1024 bytes belong to boot loaders.
struct SwapHeader {
  char boot[1024];
  uint32_t version;
  uint32_t last_page;
  uint32_t bad_pages;
  uint8_t uuid[16];
  char label[16];
  uint8_t unused[kPageBytes - 1024 - 12 - 32 - 10];
  char magic[10];
};
static_assert(sizeof(SwapHeader) == kPageBytes);

constexpr int kHighestPriority = SWAP_FLAG_PRIO_MASK;

}  // namespace

bool NoSwapIsOn() {
  std::ifstream file("/proc/swaps");
  std::string line;
  std::getline(file, line);  // the heading
  return !std::getline(file, line);
}

SwapArea::SwapArea(std::string path, uint64_t bytes) : path_(std::move(path)) {
  SwapHeader header{};
  header.version = 1;
  header.last_page = static_cast<uint32_t>(bytes / kPageBytes - 1);
  std::memcpy(header.label, "uzswap-bench", 12);
  std::memcpy(header.magic, "SWAPSPACE2", sizeof(header.magic));
  {
    const zp::UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd.valid()) ThrowErrno("open " + path_);
    if (::pwrite(fd.get(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)) ||
        ::fsync(fd.get()) != 0) {
      ThrowErrno("write the swap header to " + path_);
    }
  }
  // udev may look at a device that has just appeared: busy for a moment.
  for (int attempt = 0; ::swapon(path_.c_str(), SWAP_FLAG_PREFER | kHighestPriority) != 0; ++attempt) {
    if (errno != EBUSY || attempt == 20) ThrowErrno("swapon " + path_);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

SwapArea::~SwapArea() {
  for (int attempt = 0; ::swapoff(path_.c_str()) != 0; ++attempt) {
    if (errno == EINVAL) return;  // somebody switched it off already
    if (attempt == 3) {
      std::fprintf(stderr, "uzswap-bench: swapoff %s: %s; switch it off by hand\n", path_.c_str(),
                   std::strerror(errno));
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

}  // namespace uzswap::bench
