#!/usr/bin/python3
"""What comes wrong from outside: garbage, broken handshakes, lies in the ring, missing devices, wrong arguments.

Each is a clear message or a counted refusal; the daemon lives on, serves others, and keeps nothing of it.
"""
import contextlib
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback

import harness
import wire
from harness import MIB, case, check, until
from deaths import keeper_of, kill


def descriptors(pid):
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if os.path.islink(f"/proc/{pid}/fd/{fd}"))


def healthy(daemon, before=None):
    """It answers, has no client and, after a moment, no more descriptors open than before."""
    check(daemon.running(), f"uzswapd ended with {daemon.outcome and daemon.outcome.status}\n{daemon.tail(60)}")
    check(wire.control(daemon.socket, "ping")["schema"] == "uzswap.ping/1", "ping")
    until(lambda: not daemon.stat()["clients"], 20, f"no client is left: {daemon.stat()['clients'][:2]}")
    if before is not None:
        now = []

        def few():
            now[:] = descriptors(daemon.pid)
            return len(now) <= len(before)
        with contextlib.suppress(harness.Failed):
            until(few, 15, "")
        check(len(now) <= len(before), f"descriptors leaked: {len(before)} before, {len(now)} now\n  before {before}\n  now {now}")
    daemon.check_words()


def in_child(function, seconds=60):
    """Runs it in a child process, which may become a client; its failure is ours."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        try:
            function()
            os._exit(0)
        except BaseException:  # pylint: disable=broad-except
            os.write(writer, traceback.format_exc().encode()[-4000:])
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    check(code == 0, f"the client's side {'hung' if code == -signal.SIGALRM else f'failed with {code}'}\n{text}")


def answer_to(daemon, data, fds=()):
    """What the daemon says to one packet on a fresh connection: the text of a refusal, 'closed', 'silent', or the type."""
    with wire.connect(daemon.socket, 3) as peer:
        try:
            wire.send(peer, data, fds)
        except OSError as error:
            return f"not sent: {error.strerror}"
        try:
            return str(wire.receive(peer)[0])
        except wire.Refused as refused:
            return f"refused: {refused}"
        except wire.Closed:
            return "closed"
        except TimeoutError:
            return "silent"


@case
def garbage(context):
    """Packets that are no packets. Each ends its connection, most with a reason."""
    context.need_uzswap()
    daemon = context.daemon()
    # One client's whole life first, so that what the daemon opens once is not taken for a leak.
    in_child(lambda: wire.FakeAgent(daemon.socket).advance("welcome"))
    healthy(daemon)
    before = descriptors(daemon.pid)
    agent = wire.FakeAgent(daemon.socket)
    hello = agent.hello_packet()
    agent.close()
    rng = random.Random(context.seed)
    refused = {
        "one byte": b"\0",
        "half a header": wire.packet(wire.HELLO)[:8],
        "wrong magic": wire.packet(wire.HELLO, hello[16:], magic=0xDEADBEEF),
        "newer version": wire.packet(wire.HELLO, hello[16:], version=2),
        "version 0": wire.packet(wire.HELLO, hello[16:], version=0),
        "length too small": wire.packet(wire.HELLO, hello[16:], length=16),
        "length too large": wire.packet(wire.HELLO, hello[16:], length=65536),
        "truncated Hello": wire.packet(wire.HELLO, hello[16:40]),
        "Hello and more": wire.packet(wire.HELLO, hello[16:] + b"more"),
        "no such type": wire.packet(999),
        "oversized": wire.packet(wire.HELLO, hello[16:] + bytes(70000)),
    }
    for kind in (0, *range(2, 12), 33):
        refused[f"type {kind} first"] = wire.packet(kind, b"\1" * 8)
    for name, data in refused.items():
        answer = answer_to(daemon, data)
        context.say(f"{name}: {answer}")
        check(answer.startswith(("refused: ", "not sent")), f"{name}: wanted a reason, got {answer!r}")
        if "version" in name:
            check("version" in answer, f"{name}: the reason does not say version: {answer!r}")
    for number in range(100):
        data = rng.randbytes(rng.randint(1, 600))
        if number % 3 == 0:  # a right beginning, so that more of the daemon is reached
            data = wire.packet(rng.choice((wire.HELLO, wire.CONTROL_REQUEST)), data)
        descriptor = os.open("/dev/null", os.O_RDONLY)
        answer = answer_to(daemon, data, [descriptor] * rng.randint(0, 3))
        os.close(descriptor)
        check(answer != "silent" and answer != str(wire.WELCOME), f"{data.hex()}: {answer}")
    for _ in range(50):
        wire.connect(daemon.socket).close()
    healthy(daemon, before)
    daemon.stop()


@case
def broken_off_handshake(context):
    """The peer goes after each step; and peers that stay in the middle keep nobody else waiting."""
    context.need_uzswap()
    daemon = context.daemon()
    in_child(lambda: wire.FakeAgent(daemon.socket).advance("welcome"))
    healthy(daemon)
    before = descriptors(daemon.pid)

    def broken(step):
        for _ in range(5):
            agent = wire.FakeAgent(daemon.socket)
            agent.advance(step)
            agent.close()
    for step in wire.FakeAgent.STEPS:
        in_child(lambda s=step: broken(s))
        healthy(daemon)
    healthy(daemon, before)

    # Thirty that stop in the middle and stay; a real program attaches meanwhile.
    marker, go = context.tmp / "lingering", context.tmp / "go"

    def lingering():
        agents = [wire.FakeAgent(daemon.socket) for _ in range(30)]
        for number, agent in enumerate(agents):
            agent.advance(wire.FakeAgent.STEPS[number % 6])
        marker.touch()
        until(go.exists, 50, "the parent says go")
        os._exit(0)  # not by way of unmapping: see refuses() below
    child = os.fork()
    if child == 0:
        try:
            lingering()
        finally:
            os._exit(0)
    try:
        until(marker.exists, 30, "thirty handshakes have begun")
        program = context.run_uzswap(["/bin/sh", "-c", "exit 7"], socket=daemon.socket)
        check(program.wait(20).status == 7, f"exit status {program.outcome.status}\n{program.tail()}")
        check("uzswap:" not in program.stderr(), f"the program was not attached: {program.stderr()}")
    finally:
        go.touch()
        os.waitpid(child, 0)
    healthy(daemon, before)
    daemon.stop()


@case
def lying_handshake(context):
    """Each message wrong in its own way, at its own place."""
    context.need_uzswap()
    daemon = context.daemon()
    in_child(lambda: wire.FakeAgent(daemon.socket).advance("welcome"))
    healthy(daemon)
    before = descriptors(daemon.pid)

    def refuses(name, step, act):
        def attempt():
            agent = wire.FakeAgent(daemon.socket)
            try:
                if step:
                    agent.advance(step)
                act(agent)
                kind, _, _ = wire.receive(agent.peer)
            except wire.Refused as refused:
                print(f"  {name}: {refused}", flush=True)
                return
            except wire.Closed:
                raise AssertionError(f"{name}: closed without a reason") from None
            finally:
                agent.close()  # first: unmapping staging waits for a reader of the context as long as one is open
            raise AssertionError(f"{name}: the daemon goes on with a message of type {kind}")
        in_child(attempt)

    def hello(**wrong):
        return lambda agent: wire.send(agent.peer, agent.hello_packet(**wrong))
    refuses("staging not aligned", None, hello(staging=(0x7000_0000_0123, wire.STAGING_BYTES)))
    refuses("staging too small", None, hello(staging=(0x7000_0000_0000, 4096)))
    refuses("staging in the kernel", None, hello(staging=(0xFFFF_8000_0000_0000, wire.STAGING_BYTES)))
    refuses("staging wraps around", None, hello(staging=(0xFFFF_FFFF_FFFF_F000, wire.STAGING_BYTES)))
    refuses("arena of all memory", None, hello(arena=(0, 1 << 63)))
    refuses("unknown codec", None, hello(codec=b"zstd-99"))
    refuses("codec without an end", None, hello(codec=b"l" * 16))
    refuses("unknown pool", None, hello(pool=b"nothing"))
    refuses("limit of one byte", None, hello(limit=1))
    refuses("Hello twice", "device", hello())
    refuses("context without a descriptor", "device", lambda agent: wire.send(agent.peer, wire.packet(wire.CONTEXT)))

    def null_context(agent):
        descriptor = os.open("/dev/null", os.O_RDWR)
        wire.send(agent.peer, wire.packet(wire.CONTEXT), [descriptor])
    refuses("/dev/null as context", "device", null_context)
    refuses("its own socket as context", "device", lambda agent: wire.send(agent.peer, wire.packet(wire.CONTEXT), [agent.peer.fileno()]))
    refuses("the device as context", "device", lambda agent: wire.send(agent.peer, wire.packet(wire.CONTEXT), [agent.device]))

    def used_context(agent):
        import array  # pylint: disable=import-outside-toplevel
        import fcntl  # pylint: disable=import-outside-toplevel
        fcntl.ioctl(agent.context, 0xC018AA3F, array.array("Q", [0xAA, 0, 0]), True)  # UFFDIO_API
        agent.send_context()
    refuses("a context that was used", "device", used_context)
    refuses("ready before its time", "device", lambda agent: agent.ready(register=False))
    refuses("proof before its time", "device", lambda agent: agent.proof(1))
    refuses("ready without staging", "ring", lambda agent: agent.ready(register=False))
    refuses("a wrong proof", "challenge", lambda agent: agent.proof(struct.unpack_from("<Q", agent.staging)[0] ^ 1))
    refuses("a short proof", "challenge", lambda agent: wire.send(agent.peer, wire.packet(wire.PROOF)))
    healthy(daemon, before)

    # The daemon's own descriptors must not be reachable by what one passes in: many at once, at every step.
    def stuffed():
        agent = wire.FakeAgent(daemon.socket)
        stuffing = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
        with contextlib.suppress(wire.Refused, wire.Closed):
            wire.send(agent.peer, agent.hello_packet(), stuffing)
            agent.device_step()
            wire.send(agent.peer, wire.packet(wire.CONTEXT), [agent.context, *stuffing])
            wire.receive(agent.peer)
        agent.close()
    in_child(stuffed)
    healthy(daemon, before)
    daemon.stop()


def hostile(context, behave, limit=4 * MIB):
    """A client that attached rightly and then behaves as it likes, beside an honest one, which must not suffer."""
    context.need_uzswap()
    daemon = context.daemon()
    honest = context.run_uzswap([context.verifier, "--megabytes", 64, "--seconds", 5, "--threads", 2, "--seed", context.seed], socket=daemon.socket,
                                limit=24 * MIB)

    def client():
        agent = wire.FakeAgent(daemon.socket)
        wire.send(agent.peer, agent.hello_packet(limit=limit))
        for step in (agent.device_step, agent.send_context, agent.ring_step, agent.ready, agent.challenge_step, agent.proof, agent.welcome_step):
            step()
        victim = mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, 64 * MIB, 4096):
            victim[page:page + 8] = struct.pack("<Q", page)
        behave(agent, time.monotonic() + 4)
    in_child(client)
    until(lambda: not honest.running(), 120, f"the honest client ends\n{honest.where()}")
    check(honest.wait(1).status == 0, f"the honest client suffered: status {honest.outcome.status}\n{honest.tail(40)}\n{daemon.tail(40)}")
    healthy(daemon)
    daemon.stop()


@case
def silent_agent(context):
    """It never answers a command."""
    def behave(_agent, end):
        while time.monotonic() < end:
            time.sleep(0.1)  # its behaviour, not a wait for anything
    hostile(context, behave)


@case
def scribbling_agent(context):
    """It writes random words all over the ring: gate, sequence, command, results, addresses, data."""
    def behave(agent, end):
        ring = mmap.mmap(agent.ring, 0)
        rng = random.Random(context.seed)
        small = [0, 1, 2, 3, 4, 16, 17, 0xFFFFFFFF]
        while time.monotonic() < end:
            place = rng.choice((rng.randrange(0, 512, 4), rng.randrange(4096, 12288, 4), rng.randrange(0, len(ring), 4)))
            ring[place:place + 4] = struct.pack("<I", rng.choice((rng.choice(small), rng.getrandbits(32))))
    hostile(context, behave)


@case
def obliging_agent(context):
    """It answers every command at once with the best of results, and has done nothing."""
    def behave(agent, end):
        ring = mmap.mmap(agent.ring, 0)
        command = 192  # of RingHeader: after magic…, gate at 64, event_seq at 128
        while time.monotonic() < end:
            if struct.unpack_from("<I", ring, command)[0] == 1:
                for slot in range(512):
                    struct.pack_into("<I", ring, 8192 + 4 * slot, 17)  # kCopied
                struct.pack_into("<I", ring, command, 3)               # kDone
                with contextlib.suppress(OSError):
                    wire.send(agent.peer, wire.packet(wire.REPORT))
    hostile(context, behave)


@case
def flooding_agent(context):
    """It reports what nobody asked for, asks for control, and sends rubbish, as fast as it can."""
    def behave(agent, end):
        rng = random.Random(context.seed)
        agent.peer.setblocking(False)
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                wire.send(agent.peer, wire.packet(wire.REPORT))
        with contextlib.suppress(OSError):
            for _ in range(1000):
                wire.send(agent.peer, wire.packet(rng.randint(0, 40), rng.randbytes(rng.randint(0, 64))))
    hostile(context, behave)


@case
def control_requests(context):
    context.need_uzswap()
    daemon = context.daemon()
    before = descriptors(daemon.pid)
    bad = [b"", b"{", b"null", b"[]", b"42", b'"stat"', b"{}", b'{"verb":7}', b'{"verb":"no such verb"}', b'{"verb":"stat","pid":"x"}',
           b'{"verb":"stat","pid":-1}', b'{"verb":"stat","pid":1e300}', b'{"verb":"limit"}', b'{"verb":"limit","pid":1}',
           b'{"verb":"limit","pid":1,"limit_bytes":-5}', b'{"verb":"limit","pid":1,"limit_bytes":99999999999999999999999}',
           b'{"verb":"restore"}', b'{"verb":"restore","pid":1}', b'{"verb":"reclaim","pid":1,"bytes":"all"}', b"\xff\xfe{}", b"{\"verb\":\"stat\"}\0\0",
           b"[" * 60000, b'{"verb":"' + b"x" * 60000 + b'"}', b'{"verb":"ping","pid":null}']
    for text in bad:
        status, answer = wire.control_raw(daemon.socket, text)
        context.say(f"{text[:60]!r}: {status} {answer[:100]!r}")
        if text not in (b'{"verb":"ping","pid":null}', b'{"verb":"stat","pid":-1}', b'{"verb":"stat","pid":1e300}', b"{\"verb\":\"stat\"}\0\0"):
            check(status > 0, f"{text[:80]!r} was accepted: {answer[:200]!r}")
        if status != 0:
            check(len(wire.json.loads(answer)["error"]) > 8, f"{text[:80]!r}: says only {answer!r}")
    healthy(daemon, before)
    daemon.stop()


@case
def second_daemon(context):
    """On the same socket: it says so and ends; the first goes on."""
    context.need_uzswap()
    first = context.daemon()
    second = context.daemon(socket=first.socket, wait=False)
    check(second.wait(20).status not in (0, None) and second.outcome.status > 0, f"the second ended with {second.outcome.status}")
    words = second.stderr()
    context.say(words.strip().splitlines()[-1] if words.strip() else "(nothing)")
    check(first.socket in words, f"its message does not name the socket: {words!r}")
    healthy(first)
    first.stop()
    check(not os.path.exists(first.socket), "the socket file is left behind")


@case
def socket_files(context):
    """A stale one is taken over; what is no socket is not touched; a path that cannot be is an error."""
    context.need_uzswap()
    first = context.daemon()
    # Its keeper would have a successor for it.
    first.signal(signal.SIGSTOP)
    keeper = keeper_of(first.pid)
    kill(keeper)
    first.signal(signal.SIGKILL)
    first.wait(10)
    until(lambda: not harness.read_text(f"/proc/{keeper}/maps"), 10, "the keeper ends")
    check(os.path.exists(first.socket), "SIGKILL left no socket file: nothing to take over")
    second = context.daemon(socket=first.socket)
    healthy(second)
    second.stop()

    precious = context.tmp / "precious"
    precious.write_text("precious")
    for path, what in ((str(precious), "a plain file"), (str(context.tmp / "none" / "at" / "all.sock"), "a directory that is not there"),
                       (str(context.tmp / ("long" * 40)), "too long a path")):
        program = context.daemon(socket=path, wait=False)
        if "directory" in what:  # it may make the directory, or refuse
            until(lambda p=program, f=path: not p.running() or os.path.exists(f), 20, f"{what}: neither socket nor end")
            if program.running():
                program.stop()
                continue
        check(program.wait(20).status > 0, f"{what}: ended with {program.outcome.status}")
        context.say(f"{what}: {program.stderr().strip().splitlines()[-1][:200] if program.stderr().strip() else '(nothing)'}")
        check(program.stderr().strip(), f"{what}: no message")
    check(precious.read_text() == "precious", "a plain file at the socket's path was damaged")


@case
def no_device(context):
    """/dev/userfaultfd is not what it should be: the doctor says it, and no program loses anything."""
    context.need_uzswap()
    context.need_root()
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        raise harness.Skip("no mount namespaces")
    hidden = ["unshare", "-m", "--propagation", "private", "sh", "-c", 'mount --bind /dev/null /dev/userfaultfd && exec "$@"', "sh"]

    doctor = context.start([*hidden, context.uzswap, "doctor"], name="doctor")
    check(doctor.wait(30).status != 0, f"doctor finds everything in order:\n{doctor.stdout().decode()}")
    words = doctor.stdout().decode() + doctor.stderr()
    context.say(next((line.strip() for line in words.splitlines() if "userfaultfd" in line), "(nothing)")[:200])
    check("/dev/userfaultfd" in words, f"doctor does not name /dev/userfaultfd:\n{words}")

    run = context.start([*hidden, context.uzswap, "run", "--limit", "64M", "--", "echo", "ran"], name="run",
                        env=context.env(UZSWAP_SOCKET=context.tmp / "nobody.sock"))
    check(run.wait(60).status != 0, "uzswap run without a daemon that can work is no error")
    context.say(run.stderr().strip().splitlines()[-1][:200] if run.stderr().strip() else "(nothing)")
    check("userfaultfd" in run.stderr(), f"the message does not name the reason: {run.stderr()!r}")

    daemon = context.daemon(wait=False, wrap=hidden)
    until(lambda: not daemon.running() or os.path.exists(daemon.socket), 20, "uzswapd either ends or listens")
    if daemon.running():
        # It listens all the same: then each client must be told.
        with contextlib.suppress(harness.Failed):
            until(lambda: not daemon.running(), 2, "")
    if daemon.running():
        program = context.start(["/bin/echo", "ran"], env=context.env(UZSWAP_SOCKET=daemon.socket, LD_PRELOAD=context.agent))
        check(program.wait(30).status == 0 and program.stdout() == b"ran\n", f"{program.stdout()!r} {program.stderr()!r}")
        context.say(program.stderr().strip())
        check("userfaultfd" in program.stderr(), f"the program was not told: {program.stderr()!r}")
        daemon.stop()
    else:
        context.say(daemon.stderr().strip().splitlines()[-1][:200] if daemon.stderr().strip() else "(nothing)")
        check(daemon.outcome is None or daemon.wait(1).status > 0, "uzswapd ended with 0")
        check("/dev/userfaultfd" in daemon.stderr(), f"its message does not name the device: {daemon.stderr()!r}")


@case
def not_permitted(context):
    """Another user, who may not open the device: doctor names the fix, run is an error with a reason."""
    context.need_uzswap()
    context.need_root()
    if not shutil.which("setpriv"):
        raise harness.Skip("setpriv is not installed")
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if subprocess.run([*nobody, "test", "-x", context.uzswap], check=False).returncode != 0:
        raise harness.Skip("the build directory is not readable for other users")
    place = context.tmp / "nobody"
    place.mkdir()
    os.chown(place, 65534, 65534)
    env = context.env(UZSWAP_SOCKET=place / "none.sock", TMPDIR=place, HOME=place, XDG_RUNTIME_DIR=place)
    doctor = context.start([*nobody, context.uzswap, "doctor"], name="doctor", env=env)
    check(doctor.wait(30).status != 0, f"doctor finds everything in order:\n{doctor.stdout().decode()}")
    words = doctor.stdout().decode() + doctor.stderr()
    context.say(next((line.strip() for line in words.splitlines() if "userfaultfd" in line), "(nothing)")[:200])
    check("/dev/userfaultfd" in words, f"doctor does not name /dev/userfaultfd:\n{words}")
    run = context.start([*nobody, context.uzswap, "run", "--limit", "64M", "--", "echo", "ran"], name="run", env=env)
    check(run.wait(60).status != 0, "uzswap run is no error")
    context.say(run.stderr().strip().splitlines()[-1][:200] if run.stderr().strip() else "(nothing)")
    check(run.stderr().strip(), "no message")

    # But a program of that user under root's daemon is served: the daemon passes the device on.
    daemon = context.daemon()
    os.chmod(daemon.socket, 0o666)
    program = context.start([*nobody, context.verifier, "--megabytes", "32", "--seconds", "2", "--seed", context.seed], name="verifier",
                            env=context.env(UZSWAP_SOCKET=daemon.socket, LD_PRELOAD=context.agent, UZSWAP_LIMIT=12 * MIB, TMPDIR=place))
    until(lambda: (daemon.client(program.pid) or {}).get("evicted_pages", 0) > 0 or not program.running(), 30, "it is attached, and evicted from")
    check(program.running(), f"it ended before anything was evicted\n{program.tail()}")
    check(program.wait(60).status == 0, f"status {program.outcome.status}\n{program.tail(40)}")
    daemon.stop()


@case
def nobody_listens(context):
    """LD_PRELOAD by hand without a daemon: the program runs natively, and one line on stderr says so."""
    context.need_uzswap()
    none = str(context.tmp / "none.sock")
    env = context.env(UZSWAP_SOCKET=none, LD_PRELOAD=context.agent, UZSWAP_LIMIT=64 * MIB)
    program = context.start([sys.executable, "-c", "print(sum(range(1000)))"], env=env)
    check(program.wait(30).status == 0 and program.stdout() == b"499500\n", f"status {program.outcome.status}, {program.stdout()!r}, {program.stderr()!r}")
    lines = program.stderr().splitlines()
    context.say(lines[0] if lines else "(nothing)")
    check(len(lines) == 1 and none in lines[0], f"wanted one line that names the socket: {lines}")
    quiet = context.start(["/bin/echo", "quiet"], env={**env, "UZSWAP_QUIET": "1"})
    check(quiet.wait(30).status == 0 and quiet.stdout() == b"quiet\n" and not quiet.stderr(), f"{quiet.stdout()!r} {quiet.stderr()!r}")
    # A plain file, a directory, and a socket of another kind in its place.
    (context.tmp / "file").write_text("")
    for path in (context.tmp / "file", context.tmp):
        program = context.start(["/bin/echo", "ran"], env={**env, "UZSWAP_SOCKET": str(path)})
        check(program.wait(30).status == 0 and program.stdout() == b"ran\n", f"{path}: {program.stdout()!r} {program.stderr()!r}")
        check(len(program.stderr().splitlines()) == 1, f"{path}: {program.stderr()!r}")


@case
def command_line(context):
    """Wrong arguments of uzswap run: each a message that says what is wrong, a status that is not 0, and nothing is run."""
    context.need_uzswap()
    daemon = context.daemon()
    marker = context.tmp / "was-run"
    static = context.tmp / "static"
    (context.tmp / "static.cc").write_text("int main() { return 0; }\n")
    have_static = subprocess.run(["g++", "-static", "-o", static, context.tmp / "static.cc"], capture_output=True, check=False).returncode == 0
    not_executable = context.tmp / "plain-file"
    not_executable.write_text("#!/bin/sh\n")
    setuid = context.tmp / "setuid"
    shutil.copy("/bin/true", setuid)
    if os.getuid() == 0:
        os.chown(setuid, 65534, 65534)
    setuid.chmod(0o4755)
    touch = ["--", "touch", str(marker)]
    wrong = {
        "unknown option": (["run", "--no-such-option", *touch], "no-such-option"),
        "unknown verb": (["walk"], "walk"),
        "malformed size": (["run", "--limit", "12Q", *touch], "12Q"),
        "negative size": (["run", "--limit", "-5M", *touch], None),
        "size that overflows": (["run", "--limit", "99999999999999G", *touch], None),
        "no size": (["run", "--limit", "", *touch], None),
        "limit too small to live": (["run", "--limit", "4K", *touch], None),
        "unknown codec": (["run", "--codec", "zip", *touch], "zip"),
        "unknown pool": (["run", "--pool", "pond", *touch], "pond"),
        "no command": (["run", "--limit", "64M"], None),
        "no such command": (["run", "--limit", "64M", "--", "no-such-command-anywhere"], "no-such-command-anywhere"),
        "a directory": (["run", "--limit", "64M", "--", str(context.tmp)], None),
        "not executable": (["run", "--limit", "64M", "--", str(not_executable)], "plain-file"),
        "setuid": (["run", "--limit", "64M", "--", str(setuid)], "set"),
        "stat of no process": (["stat", "999999999"], None),
        "stat of no number": (["stat", "x"], None),
    }
    if have_static:
        wrong["static"] = (["run", "--limit", "64M", "--", str(static)], "static")
    failures = []
    for name, (arguments, word) in wrong.items():
        done = subprocess.run([context.uzswap, *arguments], env=context.env(UZSWAP_SOCKET=daemon.socket), capture_output=True, text=True, timeout=60,
                              check=False)
        said = done.stderr.strip()
        context.say(f"{name}: {done.returncode}: {said.splitlines()[0][:150] if said else '(nothing)'}")
        if done.returncode == 0 or not said or (word and word not in said) or marker.exists():
            failures.append(f"{name}: status {done.returncode}, says {said!r}, ran the command: {marker.exists()}")
        marker.unlink(missing_ok=True)
    check(not failures, "\n    ".join(failures))
    healthy(daemon)
    daemon.stop()


@case
def status_and_signals(context):
    """Exit status, output and signals are the command's."""
    context.need_uzswap()
    daemon = context.daemon()
    for socket in (daemon.socket, None):
        program = context.run_uzswap(["/bin/sh", "-c", "echo out; echo err >&2; exit 37"], socket=socket, limit=64 * MIB)
        check(program.wait(30).status == 37 and program.stdout() == b"out\n" and program.stderr() == "err\n",
              f"status {program.outcome.status}, {program.stdout()!r}, {program.stderr()!r}")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            program = context.run_uzswap([context.grower, "burst", 8], socket=socket, limit=64 * MIB, stdin=subprocess.PIPE)
            harness.target_of(program)
            until(program.stdout, 20, "it grows")
            program.signal(number)
            status = program.wait(20).status
            check(status in (-number, 128 + number), f"{number.name} to uzswap run: status {status}")
        script = "import signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *a: (print('caught', flush=True), sys.exit(5)))\nprint('ready', flush=True)\nsignal.pause()"
        program = context.run_uzswap([sys.executable, "-c", script], socket=socket, limit=64 * MIB)
        until(lambda p=program: b"ready" in p.stdout(), 20, "ready")
        program.signal(signal.SIGTERM)
        check(program.wait(20).status == 5 and b"caught" in program.stdout(), f"status {program.outcome.status}, {program.stdout()!r}")
    healthy(daemon)
    daemon.stop()


if __name__ == "__main__":
    harness.run(__doc__)
