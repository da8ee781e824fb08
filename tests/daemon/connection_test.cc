// The attach handshake, fed packet by packet: order, sizes, versions, lies, noise.
#include "daemon/control/connection.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "daemon/control/describe.h"
#include "daemon/sys/packet_socket.h"
#include "tests/daemon/made_daemon.h"

namespace uzswap {
namespace {

using Next = Connection::Next;
using wire::MessageType;

class Handshake : public ::testing::Test {
 protected:
  Handshake() { Open(); }
  ~Handshake() override { Close(); }

  // Every holder of the userfaultfd first: an munmap of what is registered would wait for a reader.
  void Close() {
    connection_.reset();
    uffd_.reset();
    fd_.reset();
    if (staging_ != nullptr) munmap(staging_, wire::kStagingBytes);
    staging_ = nullptr;
  }
  void Open(pid_t pid = getpid()) {
    Close();
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    peer_.reset(fds[1]);
    connection_ = std::make_unique<Connection>(std::make_shared<const zp::UniqueFd>(fds[0]),
                                               PeerCredentials{pid, getuid()}, daemon_.services());
  }
  Next Send(std::span<const std::byte> packet, int fd = -1) {
    EXPECT_TRUE(SendPacket(peer_.get(), packet, fd).ok());
    return connection_->OnReadable();
  }
  template <typename T>
  Next SendMessage(MessageType type, T message, int fd = -1) {
    message.header = MakeHeader(type, sizeof(message));
    return Send(AsBytes(message), fd);
  }
  Next SendBare(MessageType type, int fd = -1) { return SendMessage(type, wire::Bare{}, fd); }
  // The answer's type, 0 if there is none; the descriptor that came with it in `fd_`.
  uint16_t Answer() {
    alignas(8) std::byte buffer[1024];
    auto packet = ReceivePacket(peer_.get(), buffer, Descriptors::kAccept);
    if (!packet.ok() || packet->bytes < sizeof(wire::Header)) return 0;
    fd_ = std::move(packet->fd);
    const auto* header = reinterpret_cast<const wire::Header*>(buffer);
    EXPECT_EQ(header->magic, wire::kMagic);
    EXPECT_EQ(header->length, packet->bytes);
    if (header->type == static_cast<uint16_t>(MessageType::kRefused)) {
      refusal_ = reinterpret_cast<const wire::Refused*>(buffer)->reason;
    }
    return header->type;
  }
  void ExpectRefused(Next next, const char* text) {
    EXPECT_EQ(next, Next::kClose);
    EXPECT_EQ(Answer(), static_cast<uint16_t>(MessageType::kRefused));
    EXPECT_NE(refusal_.find(text), std::string::npos) << refusal_;
    EXPECT_EQ(connection_->reason(), refusal_);
  }

  wire::Hello GoodHello() {
    if (staging_ == nullptr) {
      staging_ =
          mmap(nullptr, wire::kStagingBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    wire::Hello hello{};
    hello.arena_start = 0x10000;
    hello.arena_bytes = 0x10000;
    hello.staging_start = reinterpret_cast<uint64_t>(staging_);
    hello.staging_bytes = wire::kStagingBytes;
    return hello;
  }
  // Through to the state that wants `type`. False: this machine cannot (no device, no right).
  bool ReachContext(const char* codec = "", const char* pool = "") {
    wire::Hello hello = GoodHello();
    (void)std::string(codec).copy(hello.codec, sizeof(hello.codec));
    (void)std::string(pool).copy(hello.pool, sizeof(hello.pool));
    return SendMessage(MessageType::kHello, hello) == Next::kWait &&
           Answer() == uint16_t(MessageType::kDevice);
  }
  zp::UniqueFd NewUffd() {
    return zp::UniqueFd(ioctl(fd_.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  }
  bool ReachReady(bool registered = true, const char* codec = "", const char* pool = "") {
    if (!ReachContext(codec, pool)) return false;
    uffd_ = NewUffd();
    if (!uffd_.valid() || SendBare(MessageType::kContext, uffd_.get()) != Next::kWait) return false;
    if (Answer() != uint16_t(MessageType::kRing)) return false;
    if (registered) {
      uffdio_register request{
          {reinterpret_cast<uint64_t>(staging_), wire::kStagingBytes}, UFFDIO_REGISTER_MODE_WP, 0};
      if (ioctl(uffd_.get(), UFFDIO_REGISTER, &request) != 0) return false;
    }
    return true;
  }

  MadeDaemon daemon_;
  zp::UniqueFd peer_, fd_, uffd_;
  void* staging_ = nullptr;
  std::string refusal_;
  std::unique_ptr<Connection> connection_;
};

#define NEED(condition) \
  if (!(condition)) GTEST_SKIP() << "needs root, /dev/userfaultfd and Linux 6.8: " << refusal_

TEST_F(Handshake, WholeWay) {
  NEED(ReachReady());
  ASSERT_EQ(SendBare(MessageType::kReady), Next::kWait);
  ASSERT_EQ(Answer(), static_cast<uint16_t>(MessageType::kChallenge));
  wire::Proof proof{};
  memcpy(&proof.nonce, staging_, sizeof(proof.nonce));
  ASSERT_EQ(SendMessage(MessageType::kProof, proof), Next::kAttached);
  EXPECT_EQ(Answer(), static_cast<uint16_t>(MessageType::kWelcome));
  ASSERT_NE(connection_->client(), nullptr);
  EXPECT_EQ(connection_->client()->identity().pid, getpid());
  EXPECT_TRUE(connection_->client()->has_agent());
  EXPECT_NE(fcntl(connection_->client()->uffd().fd(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(Handshake, PagesAreKeptAsTheClientAsksOrAsTheDaemonDoes) {
  daemon_.store->set_pool(zp::PoolKind::kZbud);
  struct Row {
    const char *codec, *pool;
    zp::StoreAs as;
  };
  for (const Row& row : {Row{"", "", {zp::CodecId::kLz4, zp::PoolKind::kZbud}},
                         Row{"raw", "", {zp::CodecId::kRaw, zp::PoolKind::kZbud}},
                         Row{"", "zsmalloc", {zp::CodecId::kLz4, zp::PoolKind::kZsmalloc}},
                         Row{"lz4", "zbud", {zp::CodecId::kLz4, zp::PoolKind::kZbud}}}) {
    Open();
    NEED(ReachReady(true, row.codec, row.pool));
    ASSERT_EQ(SendBare(MessageType::kReady), Next::kWait);
    ASSERT_EQ(Answer(), static_cast<uint16_t>(MessageType::kChallenge));
    wire::Proof proof{};
    memcpy(&proof.nonce, staging_, sizeof(proof.nonce));
    ASSERT_EQ(SendMessage(MessageType::kProof, proof), Next::kAttached);
    EXPECT_EQ(connection_->client()->codec(), row.as.codec);
    EXPECT_EQ(connection_->client()->pool(), row.as.pool);
    const auto described = DescribeClient(*connection_->client(), "active");
    EXPECT_EQ(described["codec"], zp::kCodecNames[static_cast<size_t>(row.as.codec)]);
    EXPECT_EQ(described["pool"], zp::kPoolNames[static_cast<size_t>(row.as.pool)]);
  }
}

TEST_F(Handshake, BlockingUserfaultfdIsMadeNonBlocking) {
  NEED(ReachContext());
  const zp::UniqueFd blocking(ioctl(fd_.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC));
  ASSERT_EQ(SendBare(MessageType::kContext, blocking.get()), Next::kWait);
  EXPECT_NE(fcntl(blocking.get(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(Handshake, WrongNonceIsRefused) {
  NEED(ReachReady());
  ASSERT_EQ(SendBare(MessageType::kReady), Next::kWait);
  ASSERT_EQ(Answer(), static_cast<uint16_t>(MessageType::kChallenge));
  wire::Proof proof{};
  memcpy(&proof.nonce, staging_, sizeof(proof.nonce));
  ++proof.nonce;
  ExpectRefused(SendMessage(MessageType::kProof, proof), "proof");
}

TEST_F(Handshake, StagingThatIsNotRegisteredIsRefused) {
  NEED(ReachReady(false));
  ExpectRefused(SendBare(MessageType::kReady), "staging");
}

TEST_F(Handshake, DescriptorsThatAreNoUserfaultfdAreRefused) {
  NEED(ReachContext());
  ExpectRefused(SendBare(MessageType::kContext), "");
  Open();
  NEED(ReachContext());
  const auto file = zp::CreateMemfd("no userfaultfd", 4096);
  ExpectRefused(SendBare(MessageType::kContext, file->get()), "userfaultfd");
  Open();
  NEED(ReachContext());
  const zp::UniqueFd used = NewUffd();
  uffdio_api api{UFFD_API, 0, 0};
  ASSERT_EQ(ioctl(used.get(), UFFDIO_API, &api), 0);
  EXPECT_EQ(SendBare(MessageType::kContext, used.get()), Next::kClose);
}

TEST_F(Handshake, HelloThatCannotBeIsRefused) {
  const auto with = [&](auto change) {
    Open();
    wire::Hello hello = GoodHello();
    change(hello);
    return SendMessage(MessageType::kHello, hello);
  };
  ExpectRefused(with([](wire::Hello& hello) { hello.staging_start += 1; }), "Hello");
  ExpectRefused(with([](wire::Hello& hello) { hello.staging_bytes /= 2; }), "Hello");
  ExpectRefused(with([](wire::Hello& hello) { hello.staging_start = ~uint64_t{4095}; }), "Hello");
  ExpectRefused(with([](wire::Hello& hello) { hello.staging_start = 0; }), "Hello");
  ExpectRefused(with([](wire::Hello& hello) { hello.arena_bytes = ~uint64_t{4095}; }), "Hello");
  ExpectRefused(with([](wire::Hello& hello) { hello.limit_bytes = 4096; }), "4 MiB");
  ExpectRefused(with([](wire::Hello& hello) { memset(hello.codec, 'z', sizeof(hello.codec)); }), "codec");
  ExpectRefused(with([](wire::Hello& hello) { strcpy(hello.pool, "pond"); }), "no pool 'pond'");
  ExpectRefused(with([](wire::Hello& hello) { strcpy(hello.codec, "zip"); }), "no codec 'zip'");
  ExpectRefused(with([](wire::Hello& hello) { memset(hello.pool, 'z', sizeof(hello.pool)); }), "pool");
}

TEST_F(Handshake, HeaderThatIsWrongIsRefused) {
  wire::Hello hello = GoodHello();
  const auto with = [&](auto change) {
    Open();
    hello.header = MakeHeader(MessageType::kHello, sizeof(hello));
    change(hello.header);
    return Send(AsBytes(hello));
  };
  ExpectRefused(with([](wire::Header& header) { header.magic ^= 1; }), "no uzswap client");
  ExpectRefused(with([](wire::Header& header) { header.version = 2; }), "version 2");
  ExpectRefused(with([](wire::Header& header) { header.length += 1; }), "length");
  ExpectRefused(with([](wire::Header& header) { header.length = 0; }), "length");
  Open();
  ExpectRefused(Send(std::as_bytes(std::span("short"))), "shorter");
  Open();
  // A Hello of another size, its header right.
  std::vector<std::byte> longer(sizeof(hello) + 8);
  const wire::Header header = MakeHeader(MessageType::kHello, longer.size());
  memcpy(longer.data(), &header, sizeof(header));
  ExpectRefused(Send(longer), "Hello");
  Open();
  // Longer than any packet.
  std::vector<std::byte> huge(wire::kMaxPacketBytes + 1);
  const wire::Header huge_header = MakeHeader(MessageType::kControlRequest, huge.size());
  memcpy(huge.data(), &huge_header, sizeof(huge_header));
  ExpectRefused(Send(huge), "length");
}

// Every message in every state that can be reached, except the one that is wanted there.
TEST_F(Handshake, MessagesOutOfOrderAreRefused) {
  for (int state = 0; state < 4; ++state) {
    const MessageType wanted[] = {MessageType::kHello, MessageType::kContext, MessageType::kReady,
                                  MessageType::kProof};
    for (uint16_t type = 0; type < 40; ++type) {
      if (type == static_cast<uint16_t>(wanted[state])) continue;
      if (state == 0 && type == static_cast<uint16_t>(MessageType::kControlRequest)) continue;
      Open();
      if (state == 1) NEED(ReachContext());
      if (state >= 2) NEED(ReachReady());
      if (state == 3) {
        ASSERT_EQ(SendBare(MessageType::kReady), Next::kWait);
        ASSERT_EQ(Answer(), static_cast<uint16_t>(MessageType::kChallenge));
      }
      EXPECT_EQ(SendBare(static_cast<MessageType>(type)), Next::kClose)
          << "state " << state << ", type " << type;
      EXPECT_EQ(Answer(), static_cast<uint16_t>(MessageType::kRefused));
    }
  }
}

TEST_F(Handshake, PeerMayGoAtAnyMoment) {
  peer_.reset();
  EXPECT_EQ(connection_->OnReadable(), Next::kClose);
  Open();
  EXPECT_EQ(connection_->OnReadable(), Next::kWait);  // nothing there yet
  NEED(ReachContext());
  peer_.reset();
  EXPECT_EQ(connection_->OnReadable(), Next::kClose);
}

TEST_F(Handshake, ProcessThatCannotBeSeenIsRefused) {
  Open(0);
  ExpectRefused(SendMessage(MessageType::kHello, GoodHello()), "pid namespace");
}

TEST_F(Handshake, ControlRequestIsTakenOnlyFirst) {
  const std::string text = "{\"verb\":\"ping\"}";
  std::vector<std::byte> packet(sizeof(wire::Header) + text.size());
  const wire::Header header = MakeHeader(MessageType::kControlRequest, packet.size());
  memcpy(packet.data(), &header, sizeof(header));
  memcpy(packet.data() + sizeof(header), text.data(), text.size());
  EXPECT_EQ(Send(packet), Next::kRequest);
  EXPECT_EQ(connection_->request(), text);
}

// Noise with a grain of truth: right magic, right lengths, any types, any order, any descriptors.
TEST_F(Handshake, NoiseIsRefusedOrWaitsAndNeverAttaches) {
  const char* fixed = getenv("UZSWAP_TEST_SEED");
  for (unsigned run = 0; run < (fixed == nullptr ? 300u : 1u); ++run) {
    const unsigned seed = fixed == nullptr ? run : static_cast<unsigned>(strtoul(fixed, nullptr, 10));
    SCOPED_TRACE("replay: UZSWAP_TEST_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    Open();
    for (int step = 0; step < 8; ++step) {
      std::vector<std::byte> packet(random() % 300 + 1);
      for (std::byte& byte : packet) byte = static_cast<std::byte>(random());
      wire::Header header = MakeHeader(static_cast<MessageType>(random() % 14), packet.size());
      if (random() % 16 == 0) header.length = random();
      if (random() % 16 == 0) header.version = static_cast<uint16_t>(random());
      if (packet.size() >= sizeof(header)) memcpy(packet.data(), &header, sizeof(header));
      if (random() % 3 == 0) {
        wire::Hello hello = GoodHello();
        hello.header = MakeHeader(MessageType::kHello, sizeof(hello));
        packet.assign(reinterpret_cast<std::byte*>(&hello), reinterpret_cast<std::byte*>(&hello + 1));
        for (unsigned n = random() % 3; n > 0; --n)
          packet[random() % packet.size()] = static_cast<std::byte>(random());
      }
      if (!SendPacket(peer_.get(), packet, random() % 4 == 0 ? 0 : -1).ok()) break;
      const Next next = connection_->OnReadable();
      ASSERT_NE(next, Next::kAttached);
      if (next != Next::kWait) break;
    }
  }
}

}  // namespace
}  // namespace uzswap
