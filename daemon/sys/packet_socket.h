// Packets of the control socket, with at most one descriptor each.
//
// Threads: stateless functions; one packet is sent or received whole.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>

#include "daemon/wire/message.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/result.h"

namespace uzswap {

struct Packet {
  size_t bytes = 0;  // 0: the peer closed
  zp::UniqueFd fd;   // surplus descriptors were closed
  bool truncated = false;
};

// kAgain if nothing waits and the socket does not block; kGone if the peer closed or reset.
zp::Status SendPacket(int socket, std::span<const std::byte> packet, int fd = -1);
// Descriptors are taken only where one is expected: closing a hostile one (of a FUSE file) can block for
// ever, while what is not taken is dropped by the kernel without asking its file system.
enum class Descriptors { kAccept, kRefuse };
zp::Result<Packet> ReceivePacket(int socket, std::span<std::byte> buffer, Descriptors descriptors);

template <typename T>
std::span<const std::byte> AsBytes(const T& message) {
  return std::as_bytes(std::span<const T, 1>(&message, 1));
}

inline wire::Header MakeHeader(wire::MessageType type, size_t length) {
  return {wire::kMagic, wire::kVersion, static_cast<uint16_t>(type), static_cast<uint32_t>(length), 0};
}

// Listens on `path`. A socket file that nobody listens on is replaced; kExists if somebody does. Creates the
// parent directory (0755) if it is missing.
zp::Result<zp::UniqueFd> ListenAt(const std::string& path);

}  // namespace uzswap
