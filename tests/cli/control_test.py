#!/usr/bin/python3
"""What uzswap says and how it ends when a daemon answers well, wrongly, or not at all. The daemon is a fake one."""
import array
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import harness  # noqa: E402
import wire  # noqa: E402
from harness import case, check  # noqa: E402

REFUSED_BY_ERRNO = 3  # ESRCH
CLIENT = {"id": 1, "pid": 4711, "uid": 0, "comm": "prog", "agent": True, "state": "active", "limit_bytes": 64 << 20,
          "resident_bytes": 64 << 20, "stored_bytes": 32 << 20, "pool_bytes": 16 << 20, "ratio": 2.0,
          "faults": {"stored": 5}, "latency_us": {"p50": 6.0, "p99": 30.0, "max": 99.0}, "refused": {"busy": 2}, "events": {}}
STAT = {"schema": "uzswap.stat/1", "daemon": {"pid": 1, "version": "0", "uptime_seconds": 1.0, "codec": "lz4", "pool": "zsmalloc"},
        "clients": [CLIENT], "totals": {"resident_bytes": 64 << 20}}


def memfd(text):
    fd = os.memfd_create("answer")
    os.write(fd, text)
    return fd


def reply(answer, status=0):
    """What a good daemon does with a request: answers with JSON in a memfd."""
    def handle(peer, _request):
        fd = memfd(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        wire.send(peer, wire.packet(wire.CONTROL_REPLY, struct.pack("<iI", status, 0)), [fd])
        os.close(fd)
    return handle


def raw(data, fds=0):
    """Answers with these bytes, and as many descriptors."""
    def handle(peer, _request):
        opened = [memfd(b"{}") for _ in range(fds)]
        peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))] if fds else [])
        for fd in opened:
            os.close(fd)
    return handle


class FakeDaemon:
    """Listens, keeps the requests that come, and answers each by `handler(peer, request)`. It refuses agents."""

    def __init__(self, context, handler):
        FakeDaemon.count = getattr(FakeDaemon, "count", 0) + 1
        self.path = str(context.tmp / f"fake-{FakeDaemon.count}.sock")
        self.requests = []
        self._handler = handler
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                data = peer.recv(wire.MAX_PACKET)
                magic, version, kind, length, _ = wire.HEADER.unpack_from(data)
                assert (magic, version, length) == (wire.MAGIC, wire.VERSION, len(data)), data
                if kind == wire.HELLO:
                    wire.send(peer, wire.packet(wire.REFUSED, b"not today".ljust(wire.REFUSED_BYTES, b"\0")))
                    continue
                assert kind == wire.CONTROL_REQUEST, data
                self.requests.append(json.loads(data[wire.HEADER.size:]))
                self._handler(peer, self.requests[-1])


def uzswap(context, *arguments, seconds=30, **env):
    return subprocess.run([context.uzswap, *map(str, arguments)], env=context.env(**env), capture_output=True, text=True,
                          timeout=seconds, check=False, stdin=subprocess.DEVNULL)


def expect(done, status, *words, where="stderr"):
    text = getattr(done, where)
    check(done.returncode == status and all(w in text for w in words),
          f"status {done.returncode} (wanted {status}), {where} wanted with {words}:\n{done.stdout}{done.stderr}")


@case
def stat(context):
    """A table, one process in detail, JSON as the daemon gave it, and an unknown process."""
    daemon = FakeDaemon(context, reply(STAT))
    expect(uzswap(context, "stat", "--socket", daemon.path), 0, "4711 prog", "64M", "2.00", "REFUSED", where="stdout")
    expect(uzswap(context, "stat", "4711", UZSWAP_SOCKET=daemon.path), 0, "prog (pid 4711", "2 busy", where="stdout")
    check(daemon.requests == [{"verb": "stat"}, {"verb": "stat", "pid": 4711}], daemon.requests)
    done = uzswap(context, "stat", "--json", "--socket", daemon.path)
    check(done.returncode == 0 and json.loads(done.stdout) == STAT, done.stdout)
    empty = FakeDaemon(context, reply({**STAT, "clients": []}))
    expect(uzswap(context, "stat", "--socket", empty.path), 0, "no client is attached", where="stdout")
    for options in ([], ["--json"]):
        expect(uzswap(context, "stat", *options, "4711", "--socket", empty.path), 1, "process 4711 is not attached")
    many = FakeDaemon(context, reply({**STAT, "clients": [{**CLIENT, "pid": n} for n in range(1, 5001)]}))
    check(len(uzswap(context, "stat", "--socket", many.path).stdout.splitlines()) == 5003, "not one line per client")


@case
def control(context):
    """limit, reclaim and restore: what is asked, what is said, and a daemon that refuses."""
    ok = FakeDaemon(context, reply({"schema": "uzswap.ok/1"}))
    expect(uzswap(context, "limit", 7, "1.5G", "--socket", ok.path), 0, "process 7: resident limit 1.5G", where="stdout")
    expect(uzswap(context, "limit", 7, "none", "--socket", ok.path), 0, "no limit", where="stdout")
    check([r["limit_bytes"] for r in ok.requests] == [3 << 29, 0] and ok.requests[0]["pid"] == 7, ok.requests)
    reclaim = FakeDaemon(context, reply({"schema": "uzswap.reclaim/1", "pages": 256}))
    expect(uzswap(context, "reclaim", 7, "1M", "--socket", reclaim.path), 0, "256 pages (1M) taken", where="stdout")
    check(reclaim.requests == [{"verb": "reclaim", "pid": 7, "bytes": 1 << 20}], reclaim.requests)
    restore = FakeDaemon(context, reply({"schema": "uzswap.restore/1", "pages": 256, "failed": 0}))
    expect(uzswap(context, "restore", 7, "--socket", restore.path), 0, "256 pages (1M) brought home", where="stdout")
    partly = FakeDaemon(context, reply({"schema": "uzswap.restore/1", "pages": 250, "failed": 6}))
    expect(uzswap(context, "restore", 7, "--socket", partly.path), 1, "6 pages (24K) could not")
    refuses = FakeDaemon(context, reply({"error": "process 7 is not attached"}, REFUSED_BY_ERRNO))
    for arguments in (["limit", 7, "1G"], ["reclaim", 7, "1G"], ["restore", 7], ["stat"]):
        expect(uzswap(context, *arguments, "--socket", refuses.path), 1, "uzswap: process 7 is not attached")


@case
def run_that_is_refused(context):
    """The agent is refused: the program runs natively, and the report says so."""
    daemon = FakeDaemon(context, reply({**STAT, "clients": []}))
    done = uzswap(context, "run", "--socket", daemon.path, "--limit", "64M", "--report", "--", "sh", "-c", "exit 6")
    expect(done, 6, "not today", "never attached")


@case
def broken_daemons(context):
    """Whatever comes instead of an answer, uzswap ends with 1 and says what it saw."""
    good_header = wire.packet(wire.CONTROL_REPLY, struct.pack("<iI", 0, 0))
    for name, handler, word in [
            ("closes", lambda peer, _: None, "without an answer"),
            ("short packet", raw(b"x"), "not uzswapd"),
            ("other magic", raw(wire.packet(wire.CONTROL_REPLY, b"\0" * 8, magic=7)), "not uzswapd"),
            ("other version", raw(wire.packet(wire.CONTROL_REPLY, b"\0" * 8, version=9)), "speaks protocol 9"),
            ("other type", raw(wire.packet(wire.WELCOME, b"\0" * 8)), "unexpected answer"),
            ("short reply", raw(wire.packet(wire.CONTROL_REPLY)), "unexpected answer"),
            ("refused", raw(wire.packet(wire.REFUSED, b"go away".ljust(240, b"\0"))), "go away"),
            ("no memfd", raw(good_header), "without its text"),
            ("status without a memfd", raw(wire.packet(wire.CONTROL_REPLY, struct.pack("<iI", 12, 0))), "Cannot allocate"),
            ("three memfds", raw(good_header, fds=3), "schema"),
            ("no JSON", reply(b"{not json"), "no JSON object"),
            ("no object", reply([1, 2]), "no JSON object"),
            ("empty", reply(b""), "no JSON object"),
            ("other schema", reply({"schema": "uzswap.stat/9"}), "uzswap.stat/9"),
            ("error without text", reply({}, REFUSED_BY_ERRNO), "No such process")]:
        done = uzswap(context, "stat", "--socket", FakeDaemon(context, handler).path)
        check(done.returncode == 1 and word in done.stderr and not done.stdout,
              f"{name}: status {done.returncode}, {done.stdout!r}, {done.stderr!r} without {word!r}")


@case
def no_daemon(context):
    """Nobody there, a stale socket, no socket at all, a path that is too long: exit 1, and the fix."""
    nowhere = context.tmp / "nowhere.sock"
    for arguments in (["stat"], ["limit", 7, "1G"], ["reclaim", 7, "1G"], ["restore", 7]):
        expect(uzswap(context, *arguments, "--socket", nowhere), 1, f"no daemon at {nowhere}", "uzswapd --socket")
    stale = context.tmp / "stale.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(stale))
    expect(uzswap(context, "stat", "--socket", stale), 1, "nobody listens")
    expect(uzswap(context, "run", "--socket", stale, "--", "true"), 125, "nobody listens", "leave --socket out")
    (context.tmp / "file").write_text("x")
    expect(uzswap(context, "stat", "--socket", context.tmp / "file"), 1, "no daemon at")
    expect(uzswap(context, "stat", "--socket", "/" + "x" * 200), 1, "too long", "107")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(context.tmp / "stream.sock"))
        stream.listen()
        expect(uzswap(context, "stat", "--socket", context.tmp / "stream.sock"), 1, "another kind")


@case
def mute_daemon(context):
    """One that never answers: run and doctor give up after two seconds, and say so."""
    mute = FakeDaemon(context, lambda peer, _: time.sleep(60))
    expect(uzswap(context, "run", "--socket", mute.path, "--", "true"), 125, "does not answer")
    done = uzswap(context, "doctor", "--socket", mute.path)
    check("note     daemon" in done.stdout and "does not answer" in done.stdout, done.stdout)


@case
def doctor_json(context):
    """The JSON says the same as the text and the exit code."""
    none = context.tmp / "none.sock"
    text = uzswap(context, "doctor", "--socket", none)
    done = uzswap(context, "doctor", "--json", "--socket", none)
    report = json.loads(done.stdout)
    missing = [c for c in report["checks"] if c["status"] == "missing"]
    check(report["schema"] == "uzswap.doctor/1" and report["ok"] == (not missing) == (done.returncode == 0), done.stdout)
    check(done.returncode == text.returncode and text.stdout.count("MISSING") == len(missing), text.stdout)
    for entry in report["checks"]:
        check(entry["name"] in text.stdout and (entry["status"] != "missing" or entry["fix"]), f"{entry}")


@case
def doctor_without_agent(context):
    """An agent library that is none, or lies where LD_PRELOAD cannot name it: missing, with what to do."""
    text = context.tmp / "agent.so"
    text.write_text("no library")
    expect(uzswap(context, "doctor", UZSWAP_AGENT=text), 1, "MISSING  agent library", "UZSWAP_AGENT", where="stdout")
    expect(uzswap(context, "run", "--", "true", UZSWAP_AGENT=text), 125, "not a shared object")
    expect(uzswap(context, "run", "--", "true", UZSWAP_AGENT=context.tmp / "none.so"), 125, "is not there")
    blank = context.tmp / "a b"
    blank.mkdir()
    os.link(context.agent, blank / "agent.so") if os.stat(context.agent).st_dev == os.stat(blank).st_dev else \
        (blank / "agent.so").write_bytes(pathlib.Path(context.agent).read_bytes())
    expect(uzswap(context, "run", "--", "true", UZSWAP_AGENT=blank / "agent.so"), 125, "has a blank")


@case
def help_texts(context):
    """Help on stdout with 0, for everything; nothing wider than 120 columns; version."""
    for arguments in ([], ["--help"], *([c, "--help"] for c in ("run", "stat", "doctor", "limit", "reclaim", "restore"))):
        done = uzswap(context, *arguments)
        check(done.returncode == 0 and "Usage: uzswap" in done.stdout and not done.stderr, f"{arguments}: {done}")
        wide = [line for line in done.stdout.splitlines() if len(line) > 120 and not line.startswith("uzswap gives")]
        check(not wide, f"{arguments}: {wide}")
    done = uzswap(context, "--version")
    check(done.returncode == 0 and done.stdout.startswith("uzswap ") and done.stdout.count("\n") == 1, done)


if __name__ == "__main__":
    harness.run(__doc__)
