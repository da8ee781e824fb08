// The kernel's compressed swap, set up for one run and undone by the destructor: zram or zswap.
//
// Idea: constructed only in the keeper process (swap_keeper.h), which nothing but SIGKILL of its own pid can
// end before these destructors have run.
//
// Failure: a constructor throws Unavailable if this machine does not have the thing (no root, no module, no
// codec), BenchError if it has it and it failed. Either way everything is as before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "libzpool/base/fd.h"
#include "tools/bench/error.h"
#include "tools/bench/kernel_knob.h"
#include "tools/bench/swap_area.h"

namespace uzswap::bench {

// Not there on this machine; what() is the reason, as a person needs it.
class Unavailable : public BenchError {
 public:
  using BenchError::BenchError;
};

class KernelSwap {
 public:
  virtual ~KernelSwap() = default;
  virtual std::string compressor() const = 0;
  // The block device whose mm_stat tells the pool's size ("zram1"); "" for zswap.
  virtual std::string device() const { return ""; }
};

// A zram device of our own: a fresh one where the kernel gives it, else an unused zram0. lz4.
class ZramSwap final : public KernelSwap {
 public:
  explicit ZramSwap(uint64_t bytes);
  ~ZramSwap() override;
  std::string compressor() const override { return "lz4"; }
  std::string device() const override { return Name(); }

 private:
  std::string Name() const { return "zram" + std::to_string(number_); }
  std::string Sysfs(const std::string& name) const;
  void Reset();

  int number_ = 0;
  bool added_ = false;
  std::unique_ptr<SwapArea> area_;
};

// A file without holes that is removed with the object. It needs its name: swapon(2) takes no unlinked file,
// and while it is on the kernel lets nobody unlink it.
class ScratchFile {
 public:
  ScratchFile(const std::string& folder, uint64_t bytes);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }

 private:
  std::string path_;
  zp::UniqueFd fd_;
};

// zswap in front of a swap file (or a loop device over it, where the file system cannot swap).
class ZswapSwap final : public KernelSwap {
 public:
  // `folder` is where the file goes: on a disk, not tmpfs.
  ZswapSwap(uint64_t bytes, const std::string& folder);
  ~ZswapSwap() override;
  std::string compressor() const override { return compressor_; }

 private:
  void UseLoopDevice(uint64_t bytes);

  std::string compressor_;
  std::unique_ptr<ScratchFile> file_;
  zp::UniqueFd loop_;
  // Declared in the order of set-up; undone backwards: swap off first, then the parameters.
  std::vector<std::unique_ptr<KnobGuard>> knobs_;
  std::unique_ptr<SwapArea> area_;
};

// kind: "zram" or "zswap". `bytes` is how much it must be able to hold, uncompressed.
std::unique_ptr<KernelSwap> SetUpKernelSwap(const std::string& kind, uint64_t bytes,
                                            const std::string& folder);

}  // namespace uzswap::bench
