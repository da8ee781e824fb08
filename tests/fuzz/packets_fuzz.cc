// The handshake of an agent, and whoever pretends to be one: any packets in any order cost a connection,
// nothing else.
//
// Input: packets, each {what descriptor it carries, whether its header is made right, its type, its length},
// then its bytes.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/control/connection.h"
#include "libzpool/base/check.h"
#include "tests/daemon/made_daemon.h"

namespace uzswap {
namespace {

zp::UniqueFd Descriptor(uint8_t kind) {
  switch (kind % 5) {
    case 1:
      return zp::UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC));
    case 2:
      return zp::UniqueFd(memfd_create("fuzz", MFD_CLOEXEC));
    case 3: {
      const zp::UniqueFd device(open(Userfaultfd::kDevice, O_RDWR | O_CLOEXEC));
      return zp::UniqueFd(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    }
    case 4:
      return zp::UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    default:
      return {};
  }
}

void Run(const uint8_t* data, size_t size) {
  static auto* const daemon = new MadeDaemon;
  int fds[2];
  ZP_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
  const zp::UniqueFd peer(fds[1]);
  Connection connection(std::make_shared<const zp::UniqueFd>(fds[0]), {getpid(), getuid()},
                        daemon->services());
  while (size >= 4) {
    const uint8_t kind = data[0];
    const bool is_made_right = data[1] % 2 == 0;
    std::vector<std::byte> packet(
        std::min<size_t>(size_t{data[3]} + (is_made_right ? sizeof(wire::Header) : 0), 300));
    const uint8_t type = data[2];
    data += 4;
    size -= 4;
    const size_t head = is_made_right ? sizeof(wire::Header) : 0;
    const size_t bytes = std::min(packet.size() - head, size);
    if (is_made_right) {
      const wire::Header header{wire::kMagic, wire::kVersion, type, static_cast<uint32_t>(packet.size()), 0};
      memcpy(packet.data(), &header, sizeof(header));
    }
    if (bytes > 0) memcpy(packet.data() + head, data, bytes);
    data += bytes;
    size -= bytes;
    const zp::UniqueFd carried = Descriptor(kind);
    if (packet.empty() || !SendPacket(peer.get(), packet, carried.get()).ok()) continue;
    const Connection::Next next = connection.OnReadable();
    ZP_CHECK(next != Connection::Next::kAttached, "attached without an agent");
    if (next == Connection::Next::kClose) {
      ZP_CHECK(!connection.reason().empty(), "closed without a reason");
      return;
    }
    std::byte answer[512];
    while (recv(peer.get(), answer, sizeof(answer), MSG_DONTWAIT) > 0) {
    }
  }
}

}  // namespace
}  // namespace uzswap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uzswap::Run(data, size);
  return 0;
}
