#!/usr/bin/python3
"""Programs that build large structures and work on them twice, at 40 % of their native size: the same output to the byte."""
import getpass
import hashlib
import random
import socket
import sys
import time

import harness
from harness import HERE, case, check, until

SHARE = 0.40
APPS = HERE / "apps"


def native(context, argv, result=None, seconds=300, **more):
    """(what it makes, its greatest resident size) of a native run; with --native-only a second one must make the same."""
    made = []
    for _ in range(2 if context.native_only else 1):
        program = context.start(argv, name="native", **more)
        sampler = harness.Sampler(program.pid, tree=True)
        outcome = program.wait(seconds)
        sampler.stop()
        check(outcome.status == 0, f"native run ended with {outcome.status}\n{program.tail()}")
        made.append(program.stdout() + (result() if result else b""))
        check(made[0] == made[-1], f"two native runs differ: {made[0]!r} {made[-1]!r}")
    check(made[0].strip(), "the native run printed nothing")
    context.figure("native_peak_resident", outcome.peak_rss, "bytes")
    context.figure("native_time", outcome.seconds, "seconds")
    return made[0], outcome


def compare(context, argv, *, result=None, seconds=300, options=(), **more):
    """Native, then under the limit: digests and files equal, and the resident size recorded."""
    expected, before = native(context, argv, result, seconds, **more)
    context.need_uzswap()
    limit = int(before.peak_rss * SHARE) // 4096 * 4096
    context.figure("limit", limit, "bytes")
    program = context.run_uzswap(argv, limit=limit, options=["--report", *options], **more)
    sampler = harness.Sampler(program.pid, tree=True)
    outcome = program.wait(seconds * 2)
    sampler.stop()
    check(outcome.status == 0, f"under the limit it ended with {outcome.status}\n{program.tail()}")
    got = program.stdout() + (result() if result else b"")
    check(got == expected, f"other output than native.\n  native: {expected!r}\n  limited: {got!r}\n{program.tail()}")
    context.figure("limited_time", outcome.seconds, "seconds")
    context.figure("limited_peak_resident", sampler.peak(), "bytes")
    context.figure("limited_peak_anonymous", sampler.peak_anon(), "bytes")
    context.figure("limited_typical_resident", sampler.typical(), "bytes")
    context.figure("longest_over_110_percent", sampler.longest_above(limit * 1.10), "seconds")
    for line in program.stderr().splitlines():
        context.say(f"report: {line}")
    check(sampler.typical() <= limit * 1.10, f"typically at {sampler.typical() / limit:.2f} of the limit")
    check(sampler.peak() < before.peak_rss, "it grew as large as a native run")


@case
def python(context):
    size = 400 if context.long else 130
    compare(context, [sys.executable, APPS / "structures.py", size], env=context.env(PYTHONHASHSEED=0))


@case
def sqlite(context):
    size = 300 if context.long else 70
    compare(context, [sys.executable, APPS / "tables.py", size])


@case
def node(context):
    size = 150 if context.long else 60
    compare(context, [context.need_program("node"), "--max-old-space-size=4096", APPS / "objects.js", size])


def java_argv(context, size, *options):
    javac = context.need_program("javac")
    classes = context.tmp / "classes"
    if not classes.exists():
        compiler = context.start([javac, "-d", classes, APPS / "Objects.java"])
        check(compiler.wait(120).status == 0, f"javac failed\n{compiler.tail()}")
    return [context.need_program("java"), "-Xmx1500m", *options, "-cp", classes, "Objects", size]


@case
def java(context):
    compare(context, java_argv(context, 350 if context.long else 100))


@case
def java_serial(context):
    """Another collector moves memory in other ways."""
    compare(context, java_argv(context, 350 if context.long else 100, "-XX:+UseSerialGC"))


@case
def cplusplus(context):
    """cc1plus is the process that grows; the object file is what it makes."""
    compiler = context.need_program("g++")
    source, target = context.tmp / "heavy.cc", context.tmp / "heavy.o"
    writer = context.start([sys.executable, APPS / "heavy_source.py", 18 if context.long else 6, source])
    check(writer.wait(60).status == 0, writer.tail())

    def digest():
        made = hashlib.sha256(target.read_bytes()).hexdigest().encode()
        target.unlink()
        return made
    compare(context, [compiler, "-std=c++20", "-O1", "-c", source.name, "-o", target.name], result=digest)


# --- memcached: a server, so its content is read over its socket --------------------------------------------------

class Memcached:
    def __init__(self, path):
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.settimeout(60)
        self.peer.connect(path)
        self.file = self.peer.makefile("rb", 1 << 20)

    @staticmethod
    def value(number, seed):
        rng = random.Random(number * 1000003 + seed)
        return f"item {number} {'-'.join(map(str, rng.choices(range(300), k=rng.randint(30, 300))))}".encode() + rng.randbytes(rng.randint(50, 700))

    def in_batches(self, numbers, request, answer):
        for first in range(0, len(numbers), 100):
            batch = numbers[first:first + 100]
            self.peer.sendall(b"".join(map(request, batch)))
            for number in batch:
                answer(number)

    def store(self, numbers, seed):
        def request(number):
            value = self.value(number, seed)
            return b"set k%d 0 0 %d\r\n%b\r\n" % (number, len(value), value)

        def answer(number):
            line = self.file.readline()
            check(line == b"STORED\r\n", f"memcached says {line!r} to k{number}")
        self.in_batches(numbers, request, answer)

    def verify(self, numbers, seed):
        def answer(number):
            line = self.file.readline().split()
            check(len(line) == 4, f"memcached lost k{number}: {line!r}")
            value = self.file.read(int(line[3]) + 2)[:-2]
            check(self.file.readline() == b"END\r\n" and value == self.value(number, seed), f"k{number} has another value")
        self.in_batches(numbers, lambda number: b"get k%d\r\n" % number, answer)


def memcached_session(context, program, path, count):
    def attempt():
        check(program.running(), f"memcached ended early\n{program.tail()}")
        try:
            return Memcached(path)
        except OSError:
            return None
    client = until(attempt, 30, "memcached answers")
    numbers = list(range(count))
    client.store(numbers, 1)
    random.Random(context.seed).shuffle(numbers)
    client.verify(numbers, 1)
    client.store(numbers[::3], 2)
    client.verify(numbers[::3], 2)
    client.verify(numbers[1::3], 1)


@case
def memcached(context):
    binary = context.need_program("memcached")
    count = 250000 if context.long else 60000

    def argv(name):
        return [binary, "-u", getpass.getuser(), "-m", "2048", "-t", "2", "-s", context.tmp / name]
    program = context.start(argv("native.sock"))
    memcached_session(context, program, str(context.tmp / "native.sock"), count)
    resident = harness.memory_of(program.pid)[0]
    context.figure("native_resident", resident, "bytes")
    program.kill()
    context.need_uzswap()
    limit = int(resident * SHARE) // 4096 * 4096
    program = context.run_uzswap(argv("limited.sock"), limit=limit)
    sampler = harness.Sampler(program.pid, tree=True)
    begin = time.monotonic()
    memcached_session(context, program, str(context.tmp / "limited.sock"), count)
    context.figure("limited_time", time.monotonic() - begin, "seconds")
    sampler.stop()
    context.figure("limit", limit, "bytes")
    context.figure("limited_peak_resident", sampler.peak(), "bytes")
    context.figure("limited_typical_resident", sampler.typical(), "bytes")
    check(sampler.typical() <= limit * 1.10, f"typically at {sampler.typical() / limit:.2f} of the limit")


if __name__ == "__main__":
    harness.run(__doc__)
