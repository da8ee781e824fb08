#include "tools/bench/kernel_swap.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

#include "tools/bench/page_source.h"

namespace uzswap::bench {
namespace {

constexpr char kZramControl[] = "/sys/class/zram-control/hot_add";
constexpr char kZswap[] = "/sys/module/zswap/parameters/";
// zswap must hold the whole region in memory: writing back to the file would measure the disk.
constexpr char kZswapMaxPoolPercent[] = "50";

void RequireRoot(const char* kind) {
  if (::geteuid() != 0) throw Unavailable(std::string(kind) + " needs root (swapon); run the bench as root");
}

}  // namespace

std::string ZramSwap::Sysfs(const std::string& name) const { return "/sys/block/" + Name() + "/" + name; }

ZramSwap::ZramSwap(uint64_t bytes) {
  RequireRoot("zram");
  const std::string fresh = ReadKnob(kZramControl);  // reading it makes a new device and tells its number
  if (!fresh.empty()) {
    number_ = std::stoi(fresh);
    added_ = true;
  } else if (!std::filesystem::exists("/sys/block/zram0")) {
    throw Unavailable("no zram in this kernel; `modprobe zram` (CONFIG_ZRAM)");
  } else if (ReadKnob("/sys/block/zram0/initstate") != "0") {
    throw Unavailable("zram0 is in use and the kernel gives no further device");
  }
  try {
    if (!WriteKnob(Sysfs("comp_algorithm"), "lz4")) {
      throw Unavailable("this kernel's zram has no lz4 (CONFIG_ZRAM_BACKEND_LZ4)");
    }
    if (!WriteKnob(Sysfs("disksize"), std::to_string(bytes))) ThrowErrno("set the size of " + Name());
    area_ = std::make_unique<SwapArea>("/dev/" + Name(), bytes);
  } catch (...) {
    Reset();
    throw;
  }
}

ZramSwap::~ZramSwap() {
  area_.reset();
  Reset();
}

void ZramSwap::Reset() {
  // Busy while something (udev, blkid) still has it open.
  bool done = false;
  for (int attempt = 0; attempt < 40 && !done; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    done = WriteKnob(Sysfs("reset"), "1") &&
           (!added_ || WriteKnob("/sys/class/zram-control/hot_remove", std::to_string(number_)));
  }
  if (!done) {
    std::fprintf(stderr, "uzswap-bench: cannot reset %s: %s\n", Name().c_str(), std::strerror(errno));
  }
}

ScratchFile::ScratchFile(const std::string& folder, uint64_t bytes)
    : path_(folder + "/uzswap-bench-swap-XXXXXX") {
  fd_.reset(::mkostemp(path_.data(), O_CLOEXEC));
  if (!fd_.valid()) ThrowErrno("make a swap file in " + folder);
  if (::posix_fallocate(fd_.get(), 0, static_cast<off_t>(bytes)) != 0) {
    ::unlink(path_.c_str());
    throw BenchError("no room for a swap file of " + std::to_string(bytes >> 20) + " MiB in " + folder +
                     "; name another place with --swap-dir");
  }
}

ScratchFile::~ScratchFile() { ::unlink(path_.c_str()); }

ZswapSwap::ZswapSwap(uint64_t bytes, const std::string& folder) {
  RequireRoot("zswap");
  const std::string parameters = kZswap;
  if (!std::filesystem::exists(parameters + "enabled")) {
    throw Unavailable("no zswap in this kernel (CONFIG_ZSWAP)");
  }
  if (ReadKnob(parameters + "enabled") == "Y") {
    throw Unavailable("zswap is switched on already; switch it off first: its settings are somebody's");
  }
  // The best codec that the kernel has; zswap takes what the crypto API offers.
  for (const char* codec : {"lz4", "lzo-rle", "lzo", "zstd"}) {
    try {
      knobs_.push_back(std::make_unique<KnobGuard>(parameters + "compressor", codec));
    } catch (const BenchError&) {
      continue;
    }
    compressor_ = ReadKnob(parameters + "compressor");
    if (compressor_ == codec) break;
    knobs_.pop_back();  // accepted, but another one is in force
    compressor_.clear();
  }
  if (compressor_.empty()) throw Unavailable("zswap takes none of lz4, lzo-rle, lzo, zstd");
  knobs_.push_back(std::make_unique<KnobGuard>(parameters + "max_pool_percent", kZswapMaxPoolPercent));
  if (std::filesystem::exists(parameters + "shrinker_enabled")) {
    knobs_.push_back(std::make_unique<KnobGuard>(parameters + "shrinker_enabled", "N"));
  }

  file_ = std::make_unique<ScratchFile>(folder, bytes);
  try {
    area_ = std::make_unique<SwapArea>(file_->path(), bytes);
  } catch (const BenchError&) {
    UseLoopDevice(bytes);  // overlayfs, btrfs with copy-on-write, … cannot swap to a file
  }
  knobs_.push_back(std::make_unique<KnobGuard>(parameters + "enabled", "Y"));
}

ZswapSwap::~ZswapSwap() {
  // Off before the swap goes: what is in the pool is then found there and nothing new is put in.
  if (!knobs_.empty()) knobs_.pop_back();
  area_.reset();
  if (loop_.valid()) ::ioctl(loop_.get(), LOOP_CLR_FD, 0);
  while (!knobs_.empty()) knobs_.pop_back();
}

void ZswapSwap::UseLoopDevice(uint64_t bytes) {
  const zp::UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  const int number = control.valid() ? ::ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
  if (number < 0) {
    throw Unavailable("the file system of --swap-dir cannot hold a swap file and there is no loop device");
  }
  const std::string path = "/dev/loop" + std::to_string(number);
  loop_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  loop_config config{};
  config.fd = static_cast<uint32_t>(file_->fd());
  config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  if (!loop_.valid() || ::ioctl(loop_.get(), LOOP_CONFIGURE, &config) != 0) ThrowErrno("set up " + path);
  area_ = std::make_unique<SwapArea>(path, bytes);
}

std::unique_ptr<KernelSwap> SetUpKernelSwap(const std::string& kind, uint64_t bytes,
                                            const std::string& folder) {
  if (!NoSwapIsOn()) {
    throw Unavailable(
        "swap is on already (see /proc/swaps); the bench touches no swap but its own: swapoff it first");
  }
  if (kind == "zram") return std::make_unique<ZramSwap>(bytes);
  if (kind == "zswap") return std::make_unique<ZswapSwap>(bytes, folder);
  throw BenchError("unknown kind of kernel swap: " + kind);
}

}  // namespace uzswap::bench
