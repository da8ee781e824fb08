#!/usr/bin/python3
"""Programs that build large structures and work on them twice, at 40 % of their native size: the same output to the byte."""
import getpass
import hashlib
import sys
import time

import harness
from harness import case, check
from programs import APPS, java_argv, memcached_session, native

SHARE = 0.40


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
