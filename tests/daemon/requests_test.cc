#include "daemon/control/requests.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <numeric>
#include <random>
#include <vector>

#include "daemon/sys/packet_socket.h"
#include "tests/daemon/made_daemon.h"

namespace uzswap {
namespace {

using nlohmann::json;

class Requests : public ::testing::Test {
 protected:
  Reply Ask(const std::string& text, uid_t uid = 0) {
    return HandleRequest(text, {registry_, *daemon_.store, *daemon_.index_arena, pool_keeper_, *daemon_.table,
                                options_, 1.5, Restarts{3, 0.5}, uid});
  }
  void ExpectFailure(const std::string& text, int status) {
    const Reply reply = Ask(text);
    EXPECT_EQ(reply.status, status) << text;
    const json answer = json::parse(reply.json, nullptr, false);
    ASSERT_FALSE(answer.is_discarded()) << text;
    EXPECT_TRUE(answer.contains("error") && answer["error"].is_string()) << text;
    EXPECT_FALSE(reply.later) << text;
  }
  MadeDaemon daemon_;
  ClientRegistry registry_;
  PoolKeeper pool_keeper_{*daemon_.store};
  Options options_;
};

TEST_F(Requests, UpgradeAsksTheOtherProgramFirst) {
  ExpectFailure("{\"verb\":\"upgrade\"}", EINVAL);
  const auto upgrade = [&](const std::string& program) {
    const Reply reply = Ask("{\"verb\":\"upgrade\",\"program\":\"" + program + "\"}");
    EXPECT_TRUE(reply.hand_over);
    return reply.later ? reply.later() : json();
  };
  for (const char* program : {"", "relative/uzswapd", "/nonexistent/uzswapd", "/bin/false"}) {
    EXPECT_TRUE(upgrade(program).contains("error")) << program;
    EXPECT_STREQ(daemon_.table->header().successor, "") << program;
  }
  // Whoever is asked and says yes is named.
  EXPECT_EQ(upgrade("/bin/true")["restarts"], 1);
  EXPECT_STREQ(daemon_.table->header().successor, "/bin/true");
  EXPECT_EQ(Ask("{\"verb\":\"upgrade\",\"program\":\"/bin/true\"}", getuid() + 1).status, EPERM);
}

TEST_F(Requests, NodesAreListedDrainedAndOpened) {
  const auto ask = [&](const std::string& rest) { return Ask("{\"verb\":\"node\"," + rest + "}"); };
  auto scratch = std::make_unique<zp::Scratch>();
  std::array<std::byte, zp::kPageBytes> page;
  std::vector<zp::Slot> slots;
  for (int i = 0; i < 100; ++i) {
    std::iota(reinterpret_cast<uint8_t*>(page.data()), reinterpret_cast<uint8_t*>(page.data()) + 2000,
              uint8_t(i));
    slots.push_back(daemon_.store->Store(page, {1, zp::PageIndex(1)}, zp::NodeId(2), *scratch).value());
  }
  Reply reply = ask("\"action\":\"list\"");
  ASSERT_EQ(reply.status, 0);
  json answer = json::parse(reply.json);
  ASSERT_EQ(answer["nodes"].size(), 2u);
  EXPECT_EQ(answer["nodes"][1]["node"], 2);
  EXPECT_EQ(answer["nodes"][1]["objects"], 100);
  EXPECT_EQ(answer["nodes"][1]["accepts"], true);

  reply = ask("\"action\":\"drain\",\"node\":2");
  ASSERT_TRUE(reply.later);
  answer = reply.later();
  EXPECT_EQ(answer["left_bytes"], 0);
  EXPECT_GT(answer["moved_bytes"], 0);
  EXPECT_EQ(json::parse(ask("\"action\":\"list\"").json)["nodes"][0]["objects"], 100);
  // The last one that is open stays.
  EXPECT_EQ(ask("\"action\":\"drain\",\"node\":0").status, EINVAL);
  EXPECT_EQ(ask("\"action\":\"open\",\"node\":2").status, 0);
  EXPECT_EQ(json::parse(ask("\"action\":\"list\"").json)["nodes"][1]["accepts"], true);
  EXPECT_EQ(ask("\"action\":\"balance\"").later()["moved_bytes"], 0);

  for (const char* wrong : {"\"action\":\"drain\"", "\"action\":\"drain\",\"node\":1",
                            "\"action\":\"drain\",\"node\":-1", "\"action\":\"drain\",\"node\":\"0\"",
                            "\"action\":\"open\",\"node\":64", "\"action\":7", "\"node\":0"}) {
    EXPECT_EQ(ask(wrong).status, EINVAL) << wrong;
  }
  EXPECT_EQ(Ask("{\"verb\":\"node\",\"action\":\"drain\",\"node\":2}", 1000).status, EPERM);
  EXPECT_EQ(Ask("{\"verb\":\"node\",\"action\":\"list\"}", 1000).status, 0);
  for (const zp::Slot slot : slots) daemon_.store->Release(slot);
}

TEST_F(Requests, MalformedOnesAreRefusedWithAText) {
  for (const char* text :
       {"", "{", "[]", "null", "7", "\"ping\"", "{}", "{\"verb\":7}", "{\"verb\":null}",
        "{\"verb\":[\"ping\"]}", "{\"verb\":\"ping\"", "\xff\xfe", "{\"verb\":\"ping\"} trailing"}) {
    ExpectFailure(text, EINVAL);
  }
  ExpectFailure("{\"verb\":\"explode\"}", EOPNOTSUPP);
  ExpectFailure(std::string(60'000, '['), EINVAL);
}

TEST_F(Requests, VerbsThatNeedAProcessSaySo) {
  for (const char* verb : {"limit", "restore", "reclaim"}) {
    const std::string begin = std::string("{\"verb\":\"") + verb + "\"";
    ExpectFailure(begin + "}", EINVAL);
    ExpectFailure(begin + ",\"pid\":\"1\"}", EINVAL);
    ExpectFailure(begin + ",\"pid\":-1}", EINVAL);
    ExpectFailure(begin + ",\"pid\":1.5}", EINVAL);
    ExpectFailure(begin + ",\"pid\":0}", ESRCH);
    ExpectFailure(begin + ",\"pid\":1}", ESRCH);
    ExpectFailure(begin + ",\"pid\":18446744073709551615}", ESRCH);
  }
}

TEST_F(Requests, PingAndStat) {
  Reply reply = Ask("{\"verb\":\"ping\"}");
  EXPECT_EQ(reply.status, 0);
  json answer = json::parse(reply.json);
  EXPECT_EQ(answer["schema"], "uzswap.ping/1");
  EXPECT_EQ(answer["pid"], getpid());
  ExpectFailure("{\"verb\":\"stat\",\"pid\":\"x\"}", EINVAL);
  for (const char* text :
       {"{\"verb\":\"stat\"}", "{\"verb\":\"stat\",\"pid\":1}", "{\"verb\":\"stat\",\"include_gone\":true}",
        "{\"verb\":\"stat\",\"include_gone\":7}"}) {
    reply = Ask(text, 1000);
    ASSERT_EQ(reply.status, 0) << text;
    answer = json::parse(reply.json);
    EXPECT_EQ(answer["schema"], "uzswap.stat/1");
    EXPECT_TRUE(answer["clients"].is_array() && answer["clients"].empty());
    EXPECT_EQ(answer["totals"]["clients"], 0);
    EXPECT_EQ(answer["totals"]["pool_limit_bytes"], uint64_t{16} << 20);
  }
}

TEST_F(Requests, NoiseNeverDoesMoreThanFail) {
  const std::string seeds[] = {"{\"verb\":\"stat\",\"pid\":1,\"include_gone\":true}",
                               "{\"verb\":\"limit\",\"pid\":1,\"limit_bytes\":0}"};
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    std::string text = seeds[random() % 2];
    for (unsigned n = random() % 6; n > 0; --n) {
      switch (random() % 3) {
        case 0:
          text[random() % text.size()] = static_cast<char>(random());
          break;
        case 1:
          text.erase(random() % text.size(), 1);
          break;
        default:
          text.insert(random() % text.size(), 1, static_cast<char>(random()));
      }
    }
    const Reply reply = Ask(text);
    EXPECT_FALSE(json::parse(reply.json, nullptr, false).is_discarded());
  }
}

TEST_F(Requests, ReplyTravelsAsAMemfd) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  const zp::UniqueFd ours(fds[0]);
  const zp::UniqueFd theirs(fds[1]);
  Reply sent;
  sent.status = EPERM;
  sent.json = "{\"error\":\"" + std::string(200'000, 'x') + "\"}";
  SendReply(ours.get(), sent);
  std::byte buffer[256];
  auto packet = ReceivePacket(theirs.get(), buffer, Descriptors::kAccept);
  ASSERT_TRUE(packet.ok());
  ASSERT_EQ(packet->bytes, sizeof(wire::ControlReply));
  EXPECT_EQ(reinterpret_cast<const wire::ControlReply*>(buffer)->status, EPERM);
  ASSERT_TRUE(packet->fd.valid());
  std::string body(sent.json.size() + 1, '\0');
  EXPECT_EQ(pread(packet->fd.get(), body.data(), body.size(), 0), static_cast<ssize_t>(sent.json.size()));
  body.resize(sent.json.size());
  EXPECT_EQ(body, sent.json);
}

}  // namespace
}  // namespace uzswap
