#include "daemon/sys/packet_socket.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <iterator>

namespace uzswap {
namespace {

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    a.reset(fds[0]);
    b.reset(fds[1]);
  }
  zp::UniqueFd a, b;
};

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

std::span<const std::byte> Bytes(const char* text) { return std::as_bytes(std::span(text, strlen(text))); }

TEST(PacketSocket, CarriesOnePacketAndOneDescriptor) {
  Pair pair;
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const zp::UniqueFd in(pipe_ends[0]);
  zp::UniqueFd out(pipe_ends[1]);
  ASSERT_TRUE(SendPacket(pair.a.get(), Bytes("hello"), out.get()).ok());
  std::byte buffer[64];
  auto packet = ReceivePacket(pair.b.get(), buffer, Descriptors::kAccept);
  ASSERT_TRUE(packet.ok());
  EXPECT_EQ(packet->bytes, 5u);
  EXPECT_FALSE(packet->truncated);
  ASSERT_TRUE(packet->fd.valid());
  EXPECT_NE(fcntl(packet->fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  ASSERT_EQ(write(packet->fd.get(), "x", 1), 1);
  char got = 0;
  EXPECT_EQ(read(in.get(), &got, 1), 1);
}

TEST(PacketSocket, SurplusDescriptorsAreClosed) {
  const size_t before = OpenDescriptors();
  {
    Pair pair;
    alignas(cmsghdr) char control[CMSG_SPACE(5 * sizeof(int))] = {};
    char text[] = "x";
    iovec io{text, 1};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(5 * sizeof(int));
    const int fds[5] = {0, 1, 2, 0, 1};
    memcpy(CMSG_DATA(head), fds, sizeof(fds));
    ASSERT_EQ(sendmsg(pair.a.get(), &message, 0), 1);
    ASSERT_EQ(sendmsg(pair.a.get(), &message, 0), 1);
    std::byte buffer[8];
    {
      auto accepted = ReceivePacket(pair.b.get(), buffer, Descriptors::kAccept);
      ASSERT_TRUE(accepted.ok());
    }
    EXPECT_EQ(OpenDescriptors(), before + 2);
    auto refused = ReceivePacket(pair.b.get(), buffer, Descriptors::kRefuse);
    EXPECT_EQ(OpenDescriptors(), before + 2);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(PacketSocket, TooLongPacketIsMarked) {
  Pair pair;
  ASSERT_TRUE(SendPacket(pair.a.get(), Bytes("0123456789")).ok());
  std::byte buffer[4];
  auto packet = ReceivePacket(pair.b.get(), buffer, Descriptors::kRefuse);
  ASSERT_TRUE(packet.ok());
  EXPECT_TRUE(packet->truncated);
}

TEST(PacketSocket, NothingThereAndNobodyThere) {
  Pair pair;
  std::byte buffer[16];
  auto nothing = ReceivePacket(pair.b.get(), buffer, Descriptors::kRefuse);
  ASSERT_FALSE(nothing.ok());
  EXPECT_EQ(nothing.error().code, zp::Errc::kAgain);
  pair.a.reset();
  auto closed = ReceivePacket(pair.b.get(), buffer, Descriptors::kRefuse);
  ASSERT_TRUE(closed.ok());
  EXPECT_EQ(closed->bytes, 0u);
  const auto sent = SendPacket(pair.b.get(), Bytes("x"));
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code, zp::Errc::kGone);
}

TEST(PacketSocket, PeerThatDoesNotReadNeverBlocksUs) {
  Pair pair;
  zp::Status sent;
  for (int i = 0; i < 100'000 && sent.ok(); ++i) sent = SendPacket(pair.a.get(), Bytes("filling"));
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code, zp::Errc::kAgain);
}

class Listening : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/uzswap-daemon-XXXXXX";
    directory_ = mkdtemp(name);
    path_ = directory_ + "/deeper/socket";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  static bool CanConnect(const std::string& path) {
    const zp::UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    return connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  std::string directory_, path_;
};

TEST_F(Listening, MakesItsDirectoryAndLetsAnybodyConnect) {
  auto listener = ListenAt(path_);
  ASSERT_TRUE(listener.ok());
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0666u);
  EXPECT_TRUE(CanConnect(path_));
}

TEST_F(Listening, StaleSocketIsReplaced) {
  {
    auto first = ListenAt(path_);
    ASSERT_TRUE(first.ok());
  }
  EXPECT_FALSE(CanConnect(path_));
  auto second = ListenAt(path_);
  ASSERT_TRUE(second.ok());
  EXPECT_TRUE(CanConnect(path_));
}

TEST_F(Listening, SocketThatIsListenedOnIsLeftAlone) {
  auto first = ListenAt(path_);
  ASSERT_TRUE(first.ok());
  auto second = ListenAt(path_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, zp::Errc::kExists);
  EXPECT_TRUE(CanConnect(path_));
}

TEST_F(Listening, OtherFilesAreLeftAlone) {
  std::filesystem::create_directories(directory_ + "/deeper");
  const zp::UniqueFd file(open(path_.c_str(), O_CREAT | O_WRONLY, 0600));
  auto listener = ListenAt(path_);
  ASSERT_FALSE(listener.ok());
  EXPECT_EQ(listener.error().code, zp::Errc::kExists);
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(Listening, ImpossiblePathsAreErrors) {
  EXPECT_EQ(ListenAt("").error().code, zp::Errc::kInvalid);
  EXPECT_EQ(ListenAt(directory_ + "/" + std::string(200, 'x')).error().code, zp::Errc::kInvalid);
  EXPECT_FALSE(ListenAt("/proc/nowhere/socket").ok());
}

}  // namespace
}  // namespace uzswap
