#include "daemon/keeper/keeper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "daemon/keeper/inherited_descriptors.h"

namespace uzswap {
namespace {

TEST(InheritedDescriptors, AreTakenOnceAndTheRestIsClosed) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  auto inherited = InheritedDescriptors::Find();
  EXPECT_NE(fcntl(ends[0], F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_FALSE(inherited.Take(STDERR_FILENO).valid());
  EXPECT_FALSE(inherited.Take(-1).valid());
  zp::UniqueFd reader = inherited.Take(ends[0]);
  EXPECT_EQ(reader.get(), ends[0]);
  EXPECT_FALSE(inherited.Take(ends[0]).valid());
}

// A daemon is played by a forked process, whose "program" is a shell: it starts a keeper, opens one more
// descriptor, and dies. What its successor finds at that number comes through a pipe.
class KeeperTest : public ::testing::Test {
 protected:
  KeeperTest() {
    EXPECT_EQ(pipe2(said_, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(late_, O_CLOEXEC), 0);
  }
  ~KeeperTest() override {
    for (const int fd : {said_[0], said_[1], late_[0], late_[1]}) {
      if (fd >= 0) close(fd);
    }
  }
  // The line that a successor says, "" after ten seconds without one.
  std::string Said() {
    pollfd one{said_[0], POLLIN, 0};
    char text[256] = {};
    if (poll(&one, 1, 10'000) != 1 || read(said_[0], text, sizeof(text) - 1) <= 0) return "";
    return text;
  }
  int said_[2], late_[2];
};

TEST_F(KeeperTest, SuccessorGetsADescriptorThatWasOpenedLater) {
  ClientTable table = std::move(*ClientTable::Create());
  const pid_t daemon = fork();
  if (daemon == 0) {
    const int out = fcntl(said_[1], F_DUPFD_CLOEXEC, 100);
    // The running program is this test: a plan of its own executes a shell instead.
    Keeper keeper(
        table,
        {"sh", "-c", "echo found >/proc/self/fd/" + std::to_string(out) + "; echo late >/proc/self/fd/200"});
    keeper.UseProgramForTesting("/bin/sh");
    if (!keeper.Start().ok()) _exit(1);
    table.header().armed.store(1);
    // After the keeper was cloned: it is in the shared table all the same.
    if (dup2(late_[1], 200) != 200) _exit(1);
    (void)fcntl(200, F_SETFD, FD_CLOEXEC);
    kill(getpid(), SIGKILL);
  }
  close(late_[1]);
  late_[1] = -1;
  int status = 0;
  ASSERT_EQ(waitpid(daemon, &status, 0), daemon);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(Said(), "found\n");
  pollfd one{late_[0], POLLIN, 0};
  ASSERT_EQ(poll(&one, 1, 10'000), 1);
  char text[16] = {};
  EXPECT_EQ(read(late_[0], text, sizeof(text)), 5);
  EXPECT_STREQ(text, "late\n");
  table.header().armed.store(0);  // the keeper, which would go on with further successors, leaves
}

TEST_F(KeeperTest, NobodyFollowsACleanEnd) {
  ClientTable table = std::move(*ClientTable::Create());
  const pid_t daemon = fork();
  if (daemon == 0) {
    const int out = fcntl(said_[1], F_DUPFD_CLOEXEC, 100);
    Keeper keeper(table, {"sh", "-c", "echo found >/proc/self/fd/" + std::to_string(out)});
    keeper.UseProgramForTesting("/bin/sh");
    _exit(keeper.Start().ok() ? 0 : 1);
  }
  close(said_[1]);
  said_[1] = -1;
  int status = 0;
  ASSERT_EQ(waitpid(daemon, &status, 0), daemon);
  EXPECT_EQ(status, 0);
  // The keeper ends, and with it the last writer of the pipe.
  EXPECT_EQ(Said(), "");
}

}  // namespace
}  // namespace uzswap
