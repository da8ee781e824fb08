#!/usr/bin/python3
"""The daemon is killed, again and again, while programs work: its successors go on, and no program loses a word."""
import os
import random
import shutil
import signal
import struct
import time

import fd_store
import harness
import wire
from deaths import ask, client_of, finish, keeper_of, kill, kill_while, supervised, verifier
from harness import MIB, Failed, case, check, until


def parent_of(pid):
    fields = harness.read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


@case
def one_kill(context):
    """Pages are stored, the daemon dies, a successor has them all; clients, limits and figures go on."""
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 128, 6, "--no-fork")
    pid = harness.target_of(program)
    before = until(lambda: (lambda c: c if c and c["stored_pages"] > 2000 else None)(client_of(daemon, pid)), 60, f"pages are stored\n{program.tail()}")
    first = ask(daemon)["daemon"]["pid"]
    began = time.monotonic()
    kill(first)
    stat = until(lambda: (lambda s: s if s["daemon"]["pid"] != first else None)(ask(daemon)), 60, f"a successor\n{daemon.tail(60)}")
    context.figure("pause", time.monotonic() - began, "seconds")
    after = next((c for c in stat["clients"] if c["pid"] == pid), None)
    check(after, f"the successor does not know the client\n{daemon.tail(60)}")
    check(after["limit_bytes"] == before["limit_bytes"] and after["id"] == before["id"] and after["comm"] == before["comm"], f"{before}\n{after}")
    check(after["evicted_pages"] >= before["evicted_pages"], f"counters went back: {before}\n{after}")
    check(stat["daemon"]["restarts"] == 1, f"{stat['daemon']}")
    finish(context, daemon, [program], 1)


@case
def killed_all_the_time(context):
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 256, 60 if context.long else 15)
    finish(context, daemon, [program], kill_while(context, daemon, [program], 0.5))


@case
def forks(context):
    """A fork each 50 ms: children whose context exists in the daemon's descriptor table alone."""
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 64, 40 if context.long else 10, "--fork-every-ms", "50", share=0.5)
    finish(context, daemon, [program], kill_while(context, daemon, [program], 0.3))


@case
def several_clients(context):
    context.need_uzswap()
    daemon = supervised(context, "--pool", "zbud")
    programs = [verifier(context, daemon, 64, 30 if context.long else 8, "--threads", "3") for _ in range(3)]
    finish(context, daemon, programs, kill_while(context, daemon, programs, 0.4))


@case
def killed_in_recovery(context):
    """Each successor is killed as soon as it is there, a few times in a row."""
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 128, 30 if context.long else 10)
    pid = harness.target_of(program)
    until(lambda: (client_of(daemon, pid) or {}).get("stored_pages", 0) > 1000, 60, f"pages are stored\n{program.tail()}")
    chance = random.Random(context.seed)
    kills = 0
    while program.running():
        first = ask(daemon)["daemon"]["pid"]
        kill(first)
        for _ in range(4):
            # Successors by their name, long before they answer anybody. A keeper has that name, too, for the moment before it takes its
            # own; it must not die with its daemon (then nobody has the descriptors).
            found = [p for p in harness.descendants(daemon.pid) if harness.comm(p) == "uzswapd" and p != first]
            found = [p for p in found if parent_of(p) not in found]
            time.sleep(chance.uniform(0, 0.01))
            for other in found:
                if harness.comm(other) == "uzswapd":
                    kill(other)
        kills += 1
        ask(daemon)
        time.sleep(0.3)
    finish(context, daemon, [program], kills)


@case
def keeper_killed(context):
    """The keeper is replaced; then the daemon's death is survived as before."""
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 96, 8)
    harness.target_of(program)
    pid = ask(daemon)["daemon"]["pid"]
    keeper = keeper_of(pid)
    kill(keeper)
    until(lambda: keeper_of(pid) != keeper, 10, f"another keeper\n{daemon.tail()}")
    kill(pid)
    until(lambda: ask(daemon)["daemon"]["pid"] != pid, 60, f"a successor\n{daemon.tail(60)}")
    finish(context, daemon, [program], 1)


@case
def without_supervisor(context):
    """A daemon that nobody watches has a successor all the same."""
    context.need_uzswap()
    daemon = context.daemon()
    program = verifier(context, daemon, 96, 6)
    pid = harness.target_of(program)
    until(lambda: (client_of(daemon, pid) or {}).get("stored_pages", 0) > 1000, 60, f"pages are stored\n{program.tail()}")
    kill(daemon.pid)
    successor = until(lambda: (lambda d: d if d["pid"] != daemon.pid else None)(ask(daemon)["daemon"]), 60, f"a successor\n{daemon.tail(60)}")["pid"]
    check(program.wait(200).status == 0, f"verifier\n{program.tail(60)}")
    os.kill(successor, signal.SIGTERM)
    until(lambda: not harness.alive(successor), 30, f"the successor ends\n{daemon.tail()}")
    check(not os.path.exists(daemon.socket), "the socket file is still there")


@case
def embedded(context):
    """`uzswap run` with a daemon of its own: it may be killed, the program and its report go on."""
    context.need_uzswap()
    argv = [context.verifier, "--megabytes", 96, "--seconds", 8, "--seed", context.seed]
    program = context.run_uzswap(argv, limit=32 * MIB, options=("--report",))
    harness.target_of(program)

    def daemon():
        return next((p for p in harness.descendants(program.pid) if harness.comm(p) == "uzswapd"), None)
    for _ in range(3):
        first = until(daemon, 20, f"a daemon\n{program.tail()}")
        time.sleep(1)
        kill(first)
        until(lambda f=first: daemon() not in (None, f), 20, f"a successor of {first}\n{program.tail()}")
    check(program.wait(200).status == 0, f"verifier\n{program.tail(60)}")
    check("stored" in program.stderr() or "memory" in program.stderr(), f"no report\n{program.tail()}")


@case
def everything_killed(context):
    """Supervisor, daemon and keeper at once; the service manager's store has the descriptors. Without forks: see H22."""
    context.need_uzswap()
    store = fd_store.FdStore(context.tmp)
    path = str(context.tmp / "stored.sock")

    def start():
        return store.start(lambda argv, **more: context.start(argv, name="uzswapd", **more), [context.uzswapd, "--supervise", "--socket", path],
                           env=context.env(NOTIFY_SOCKET=store.path))
    daemon = start()
    check(store.ready.wait(20), f"no READY=1\n{daemon.tail()}")
    argv = [context.verifier, "--megabytes", 96, "--seconds", 30 if context.long else 8, "--seed", context.seed, "--no-fork"]
    program = context.run_uzswap(argv, socket=path, limit=32 * MIB)
    pid = harness.target_of(program)
    starts = 0
    while program.running():
        time.sleep(0.7)
        daemon.kill()
        # As a service manager does: nobody comes before all are gone, for a thread in the kernel may still be at a page.
        until(lambda d=daemon: not harness.session(d.pid), 20, "all processes of the daemon are gone", poll=0.001)
        daemon = start()
        check(store.ready.wait(20), f"no READY=1\n{daemon.tail(40)}")
        starts += 1
        check(not program.running() or any(c["pid"] == pid for c in wire.control(path, "stat")["clients"]) or not program.running(),
              f"the client is gone\n{daemon.tail(40)}")
    check(program.wait(100).status == 0, f"verifier\n{program.tail(60)}\n{daemon.tail(40)}")
    context.figure("starts_survived", starts, "count")
    check(starts >= 3, f"only {starts} starts")
    until(lambda: not wire.control(path, "stat")["clients"], 20, "stat shows no client any more")
    until(lambda: not [n for n in store.names() if n.startswith("c") and n != "clients"], 10, f"the client's leave the store: {store.names()}")
    daemon.signal(signal.SIGTERM)
    check(daemon.wait(30).status == 0, f"{daemon.tail()}")
    until(lambda: not store.names(), 10, f"the store is emptied: {store.names()}")


@case
def upgraded(context):
    """`uzswap upgrade`: another program goes on; one that can't read the state is refused, and nothing changes."""
    context.need_uzswap()
    daemon = supervised(context)
    program = verifier(context, daemon, 96, 8)
    pid = harness.target_of(program)
    until(lambda: (client_of(daemon, pid) or {}).get("stored_pages", 0) > 1000, 60, f"pages are stored\n{program.tail()}")

    def upgrade(path):
        asked = context.start([context.uzswap, "upgrade", path, "--socket", daemon.socket])
        return asked.wait(90).status, asked.stdout().decode() + asked.stderr()
    for wrong in ("/bin/true/nothing", "/bin/false"):
        before = ask(daemon)["daemon"]["pid"]
        status, words = upgrade(wrong)
        check(status == 1 and words, f"{wrong}: {status} {words!r}")
        check(ask(daemon)["daemon"]["pid"] == before, f"{wrong} made the daemon end")
    other = context.tmp / "uzswapd-new"
    shutil.copy(context.uzswapd, other)
    before = ask(daemon)["daemon"]["pid"]
    status, words = upgrade(other)
    check(status == 0, f"{status} {words!r}\n{daemon.tail(40)}")
    after = ask(daemon)["daemon"]["pid"]
    check(after != before and os.readlink(f"/proc/{after}/exe") == str(other), f"{after} runs {os.readlink(f'/proc/{after}/exe')}")
    # A program that says yes and then does not take over: the one that ran before goes on.
    liar = context.tmp / "liar"
    liar.write_text("#!/bin/sh\n[ \"$1\" = --check-state ]\n")
    liar.chmod(0o755)
    context.start([context.uzswap, "upgrade", liar, "--socket", daemon.socket]).wait(90)
    last = ask(daemon)["daemon"]["pid"]
    check(last != after and os.readlink(f"/proc/{last}/exe") == str(other), f"{last} runs {os.readlink(f'/proc/{last}/exe')}")
    # A table of a layout from the future is refused, before and after.
    with os.fdopen(os.open(table_of(last), os.O_RDWR), "r+b", buffering=0) as table:
        layout = os.pread(table.fileno(), 4, 8)
        os.pwrite(table.fileno(), struct.pack("<I", 99), 8)
        status, words = upgrade(context.uzswapd)
        check(status == 1 and "layout" in words, f"{status} {words!r}")
        os.pwrite(table.fileno(), layout, 8)
    finish(context, daemon, [program], 2)


def table_of(pid):
    """The path of the client table's descriptor of a daemon."""
    for entry in os.listdir(f"/proc/{pid}/fd"):
        if "memfd:uzswap-clients" in os.readlink(f"/proc/{pid}/fd/{entry}"):
            return f"/proc/{pid}/fd/{entry}"
    raise Failed("no client table")


if __name__ == "__main__":
    harness.run(__doc__)
