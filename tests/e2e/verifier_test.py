#!/usr/bin/python3
"""The verifier (../stress) under uzswap: no wrong word while reclaim runs flat out; and what happens to its pages at the end."""
import os
import signal
import time

import harness
from harness import MIB, case, check, until


def arguments(context, megabytes, seconds, *more):
    return [context.verifier, "--megabytes", megabytes, "--seconds", seconds, "--seed", context.seed, *more]


def run(context, megabytes, seconds, *more, share=0.25, daemon_options=()):
    context.need_uzswap()
    daemon = context.daemon(*daemon_options)
    limit = int(megabytes * MIB * share)
    program = context.run_uzswap(arguments(context, megabytes, seconds, *more), socket=daemon.socket, limit=limit)
    pid = harness.target_of(program)
    sampler = harness.Sampler(pid, interval=0.05)
    records = []

    def watch():
        check(daemon.running(), f"uzswapd ended\n{daemon.tail(60)}")
        record = daemon.client(pid) if program.running() else None
        if record:
            records.append(record)
        return not program.running()
    until(watch, seconds * 10 + 300, f"the verifier ends\n{program.where()}", poll=0.25)
    sampler.stop()
    outcome = program.wait(10)
    last = records[-1] if records else {}
    check(outcome.status == 0, f"verifier: status {outcome.status}\n{program.tail(60)}\n  stat: {last}\n  daemon:\n{daemon.tail(40)}")
    context.say(program.stdout().decode().strip())
    check(last, "stat never showed it")
    context.figure("time", outcome.seconds, "seconds")
    context.figure("limit", limit, "bytes")
    context.figure("peak_resident", sampler.peak(), "bytes")
    context.figure("typical_resident", sampler.typical(), "bytes")
    context.figure("evicted", last["evicted_pages"], "pages")
    context.figure("evicted_per_second", last["evicted_pages"] / outcome.seconds, "pages")
    context.figure("faults_stored", last["faults"]["stored"], "count")
    context.figure("fault_p50", float(last["latency_us"]["p50"]), "us")
    context.figure("fault_p99", float(last["latency_us"]["p99"]), "us")
    context.say(f"events {last['events']} refused {last['refused']} faults {last['faults']}")
    check(last["evicted_pages"] > (50 if context.is_sanitized else 1000), f"hardly anything was evicted: {last}")
    check(last["refused"]["corrupt"] == 0, f"corrupt pages: {last['refused']}")
    # A fork shares pages with the child, and what is shared cannot be taken: that is for the peak, not for long. A sanitized daemon
    # is too slow to keep up with the verifier.
    # And where a child comes every 50 ms, pages are shared most of the time: the figures above tell.
    if context.is_sanitized or "--fork-every-ms" in more:
        return
    check(sampler.typical() <= limit * 1.10, f"typically at {sampler.typical() / limit:.2f} of the limit")
    empty(context, daemon)
    daemon.stop()


def empty(context, daemon):
    """After its last client nothing is held."""
    until(lambda: not daemon.stat()["clients"], 20, "stat shows no client any more")
    totals = until(lambda: (lambda t: t if t["stored_pages"] == 0 and t["pool_bytes"] <= MIB else None)(daemon.stat()["totals"]), 20,
                   f"the pool empties: {daemon.stat()['totals']}")
    context.figure("pool_at_the_end", totals["pool_bytes"], "bytes")


@case
def flat_out(context):
    run(context, 512, 60 if context.long else 12)


@case
def accesses_only(context):
    """Threads that do nothing but read and write: the plain path, as fast as it goes."""
    run(context, 256, 30 if context.long else 5, "--no-fork", "--no-maps", "--no-heap", "--no-threads", "--no-helpers", "--no-direct")


@case
def mappings(context):
    run(context, 128, 30 if context.long else 5, "--no-fork", "--no-heap")


@case
def forks(context):
    run(context, 96, 30 if context.long else 6, "--fork-every-ms", "50", share=0.4)


@case
def raw_codec(context):
    run(context, 128, 5, daemon_options=("--codec", "raw"), share=0.4)


@case
def zbud_pool(context):
    run(context, 128, 5, daemon_options=("--pool", "zbud"), share=0.4)


@case
def pools_side_by_side(context):
    """Programs of one daemon that asked for different pools and codecs."""
    context.need_uzswap()
    daemon = context.daemon()
    megabytes, seconds = 64, 20 if context.long else 4
    asked = {("lz4", "zsmalloc"): (), ("lz4", "zbud"): ("--pool", "zbud"), ("raw", "zsmalloc"): ("--codec", "raw")}
    programs = {kept: context.run_uzswap(arguments(context, megabytes, seconds, "--threads", 2), options=options, socket=daemon.socket,
                                         limit=megabytes * MIB // 2)
                for kept, options in asked.items()}
    for kept, program in programs.items():
        pid = harness.target_of(program)
        record = until(lambda p=pid: (lambda r: r if r.get("stored_pages", 0) > 50 else None)(daemon.client(p) or {}), 60,
                       f"pages are stored\n{program.tail()}")
        check((record["codec"], record["pool"]) == kept, f"asked for {kept}: {record['codec']}, {record['pool']}")
        # Objects have the length of pages, or not; same-filled pages have none.
        length = record["pool_bytes"] / max(1, record["stored_pages"] - record["same_filled_pages"])
        check((length > 3800) == (kept[0] == "raw"), f"{kept}: {length} bytes an object")
    for program in programs.values():
        outcome = program.wait(seconds * 10 + 300)
        check(outcome.status == 0, f"verifier: status {outcome.status}\n{program.tail(60)}")
    empty(context, daemon)
    daemon.stop()


@case
def daemon_leaves(context):
    """SIGTERM to a daemon with clients: every page comes home first, and the programs go on without it."""
    context.need_uzswap()
    daemon = context.daemon()
    megabytes, seconds = 200, 20 if context.long else 12
    programs = [context.run_uzswap(arguments(context, megabytes, seconds, "--threads", 3, *more), socket=daemon.socket, limit=megabytes * MIB // 3)
                for more in ((), ("--no-fork",))]
    pids = [harness.target_of(p) for p in programs]
    for pid, program in zip(pids, programs):
        until(lambda p=pid: (daemon.client(p) or {}).get("stored_pages", 0) > (500 if context.is_sanitized else 5000), 60, f"pages of {pid} are stored\n{program.tail()}")
    stored = {pid: daemon.client(pid)["stored_pages"] for pid in pids}
    begin = time.monotonic()
    daemon.signal(signal.SIGTERM)
    outcome = daemon.wait(60)
    context.figure("leaving", time.monotonic() - begin, "seconds")
    context.say(f"stored pages when asked to leave: {stored}")
    for pid, program in zip(pids, programs):
        check(program.running(), f"the program ended with the daemon\n{program.tail(60)}")
    daemon.check_words()
    check(outcome.status == 0, f"uzswapd ended with {outcome.status}\n{daemon.tail()}")
    check(not os.path.exists(daemon.socket), "the socket file is still there")
    for program in programs:
        until(lambda p=program: not p.running(), seconds * 5 + 60, f"the verifier ends\n{program.where()}")
        check(program.wait(10).status == 0, f"verifier: status {program.outcome.status}\n{program.tail(60)}")


@case
def killed_client(context):
    """A client that dies by SIGKILL, in the middle of everything, frees all that it had; the others notice nothing."""
    context.need_uzswap()
    daemon = context.daemon()
    stays = context.run_uzswap(arguments(context, 64, 10, "--threads", 2), socket=daemon.socket, limit=32 * MIB)
    for round_ in range(4 if context.long else 2):
        dies = context.run_uzswap(arguments(context, 128, 100, "--threads", 4), socket=daemon.socket, limit=40 * MIB)
        pid = harness.target_of(dies)
        until(lambda p=pid: (daemon.client(p) or {}).get("stored_pages", 0) > (500 if context.is_sanitized else 10000), 60, f"its pages are stored\n{dies.tail()}")
        os.kill(pid, signal.SIGKILL)
        status = dies.wait(20).status
        check(status in (-signal.SIGKILL, 128 + signal.SIGKILL), f"uzswap run reports {status} for a program that got SIGKILL")
        until(lambda p=pid: daemon.client(p) is None, 10, "the daemon forgets it")
        gone = [c for c in daemon.stat(include_gone=True)["clients"] if c["pid"] == pid]
        check(gone and gone[0]["state"] == "gone", f"include_gone does not show it: {gone}")
        check(stays.running() or stays.wait(1).status == 0, f"another client suffered in round {round_}\n{stays.tail(60)}")
    check(stays.wait(120).status == 0, f"another client suffered\n{stays.tail(60)}")
    empty(context, daemon)
    daemon.stop()


@case
def pool_exhausted(context):
    """A pool that is full: pages stay resident and are counted; nothing is lost, and the program goes on."""
    context.need_uzswap()
    daemon = context.daemon("--pool-limit", "8M")
    program = context.run_uzswap(arguments(context, 96, 6, "--no-fork"), socket=daemon.socket, limit=24 * MIB)
    pid = harness.target_of(program)
    seen = {"pool": 0, "refused": 0, "limit": 0}

    def watch():
        if program.running():
            stat = daemon.stat()
            seen["pool"] = max(seen["pool"], stat["totals"]["pool_bytes"])
            seen["limit"] = stat["totals"]["pool_limit_bytes"]
            seen["refused"] = max([seen["refused"]] + [c["refused"]["no_memory"] for c in stat["clients"] if c["pid"] == pid])
        return not program.running()
    until(watch, 120, f"the verifier ends\n{program.where()}", poll=0.1)
    check(program.wait(10).status == 0, f"verifier: status {program.outcome.status}\n{program.tail(60)}")
    context.figure("greatest_pool", seen["pool"], "bytes")
    context.figure("refused_no_memory", seen["refused"], "pages")
    check(seen["limit"] == 8 * MIB, f"stat says pool limit {seen['limit']}")
    check(seen["refused"] > 0, "no refusal was counted as no_memory")
    check(seen["pool"] <= 8 * MIB * 1.05, f"the pool grew to {seen['pool']}")
    daemon.stop()


if __name__ == "__main__":
    harness.run(__doc__)
