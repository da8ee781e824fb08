#!/usr/bin/python3
"""A program that grows past its limit is pushed back within a second, and stays there."""
import subprocess

import harness
from harness import MIB, case, check, until


def line(program, number):
    lines = program.stdout().splitlines()
    return lines[number].decode() if len(lines) > number else None


def grow(context, argv, total, limit):
    native = context.start([context.grower, *argv], stdin=subprocess.PIPE, name="native")
    native.stdin.write(b"\n\n")
    native.stdin.close()
    check(native.wait(120).status == 0, f"native run: {native.stdout()!r}")
    check(line(native, 1) == "right", f"native run: {native.stdout()!r}")
    context.say(f"native {line(native, 0)}")
    context.need_uzswap()

    program = context.run_uzswap([context.grower, *argv], limit=limit, stdin=subprocess.PIPE)
    pid = harness.target_of(program)
    sampler = harness.Sampler(pid, interval=0.01)
    until(lambda: line(program, 0) or not program.running(), 120, f"grown\n{program.where()}", poll=0.005)
    grown = sampler.now()
    context.say(f"limited {line(program, 0)}, {total // MIB} MiB with a limit of {limit // MIB} MiB")
    until(lambda: harness.memory_of(pid)[0] <= limit * 1.10 or not program.running(), 10, "resident comes back to the limit", poll=0.005)
    context.figure("back_after_growth", sampler.now() - grown, "seconds")
    back = sampler.now()
    until(lambda: sampler.now() > back + 3, 10, "three seconds of rest")
    rested = sampler.now()
    program.stdin.write(b"\n")
    program.stdin.flush()
    until(lambda: line(program, 1) or not program.running(), 300, f"read back\n{program.where()}")
    read = sampler.now()
    check(line(program, 1) == "right", f"read back: {program.stdout()!r}\n{program.tail()}")
    sampler.stop()
    program.stdin.write(b"\n")
    program.stdin.close()
    check(program.wait(60).status == 0, f"status {program.outcome.status}\n{program.tail()}")

    context.figure("read_back", read - rested, "seconds")
    context.figure("peak_resident_in_growth", sampler.peak(), "bytes")
    context.figure("longest_over_110_percent", sampler.longest_above(limit * 1.10), "seconds")
    context.figure("peak_resident_at_rest", max(r for t, r, _ in sampler.series() if back + 0.1 <= t <= rested), "bytes")
    context.figure("peak_resident_reading", max(r for t, r, _ in sampler.series() if rested <= t <= read), "bytes")
    check(back - grown <= 1.0, f"pushed back {back - grown:.2f} s after it stopped growing")
    check(sampler.peak(back + 0.1) <= limit * 1.10, f"after that it came to {sampler.peak(back + 0.1) / limit:.2f} of the limit again: "
          f"{[(round(t, 2), r // MIB) for t, r, _ in sampler.series() if t > back + 0.1 and r > limit * 1.1][:10]} (s, MiB)")
    return sampler


@case
def burst(context):
    total = 1024 if context.long else 400
    grow(context, ["burst", total], total * MIB, total * MIB // 4)


@case
def steps(context):
    total = 512 if context.long else 256
    limit = total * MIB // 4
    sampler = grow(context, ["steps", total], total * MIB, limit)
    check(sampler.longest_above(limit * 1.10) <= 1.0, "over 110 % of the limit for longer than a second, though it rests between its steps")


@case
def rate(context):
    """At a rate that the reclaimer can follow it never runs far over the limit."""
    total = 512 if context.long else 200
    limit = total * MIB // 4
    sampler = grow(context, ["rate", total, 60], total * MIB, limit)
    check(sampler.longest_above(limit * 1.10) <= 1.0, "over 110 % of the limit for longer than a second while it grows slowly")


@case
def limit_changed_at_run_time(context):
    """The control request `limit` takes hold of a program that already runs, and 0 frees it again."""
    context.need_uzswap()
    daemon = context.daemon()
    program = context.run_uzswap([context.grower, "burst", 200], socket=daemon.socket, stdin=subprocess.PIPE)
    pid = harness.target_of(program)
    until(lambda: line(program, 0), 60, "grown")
    check(harness.memory_of(pid)[0] >= 200 * MIB, "it is not fully resident without a limit")
    until(lambda: daemon.client(pid), 10, "stat shows it")
    harness.wire.control(daemon.socket, "limit", pid=pid, limit_bytes=50 * MIB)
    until(lambda: harness.memory_of(pid)[0] <= 55 * MIB, 5, "resident comes down to the new limit")
    check(daemon.client(pid)["state"] == "limited", f"state {daemon.client(pid)['state']}")
    harness.wire.control(daemon.socket, "limit", pid=pid, limit_bytes=0)
    answer = harness.wire.control(daemon.socket, "restore", 60, pid=pid)
    check(answer["failed"] == 0, f"restore: {answer}")
    check(harness.memory_of(pid)[0] >= 198 * MIB, f"after restore {harness.memory_of(pid)[0] // MIB} MiB are resident: {answer}")
    harness.wire.control(daemon.socket, "reclaim", 60, pid=pid, bytes=100 * MIB)
    check(harness.memory_of(pid)[0] <= 125 * MIB, f"after reclaim of 100 MiB {harness.memory_of(pid)[0] // MIB} MiB are resident")
    program.stdin.write(b"\n\n")
    program.stdin.close()
    check(program.wait(120).status == 0 and line(program, 1) == "right", f"{program.stdout()!r}\n{program.tail()}")
    daemon.stop()


if __name__ == "__main__":
    harness.run(__doc__)
