// The control socket's messages: between agent and daemon (attach), and between CLI and daemon (control).
//
// Idea: one SOCK_SEQPACKET socket serves both. Every packet begins with a Header; the first packet of a
// connection decides what the peer is. Layouts are fixed, little-endian, versioned; a packet whose size,
// magic or version is off ends the connection with a Refused that says why.
//
// Attach (design: one round each, daemon never blocks on a peer):
//
//   agent                                   daemon
//   Hello {limits, own ranges}        ->
//                                     <-    Device  + fd of /dev/userfaultfd
//   Context + fd (USERFAULTFD_IOC_NEW) ->         UFFDIO_API, forces O_NONBLOCK
//                                     <-    Ring    + fd of the ring's memfd
//   Ready {mapped, staging registered} ->         UFFDIO_COPY of a page with a nonce into staging
//                                     <-    Challenge
//   Proof {nonce read from staging}   ->         compares, and reads /proc/PID/mem at the same place
//                                     <-    Welcome {client id}
//   … then Doorbell (daemon) and Report (agent) for each command in the ring.
//
// Control: ControlRequest carries a JSON text; ControlReply carries a status and, as an attached memfd, the
// JSON text of the answer (a reply of any size never blocks the daemon on a slow reader).
//
// Threads: plain data. Freestanding: the agent has no runtime library; nothing here may need one.
#pragma once

#include <stdint.h>

namespace uzswap::wire {

inline constexpr uint32_t kMagic = 0x50415a55;  // "UZAP"
inline constexpr uint16_t kVersion = 1;
inline constexpr char kDefaultSocketPath[] = "/run/uzswap/uzswapd.sock";
inline constexpr char kAgentThreadName[] = "uzswap-agent";
inline constexpr uint32_t kMaxPacketBytes = 64 * 1024;
// The smallest resident limit: below it a process has little but its code and stacks.
inline constexpr uint64_t kMinLimitBytes = uint64_t{4} << 20;

enum class MessageType : uint16_t {
  kHello = 1,
  kDevice = 2,
  kContext = 3,
  kRing = 4,
  kReady = 5,
  kChallenge = 6,
  kProof = 7,
  kWelcome = 8,
  kRefused = 9,
  kDoorbell = 10,
  kReport = 11,
  kControlRequest = 32,
  kControlReply = 33,
};

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t type;    // MessageType
  uint32_t length;  // of the whole packet in bytes, this header included
  uint32_t reserved;
};
static_assert(sizeof(Header) == 16);

// What the agent says of itself. Ranges are the agent's own memory, which the daemon never manages.
struct Hello {
  Header header;
  uint64_t limit_bytes;  // resident limit; 0: none asked for
  uint64_t arena_start, arena_bytes;
  uint64_t staging_start, staging_bytes;
  uint64_t notes_start;  // of kNotesBytes (notes.h); 0: there are none
  char codec[16];        // "" (daemon's default), "lz4", "raw"; NUL-terminated
  char pool[16];         // "" (daemon's default), "zsmalloc", "zbud"; NUL-terminated
};
static_assert(sizeof(Hello) == 16 + 6 * 8 + 32);

struct Bare {  // Device, Context, Ready, Challenge, Doorbell, Report
  Header header;
};

struct RingOffer {
  Header header;
  uint64_t ring_bytes;
  uint32_t slots;
  uint32_t reserved;
};

struct Proof {
  Header header;
  uint64_t nonce;
};

struct Welcome {
  Header header;
  uint32_t client_id;
  uint32_t reserved;
};

struct Refused {
  Header header;
  char reason[240];  // one line for a person, NUL-terminated, says the fix
};

struct ControlReply {
  Header header;
  int32_t status;  // 0, or an errno value; the memfd's JSON has {"error": "..."} then
  uint32_t reserved;
};

}  // namespace uzswap::wire
