// Runs the tests where they can run: exit 77 with the reason where they can't. A test that hangs is ended by
// the watchdog.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "daemon/sys/uapi.h"
#include "daemon/sys/userfaultfd.h"

namespace {

constexpr unsigned kSecondsPerTest = 90;

class Watchdog : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { alarm(kSecondsPerTest); }
  void OnTestEnd(const testing::TestInfo&) override { alarm(0); }
};

const char* WhyNot() {
  if (geteuid() != 0) return "not root: the daemon's part needs CAP_SYS_PTRACE";
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return "cannot open /dev/userfaultfd (CONFIG_USERFAULTFD, Linux 6.1)";
  zp::UniqueFd fd(ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC));
  close(device);
  if (!fd.valid()) return "cannot make a userfaultfd";
  auto uffd = uzswap::Userfaultfd::Adopt(std::move(fd));
  if (!uffd.ok() || !uffd->Handshake().ok())
    return "the kernel lacks features of userfaultfd (Linux 6.8 has them)";
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const char* reason = testing::GTEST_FLAG(list_tests) ? nullptr : WhyNot(); reason != nullptr) {
    printf("skipped: %s\n", reason);
    return 77;
  }
  testing::UnitTest::GetInstance()->listeners().Append(new Watchdog);
  return RUN_ALL_TESTS();
}
