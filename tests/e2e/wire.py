"""The socket's protocol in Python, as far as tests speak it: control requests, and the agent's part of the handshake.

Layouts are those of daemon/wire/message.h; a change there shows here as a refused packet.
"""
import array
import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct

MAGIC, VERSION, MAX_PACKET = 0x50415A55, 1, 64 * 1024
(HELLO, DEVICE, CONTEXT, RING, READY, CHALLENGE, PROOF, WELCOME, REFUSED, DOORBELL, REPORT) = range(1, 12)
CONTROL_REQUEST, CONTROL_REPLY = 32, 33
HEADER = struct.Struct("<IHHII")
REFUSED_BYTES = 240  # of the reason
STAGING_BYTES = 512 * 4096

USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_REGISTER_MODE_WP = 2


class Closed(Exception):
    """The peer closed the connection."""


class Refused(Exception):
    """The daemon refused, and said why."""


def packet(kind, body=b"", *, magic=MAGIC, version=VERSION, length=None, reserved=0):
    size = HEADER.size + len(body) if length is None else length
    return HEADER.pack(magic, version, kind, size, reserved) + body


def connect(path, seconds=10):
    """A connection to the daemon; each receive on it fails after `seconds`."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    peer.settimeout(seconds)
    try:
        peer.connect(path)
    except OSError:
        peer.close()
        raise
    return peer


def send(peer, data, fds=()):
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([data], ancillary)


def receive(peer):
    """(type, body, fds) of the next packet. Raises Closed or Refused."""
    try:
        data, ancillary, _, _ = peer.recvmsg(MAX_PACKET, socket.CMSG_LEN(16 * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        raise Closed("connection reset") from None
    fds = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += array.array("i", content[:len(content) // 4 * 4]).tolist()
    if not data:
        raise Closed("connection closed")
    magic, version, kind, length, _ = HEADER.unpack_from(data)
    assert (magic, version, length) == (MAGIC, VERSION, len(data)), f"malformed packet from the daemon: {data[:32].hex()}"
    if kind == REFUSED:
        raise Refused(data[HEADER.size:].split(b"\0")[0].decode(errors="replace"))
    return kind, data[HEADER.size:], fds


def control_raw(path, text, seconds=30):
    """(status, answer text) for the text of a request."""
    with connect(path, seconds) as peer:
        send(peer, packet(CONTROL_REQUEST, text))
        kind, body, fds = receive(peer)
    assert kind == CONTROL_REPLY and len(fds) == 1, f"a control reply of type {kind} with {len(fds)} descriptors"
    with os.fdopen(fds[0], "rb") as memfd:
        memfd.seek(0)
        return struct.unpack_from("<i", body)[0], memfd.read()


def control(path, verb, seconds=30, **fields):
    """The decoded answer; raises OSError with the daemon's own words if it says no."""
    status, answer = control_raw(path, json.dumps({"verb": verb, **fields}).encode(), seconds)
    decoded = json.loads(answer)
    if status != 0:
        raise OSError(status, decoded.get("error", "(no text)"))
    return decoded


class FakeAgent:
    """An agent's handshake, one step a method, so that a test can stop, lie or repeat at any of them.

    Its memory lies in this process, which thereby becomes a client of the daemon: use it in a process of its own
    if the handshake is to be completed.
    """
    STEPS = ("hello", "device", "context", "ring", "ready", "challenge", "proof", "welcome")

    def __init__(self, path):
        self.peer = connect(path)
        self.staging = mmap.mmap(-1, STAGING_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.arena = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.context = self.device = self.ring = -1
        self.client_id = None

    @staticmethod
    def address(mapping):
        return ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    def hello_packet(self, *, limit=0, arena=None, staging=None, codec=b"", pool=b""):
        arena = arena or (self.address(self.arena), 1 << 20)
        staging = staging or (self.address(self.staging), STAGING_BYTES)
        return packet(HELLO, struct.pack("<6Q16s16s", limit, *arena, *staging, 0, codec, pool))

    def hello(self):
        send(self.peer, self.hello_packet())

    def device_step(self):
        kind, _, fds = receive(self.peer)
        assert kind == DEVICE and len(fds) == 1, f"wanted the device, got type {kind} with {len(fds)} descriptors"
        self.device = fds[0]
        self.context = fcntl.ioctl(self.device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)

    def send_context(self):
        send(self.peer, packet(CONTEXT), [self.context])

    def ring_step(self):
        kind, _, fds = receive(self.peer)
        assert kind == RING and len(fds) == 1, f"wanted the ring, got type {kind} with {len(fds)} descriptors"
        self.ring = fds[0]

    def ready(self, register=True):
        if register:
            request = array.array("Q", [self.address(self.staging), STAGING_BYTES, UFFDIO_REGISTER_MODE_WP, 0])
            fcntl.ioctl(self.context, UFFDIO_REGISTER, request, True)
        send(self.peer, packet(READY))

    def challenge_step(self):
        kind, _, _ = receive(self.peer)
        assert kind == CHALLENGE, f"wanted the challenge, got type {kind}"

    def proof(self, nonce=None):
        if nonce is None:
            nonce = struct.unpack_from("<Q", self.staging)[0]
        send(self.peer, packet(PROOF, struct.pack("<Q", nonce)))

    def welcome_step(self):
        kind, body, _ = receive(self.peer)
        assert kind == WELCOME, f"wanted the welcome, got type {kind}"
        self.client_id = struct.unpack_from("<I", body)[0]

    def advance(self, step):
        """Everything up to and including `step` (of STEPS)."""
        for name in self.STEPS[:self.STEPS.index(step) + 1]:
            {"hello": self.hello, "device": self.device_step, "context": self.send_context, "ring": self.ring_step,
             "ready": self.ready, "challenge": self.challenge_step, "proof": self.proof, "welcome": self.welcome_step}[name]()

    def close(self):
        self.peer.close()
        for fd in (self.context, self.device, self.ring):
            if fd >= 0:
                os.close(fd)
