#include "tools/uzswap/kernel_checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>

#include "daemon/sys/process_memory.h"
#include "daemon/sys/uapi.h"
#include "daemon/sys/userfaultfd.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/units.h"

namespace uzswap::cli {
namespace {

constexpr char kNewKernel[] =
    "boot a kernel of version 6.8 or newer (Debian 12: linux-image-amd64 from bookworm-backports)";
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

struct FeatureName {
  uint64_t bit;
  const char* name;
};
constexpr FeatureName kFeatureNames[] = {
    {UFFD_FEATURE_EVENT_FORK, "EVENT_FORK"},
    {UFFD_FEATURE_EVENT_REMAP, "EVENT_REMAP"},
    {UFFD_FEATURE_EVENT_REMOVE, "EVENT_REMOVE"},
    {UFFD_FEATURE_EVENT_UNMAP, "EVENT_UNMAP"},
    {UFFD_FEATURE_THREAD_ID, "THREAD_ID"},
    {UFFD_FEATURE_POISON, "POISON"},
    {UFFD_FEATURE_MOVE, "MOVE"},
};

// A fresh userfaultfd, from the device if it may be opened, else one that needs no right. Invalid, and errno,
// if neither is to be had.
zp::UniqueFd NewUserfaultfd() {
  if (const auto device = Userfaultfd::OpenDevice(); device.ok()) {
    zp::UniqueFd fd(ioctl(device->get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    if (fd.valid()) return fd;
  }
  return zp::UniqueFd(
      static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
}

bool KernelHasDevice() {
  std::ifstream misc("/proc/misc");
  for (std::string line; std::getline(misc, line);) {
    if (line.ends_with(" userfaultfd")) return true;
  }
  return false;
}

Check CheckDevice(bool* openable) {
  Check check{.name = Userfaultfd::kDevice};
  const auto device = Userfaultfd::OpenDevice();
  *openable = device.ok();
  if (device.ok()) {
    check.detail = "there, and may be opened";
    return check;
  }
  check.status = CheckStatus::kMissing;
  const int error = device.error().sys_errno;
  if (error == ENOENT) {
    if (KernelHasDevice()) {
      check.detail = "the kernel has it, but there is no such file here";
      check.fix =
          "in a container: pass it in (docker run --device /dev/userfaultfd …); else: udevadm trigger";
    } else {
      check.detail = "this kernel does not offer it";
      check.fix = fmt::format("{} with CONFIG_USERFAULTFD=y", kNewKernel);
    }
  } else if (error == ENOTTY) {
    check.detail = "another file stands in its place";
    check.fix = "remove it, then: udevadm trigger; in a container: docker run --device /dev/userfaultfd …";
  } else if (error == EPERM) {
    check.detail = "there, but a device policy forbids to open it";
    check.fix =
        "in a container: docker run --device /dev/userfaultfd …; in a systemd unit: "
        "DeviceAllow=/dev/userfaultfd rw";
  } else {
    check.detail =
        fmt::format("there, but you (uid {}) may not open it: {}", geteuid(), std::strerror(error));
    check.fix =
        "run as root (sudo uzswap run …), or have root start the daemon for all (systemctl start uzswapd), "
        "or give a "
        "group access: echo 'KERNEL==\"userfaultfd\", GROUP=\"uzswap\", MODE=\"0660\"' > "
        "/etc/udev/rules.d/60-uzswap.rules; udevadm trigger";
  }
  return check;
}

Check CheckForkEvents() {
  Check check{.name = "fork events", .detail = "permitted (CAP_SYS_PTRACE)"};
  auto context = Userfaultfd::Adopt(NewUserfaultfd());
  if (!context.ok()) {
    check.status = CheckStatus::kMissing;
    check.detail = "not tried: no userfaultfd could be made";
    check.fix = "see /dev/userfaultfd";
    return check;
  }
  const zp::Status handshake = context.value().Handshake();
  if (handshake.ok()) return check;
  check.status = CheckStatus::kMissing;
  if (handshake.error().code == zp::Errc::kPermission) {
    check.detail = "not permitted: the daemon would not learn of fork(), and children would lose memory";
    check.fix =
        "give the daemon CAP_SYS_PTRACE in the machine's own user namespace: run it as root, or docker run "
        "--cap-add "
        "SYS_PTRACE …; a rootless container cannot have it";
  } else {
    check.detail = "the kernel refused the handshake";
    check.fix = kNewKernel;
  }
  return check;
}

Check CheckVersion(bool move_works) {
  utsname name;
  Check check{.name = "kernel"};
  unsigned major = 0, minor = 0;
  if (uname(&name) != 0 || std::sscanf(name.release, "%u.%u", &major, &minor) != 2) {
    check.status = CheckStatus::kNote;
    check.detail = "its version cannot be read";
    return check;
  }
  check.detail = name.release;
  if (major > 6 || (major == 6 && minor >= 8)) return check;
  check.detail += ", older than 6.8";
  if (move_works) {
    check.status = CheckStatus::kNote;
    check.detail += ", but it can UFFDIO_MOVE";
  } else {
    check.status = CheckStatus::kMissing;
    check.fix = kNewKernel;
  }
  return check;
}

Check CheckFeatures() {
  Check check{.name = "userfaultfd", .detail = "all features there"};
  const zp::UniqueFd fd = NewUserfaultfd();
  uffdio_api api = {};
  api.api = UFFD_API;
  if (!fd.valid() || ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    const int error = errno;
    check.status = CheckStatus::kMissing;
    check.detail = fmt::format("none can be made here: {}", std::strerror(error));
    check.fix = error == ENOSYS ? fmt::format("{} with CONFIG_USERFAULTFD=y", kNewKernel)
                                : "a seccomp filter may forbid it: docker run --security-opt seccomp=… with "
                                  "userfaultfd and ioctl allowed";
    return check;
  }
  std::string missing;
  for (const FeatureName& f : kFeatureNames) {
    if ((Userfaultfd::kWantedFeatures & f.bit) != 0 && (api.features & f.bit) == 0) {
      missing += (missing.empty() ? "" : ", ") + std::string(f.name);
    }
  }
  if (!missing.empty()) {
    check.status = CheckStatus::kMissing;
    check.detail = "features missing: " + missing;
    check.fix = kNewKernel;
  }
  return check;
}

// What the agent does all day: move a page of its own into a registered place, and find its content there.
Check CheckMove() {
  Check check{.name = "UFFDIO_MOVE", .status = CheckStatus::kMissing, .detail = "", .fix = ""};
  const zp::UniqueFd fd = NewUserfaultfd();
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MOVE;
  if (!fd.valid() || ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    check.detail = "not tried: no userfaultfd with MOVE can be made";
    check.fix = kNewKernel;
    return check;
  }
  constexpr size_t kBytes = zp::kPageBytes;
  constexpr unsigned char kByte = 0x5a;
  const auto map = [] {
    return mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  void* from = map();
  void* to = map();
  if (from == MAP_FAILED || to == MAP_FAILED) {
    check.detail = "not tried: no memory";
  } else {
    std::memset(from, kByte, kBytes);
    uffdio_register staging = {};
    staging.range = {reinterpret_cast<uint64_t>(to), kBytes};
    staging.mode = UFFDIO_REGISTER_MODE_MISSING;
    uffdio_move move = {};
    move.dst = reinterpret_cast<uint64_t>(to);
    move.src = reinterpret_cast<uint64_t>(from);
    move.len = kBytes;
    if (ioctl(fd.get(), UFFDIO_REGISTER, &staging) != 0) {
      check.detail = fmt::format("not tried: UFFDIO_REGISTER says {}", std::strerror(errno));
    } else if (ioctl(fd.get(), UFFDIO_MOVE, &move) != 0) {
      check.detail = fmt::format("tried, and refused: {}", std::strerror(errno));
    } else if (static_cast<unsigned char*>(to)[kBytes - 1] != kByte) {
      check.detail = "tried, and the content was lost";
    } else {
      check.status = CheckStatus::kOk;
      check.detail = "tried: works";
    }
  }
  for (void* mapping : {from, to}) {
    if (mapping != MAP_FAILED) munmap(mapping, kBytes);
  }
  if (check.status != CheckStatus::kOk) {
    check.fix = fmt::format("{}; in a sandbox: its seccomp filter must allow ioctl", kNewKernel);
  }
  return check;
}

Check CheckPagemapScan() {
  Check check{.name = "PAGEMAP_SCAN", .detail = "tried: works"};
  auto memory = ProcessMemory::Open(getpid());
  std::vector<page_region> runs;
  const auto here = reinterpret_cast<uint64_t>(&runs) & ~(zp::kPageBytes - 1);
  zp::Error error;
  if (memory.ok()) {
    const auto end = memory.value().ScanPresent(here, here + zp::kPageBytes, 1, &runs);
    if (end.ok() && !runs.empty()) return check;
    error =
        end.ok() ? zp::Error{zp::Errc::kUnsupported, 0, "the scan did not see a present page"} : end.error();
  } else {
    error = memory.error();
  }
  check.status = CheckStatus::kMissing;
  check.detail =
      fmt::format("{}: {}", error.op, error.sys_errno != 0 ? std::strerror(error.sys_errno) : "failed");
  check.fix = error.code == zp::Errc::kPermission
                  ? "mount /proc without restrictions (hidepid, ProcSubset=pid)"
                  : fmt::format("{} with CONFIG_PROC_PAGE_MONITOR=y", kNewKernel);
  return check;
}

Check CheckMemfd() {
  Check check{.name = "memfd", .detail = "works"};
  auto file = zp::CreateMemfd("uzswap-doctor", zp::kPageBytes);
  if (file.ok()) return check;
  check.status = CheckStatus::kMissing;
  check.detail = fmt::format("memfd_create: {}", std::strerror(file.error().sys_errno));
  check.fix = "a kernel with CONFIG_MEMFD_CREATE=y, and no seccomp filter against it";
  return check;
}

// In a child, since the descriptor table that it empties is gone for good.
Check CheckPrivateDescriptors() {
  Check check{.name = "close_range", .detail = "works (a private descriptor table for the agent)"};
  const pid_t child = fork();
  if (child == 0) _exit(close_range(0, ~0u, CLOSE_RANGE_UNSHARE) == 0 ? 0 : errno & 0xff);
  int status = 0;
  if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return check;
  check.status = CheckStatus::kMissing;
  check.detail = fmt::format("close_range(CLOSE_RANGE_UNSHARE): {}",
                             child > 0 && WIFEXITED(status) ? std::strerror(WEXITSTATUS(status)) : "failed");
  check.fix = "a sandbox whose seccomp filter allows close_range (docker 20.10.10 or newer does)";
  return check;
}

}  // namespace

std::vector<Check> CheckDaemonRights() {
  bool openable = false;
  std::vector<Check> checks = {CheckDevice(&openable)};
  // Without the device there is at best a userfaultfd for user-mode faults, which the daemon does not use.
  if (openable) checks.push_back(CheckForkEvents());
  return checks;
}

std::vector<Check> CheckKernel() {
  const Check move = CheckMove();
  return {CheckVersion(move.status == CheckStatus::kOk),
          CheckFeatures(),
          move,
          CheckPagemapScan(),
          CheckMemfd(),
          CheckPrivateDescriptors()};
}

}  // namespace uzswap::cli
