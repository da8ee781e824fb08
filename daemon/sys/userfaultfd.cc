#include "daemon/sys/userfaultfd.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace uzswap {
namespace {

// COPY, ZEROPAGE and POISON answer alike: `done` is the out field, bytes done or -errno.
CopyResult Judge(int ret, int error, int64_t done, uint64_t pages) {
  if (ret == 0) return {CopyOutcome::kCopied, pages, 0};
  // EAGAIN is also the errno of partial progress; the out field tells (4.2).
  if (done > 0) return {CopyOutcome::kPartly, static_cast<uint64_t>(done) / zp::kPageBytes, error};
  switch (error) {
    case EAGAIN:
      return {CopyOutcome::kRetry, 0, error};
    case EEXIST:
      return {CopyOutcome::kAlreadyPresent, 0, error};
    case ENOENT:
    case EINVAL:
      return {CopyOutcome::kNoMapping, 0, error};
    case ESRCH:
      return {CopyOutcome::kTargetGone, 0, error};
    default:
      return {CopyOutcome::kFailed, 0, error};
  }
}

// Asked once, with a context of our own: the handshake spoils it.
bool KernelHasFeatures() {
  static const bool has = [] {
    const auto device = Userfaultfd::OpenDevice();
    const zp::UniqueFd probe(device.ok() ? ioctl(device->get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                                         : -1);
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = Userfaultfd::kWantedFeatures;
    return probe.valid() && ioctl(probe.get(), UFFDIO_API, &api) == 0;
  }();
  return has;
}

}  // namespace

zp::Result<zp::UniqueFd> Userfaultfd::OpenDevice() {
  zp::UniqueFd device(open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device.valid()) return zp::ErrnoError("opening /dev/userfaultfd");
  const zp::UniqueFd probe(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (!probe.valid()) return zp::ErrnoError("making a userfaultfd");
  return device;
}

zp::Result<Userfaultfd> Userfaultfd::Adopt(zp::UniqueFd fd) {
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0) return zp::ErrnoError("fcntl(F_GETFL) of a userfaultfd");
  if (fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return zp::ErrnoError("setting O_NONBLOCK on a userfaultfd");
  if (fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) return zp::ErrnoError("setting FD_CLOEXEC on a userfaultfd");
  return Userfaultfd(std::move(fd));
}

zp::Status Userfaultfd::Handshake() {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kWantedFeatures;
  if (ioctl(fd_.get(), UFFDIO_API, &api) != 0) {
    if (errno == EPERM) return zp::Error{zp::Errc::kPermission, EPERM, "UFFDIO_API with EVENT_FORK"};
    // EINVAL: a feature that the kernel lacks, or a context that was used before (1.3). The kernel was asked
    // already.
    if (errno == EINVAL && KernelHasFeatures())
      return zp::Error{zp::Errc::kInvalid, EINVAL, "UFFDIO_API: used before"};
    if (errno == ENOTTY) return zp::Error{zp::Errc::kInvalid, ENOTTY, "UFFDIO_API: not a userfaultfd"};
    return zp::Error{zp::Errc::kUnsupported, errno, "UFFDIO_API"};
  }
  if ((api.features & kWantedFeatures) != kWantedFeatures) {
    return zp::Error{zp::Errc::kUnsupported, 0, "UFFDIO_API: features missing"};
  }
  return zp::OkStatus();
}

zp::Status Userfaultfd::Register(uint64_t start, uint64_t bytes) const {
  uffdio_register registration{};
  registration.range.start = start;
  registration.range.len = bytes;
  registration.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (ioctl(fd_.get(), UFFDIO_REGISTER, &registration) == 0) return zp::OkStatus();
  if (errno == EINVAL || errno == EBUSY) return zp::Error{zp::Errc::kNotFound, errno, "UFFDIO_REGISTER"};
  if (errno == ENOMEM || errno == ESRCH) return zp::Error{zp::Errc::kNoMemory, errno, "UFFDIO_REGISTER"};
  return zp::ErrnoError("UFFDIO_REGISTER");
}

void Userfaultfd::Unregister(uint64_t start, uint64_t bytes) const {
  uffdio_range range{start, bytes};
  (void)ioctl(fd_.get(), UFFDIO_UNREGISTER, &range);
}

void Userfaultfd::Wake(uint64_t start, uint64_t bytes) const {
  uffdio_range range{start, bytes};
  (void)ioctl(fd_.get(), UFFDIO_WAKE, &range);
}

CopyResult Userfaultfd::Copy(uint64_t address, const void* source, uint64_t pages) const {
  uffdio_copy copy{};
  copy.dst = address;
  copy.src = reinterpret_cast<uint64_t>(source);
  copy.len = pages * zp::kPageBytes;
  const int ret = ioctl(fd_.get(), UFFDIO_COPY, &copy);
  return Judge(ret, errno, copy.copy, pages);
}

CopyResult Userfaultfd::Zero(uint64_t address, uint64_t pages) const {
  uffdio_zeropage zero{};
  zero.range.start = address;
  zero.range.len = pages * zp::kPageBytes;
  const int ret = ioctl(fd_.get(), UFFDIO_ZEROPAGE, &zero);
  return Judge(ret, errno, zero.zeropage, pages);
}

CopyResult Userfaultfd::Poison(uint64_t address) const {
  uffdio_poison poison{};
  poison.range.start = address;
  poison.range.len = zp::kPageBytes;
  const int ret = ioctl(fd_.get(), UFFDIO_POISON, &poison);
  return Judge(ret, errno, poison.updated, 1);
}

bool Userfaultfd::Quiet() const {
  // What is asked for is refused whatever it is, but EAGAIN comes first.
  uffdio_zeropage nothing{};
  return ioctl(fd_.get(), UFFDIO_ZEROPAGE, &nothing) != 0 && errno != EAGAIN;
}

bool Userfaultfd::TargetGone() const {
  // Removing a write protection that nobody set changes nothing, whatever is mapped there.
  uffdio_writeprotect probe{};
  probe.range.start = 0x10000;
  probe.range.len = zp::kPageBytes;
  probe.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  return ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &probe) != 0 && errno == ESRCH;
}

zp::Result<size_t> Userfaultfd::Read(std::span<uffd_msg> messages) const {
  const ssize_t got = read(fd_.get(), messages.data(), messages.size_bytes());
  if (got < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
    return zp::Error{zp::Errc::kNoMemory, errno, "reading a FORK message"};
  return got <= 0 ? size_t{0} : static_cast<size_t>(got) / sizeof(uffd_msg);
}

}  // namespace uzswap
