#!/usr/bin/python3
"""redis-server under half of its native resident size: it stays there, and every value reads back."""
import json
import subprocess
import time

import harness
from harness import MIB, case, check, memory_of, until
from redis_data import Content, arguments, connect, lz4_ratio


def fill_native(context, content):
    """(keys, digest, resident size) of a native run."""
    argv, socket = arguments(context, "native")
    program = context.start(argv, name="redis-native")
    client = connect(program, socket)
    begin = time.monotonic()
    keys = client.fill(content)
    context.figure("native_fill", time.monotonic() - begin, "seconds")
    begin = time.monotonic()
    digest = client.digest(keys, context.seed)
    context.figure("native_read", time.monotonic() - begin, "seconds")
    check(client.digest(keys, context.seed + 1) == digest, "the digest depends on the order of reading")
    resident = memory_of(program.pid)[0]
    context.figure("keys", len(keys), "count")
    context.figure("native_resident", resident, "bytes")
    ratio = lz4_ratio(program.pid)
    if ratio:
        context.figure("native_pages_lz4", ratio, "ratio")
    client.close()
    program.kill()
    return keys, digest, resident


def start_limited(context, limit, content, *more):
    argv, socket = arguments(context, "limited", *more)
    program = context.run_uzswap(argv, limit=limit)
    client = connect(program, socket)
    pid = int(client.info("process_id"))
    sampler = harness.Sampler(pid, interval=0.05)
    begin = time.monotonic()
    keys = client.fill(content)
    context.figure("limited_fill", time.monotonic() - begin, "seconds")
    return program, client, pid, sampler, keys


def cli_stat(context, socket, pid):
    done = subprocess.run([context.uzswap, "stat", "--json"], env=context.env(UZSWAP_SOCKET=socket), capture_output=True, timeout=60,
                          check=False)
    check(done.returncode == 0, f"uzswap stat --json: status {done.returncode}: {done.stderr.decode()}")
    stat = json.loads(done.stdout)
    check(stat["schema"] == "uzswap.stat/1", f"schema {stat['schema']}")
    records = [c for c in stat["clients"] if c["pid"] == pid]
    check(len(records) == 1, f"stat shows redis (pid {pid}) {len(records)} times: {done.stdout.decode()[:2000]}")
    return stat, records[0]


@case
def half_of_native(context):
    context.need_program("redis-server")
    content = Content(300 if context.long else 120, context.seed)
    keys, digest, native = fill_native(context, content)
    context.need_uzswap()

    limit = native // 2 // 4096 * 4096
    program, client, pid, sampler, limited_keys = start_limited(context, limit, content)
    context.figure("limit", limit, "bytes")
    until(lambda: memory_of(pid)[0] <= limit * 1.02, 10, "resident comes down to the limit after the fill")
    settled = sampler.now()

    # Every value, twice, in different orders: what was just read pushes out what comes next.
    for turn in range(2):
        begin = time.monotonic()
        found = client.digest(limited_keys, context.seed + turn)
        context.figure(f"limited_read_{turn + 1}", time.monotonic() - begin, "seconds")
        check(limited_keys == keys and found == digest, f"digest {found} of {len(limited_keys)} keys, native {digest} of {len(keys)}")
    done_reading = sampler.now()
    # And it stays there when nothing is asked of it.
    until(lambda: sampler.now() > done_reading + 2, 10, "two seconds of rest")
    sampler.stop()

    socket = harness.embedded_socket(program)
    stat, record = cli_stat(context, socket, pid)
    resident, pool = memory_of(pid)[0], stat["totals"]["pool_bytes"]
    context.figure("peak_resident_in_fill", sampler.peak(), "bytes")
    context.figure("peak_resident_settled", sampler.peak(settled), "bytes")
    context.figure("typical_resident_settled", sampler.typical(settled), "bytes")
    context.figure("resident", resident, "bytes")
    context.figure("pool", pool, "bytes")
    context.figure("metadata", stat["totals"]["metadata_bytes"], "bytes")
    context.figure("stored", record["stored_bytes"], "bytes")
    context.figure("ratio", float(record["ratio"]), "ratio")
    context.figure("resident_and_pool_of_native", (resident + pool) / native, "ratio")
    context.figure("faults_stored", record["faults"]["stored"], "count")
    context.figure("fault_p50", float(record["latency_us"]["p50"]), "us")
    context.figure("fault_p99", float(record["latency_us"]["p99"]), "us")
    context.say(f"refused {record['refused']}")

    check(sampler.peak(settled) <= limit * 1.10,
          f"resident reached {sampler.peak(settled) / limit:.2f} of the limit after settling; at "
          f"{[(round(t, 2), rss // MIB) for t, rss, _ in sampler.series() if t >= settled and rss > limit * 1.1][:10]} (s, MiB)")
    check(resident + pool <= 0.85 * native, f"resident {resident} + pool {pool} = {(resident + pool) / native:.3f} of native {native}")
    check(record["limit_bytes"] == limit, f"stat says limit {record['limit_bytes']}, given {limit}")
    check(record["refused"]["corrupt"] == 0, f"corrupt pages: {record['refused']}")

    client.peer.sendall(b"*1\r\n$8\r\nSHUTDOWN\r\n")
    outcome = program.wait(60)
    check(outcome.status == 0, f"uzswap run ended with status {outcome.status}\n{program.tail()}")


@case
def saved_in_the_background(context):
    """A forked child reads everything while most of it is evicted, and the parent is written to."""
    context.need_program("redis-server")
    content = Content(160 if context.long else 60, context.seed + 1)
    keys, digest, native = fill_native(context, content)
    context.need_uzswap()
    limit = native // 2 // 4096 * 4096
    program, client, pid, sampler, limited_keys = start_limited(context, limit, content)
    check(limited_keys == keys, "other keys")
    until(lambda: memory_of(pid)[0] <= limit * 1.02, 10, "resident comes down to the limit after the fill")
    begin = time.monotonic()
    client("BGSAVE")
    extra = 0
    while client.info("rdb_bgsave_in_progress") == "1":
        # New keys alone, so that the old ones' digest stays what it was.
        for _ in range(50):
            client("SET", f"later:{extra}", "x" * 500)
            extra += 1
        check(time.monotonic() < begin + 120, "BGSAVE does not end")
    context.figure("save", time.monotonic() - begin, "seconds")
    check(client.info("rdb_last_bgsave_status") == "ok", f"BGSAVE failed\n{program.stdout().decode(errors='replace')[-3000:]}")
    found = client.digest(keys, context.seed)
    check(found == digest, f"after BGSAVE: digest {found}, native {digest}")
    sampler.stop()
    client.peer.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
    check(program.wait(60).status == 0, f"uzswap run ended with {program.outcome.status}\n{program.tail()}")

    argv, socket = arguments(context, "native2", "--dbfilename", "dump.rdb")
    argv[argv.index("--dir") + 1] = str(context.tmp / "limited")
    loader = context.start(argv, name="redis-loads")
    client = connect(loader, socket)
    until(lambda: client.info("loading") == "0", 120, "the RDB is loaded")
    loaded = client.digest(keys, context.seed)
    check(loaded == digest, f"the RDB that the child wrote holds other values: digest {loaded}, native {digest}")
    client.close()


if __name__ == "__main__":
    harness.run(__doc__)
