// The ring, which the program can write: whatever stands in it, the daemon's side of it stays within its
// bounds and never waits for ever.
//
// Input: steps {what, a (2), b (4)}: words written as a hostile program would, between the daemon's calls.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/client/agent_channel.h"
#include "libzpool/base/check.h"
#include "libzpool/base/units.h"

namespace uzswap {
namespace {

void Run(const uint8_t* data, size_t size) {
  using namespace std::chrono_literals;
  auto channel = AgentChannel::Create().value();
  int fds[2];
  ZP_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
  channel->SetSocket(std::make_shared<const zp::UniqueFd>(fds[0]));
  const zp::UniqueFd program(fds[1]);
  auto mapping = zp::Mapping::Shared(channel->ring_fd(), 0, wire::kRingBytes).value();
  auto* const words = reinterpret_cast<volatile uint32_t*>(mapping.data());
  std::vector<uint64_t> pages(wire::kRingSlots, 0x1000);
  std::vector<std::byte> page(zp::kPageBytes);
  for (; size >= 7; data += 7, size -= 7) {
    uint16_t a = 0;
    uint32_t b = 0;
    memcpy(&a, data + 1, sizeof(a));
    memcpy(&b, data + 3, sizeof(b));
    switch (data[0] % 12) {
      case 0:
      case 1:  // the header and the results
        words[a % (wire::kDataOffset / sizeof(uint32_t))] = b;
        break;
      case 2:  // a record of a thread
        words[(wire::kDataOffset + uint64_t{a} * 61) / sizeof(uint32_t) %
              (wire::kRingBytes / sizeof(uint32_t))] = b;
        break;
      case 3:
        (void)!write(program.get(), data, std::min<size_t>(a % 64, size));
        break;
      case 4:
        (void)channel->Post(static_cast<wire::Opcode>(b % 7),
                            std::span(pages).first(a % (wire::kRingSlots + 1)), b);
        break;
      case 5:
        (void)channel->Await(0ms);
        break;
      case 6:
        (void)channel->Ready();
        break;
      case 7:
        (void)channel->RevokePending();
        channel->MarkRevoked();
        break;
      case 8: {
        const auto threads = channel->Threads();
        ZP_CHECK(!threads.has_value() || threads->size() <= wire::kMaxThreadRecords,
                 "more threads than the ring holds");
        break;
      }
      case 9:
        if (!channel->TryTakeGate(1us)) channel->SeizeGate();
        channel->ReleaseGate();
        break;
      case 10:
        channel->CopyPage(a % wire::kRingSlots, page.data());
        channel->SetPage(a % wire::kRingSlots, page.data());
        channel->SetCopied(a % wire::kRingSlots);
        ZP_CHECK(channel->result(a % wire::kRingSlots) == wire::kCopied, "a result that was set");
        break;
      default:
        channel->ResetResults();
        channel->PublishEventSeq(b);
    }
  }
}

}  // namespace
}  // namespace uzswap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uzswap::Run(data, size);
  return 0;
}
