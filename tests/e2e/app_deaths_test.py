#!/usr/bin/python3
"""The daemon is killed, again and again, while real programs work: they make what they make natively."""
import getpass
import sys

import harness
from deaths import Killer, ask, finish, supervised
from harness import case, check, memory_of, until
from programs import APPS, java_argv, memcached_session, native
from redis_data import Content, arguments, connect

SHARE = 0.45


def only_in_the_long_form(context):
    if not context.long:
        raise harness.Skip("in the long form; others like it are in this one")


def compare(context, argv, seconds=300, **more):
    """Native, then under a limit and a daemon that dies every .4 s: the same output."""
    expected, before = native(context, argv, None, seconds, **more)
    context.need_uzswap()
    daemon = supervised(context)
    program = context.run_uzswap(argv, socket=daemon.socket, limit=int(before.peak_rss * SHARE) // 4096 * 4096, **more)
    killer = Killer(context, daemon, 0.4)
    outcome = program.wait(seconds * 3)
    kills = killer.stop()
    check(outcome.status == 0, f"it ended with {outcome.status}\n{program.tail()}\n  daemon:\n{daemon.tail(60)}")
    got = program.stdout()
    check(got == expected, f"other output than native.\n  native: {expected!r}\n  limited: {got!r}\n{program.tail()}")
    finish(context, daemon, [], kills)


@case
def python(context):
    only_in_the_long_form(context)
    compare(context, [sys.executable, APPS / "structures.py", 300 if context.long else 60], env=context.env(PYTHONHASHSEED=0))


@case
def python_multiprocessing(context):
    """Children that are served by contexts of their own, which successors go on with."""
    compare(context, [sys.executable, APPS / "pool.py", 120 if context.long else 40])


@case
def node(context):
    only_in_the_long_form(context)
    compare(context, [context.need_program("node"), "--max-old-space-size=4096", APPS / "objects.js", 150 if context.long else 30])


@case
def java(context):
    compare(context, java_argv(context, 250 if context.long else 60))


def at_native_share(context, argv, name, session):
    """The limit for a server: a share of what `session` leaves resident natively."""
    program = context.start(argv, name=name)
    session(program)
    resident = memory_of(program.pid)[0]
    program.kill()
    return int(resident * SHARE) // 4096 * 4096


@case
def redis(context):
    """Filled, saved by a forked child, appended to a file that another child rewrites, and read, under a daemon that dies."""
    context.need_program("redis-server")
    content = Content(150 if context.long else 40, context.seed)
    found = {}

    def session(program, socket):
        client = connect(program, socket)
        found["keys"] = client.fill(content)
        found["digest"] = client.digest(found["keys"], context.seed)
        return client
    argv, socket = arguments(context, "native")
    limit = at_native_share(context, argv, "redis-native", lambda program: session(program, socket).close())
    expected = dict(found)

    context.need_uzswap()
    daemon = supervised(context)
    argv, socket = arguments(context, "limited", "--appendonly", "yes", "--appendfsync", "no")
    program = context.run_uzswap(argv, socket=daemon.socket, limit=limit)
    connect(program, socket).close()
    killer = Killer(context, daemon, 0.4)
    client = session(program, socket)
    check(found == expected, f"other values than natively: {found['digest']}, {expected['digest']}")
    for turn, (command, running, outcome) in enumerate([("BGSAVE", "rdb_bgsave_in_progress", "rdb_last_bgsave_status"),
                                                        ("BGREWRITEAOF", "aof_rewrite_in_progress", "aof_last_bgrewrite_status")]):
        client(command)
        until(lambda state=running: client.info(state) == "0", 120, f"{command} ends")
        check(client.info(outcome) == "ok", f"{command} failed\n{program.stdout().decode(errors='replace')[-3000:]}")
        check(client.digest(found["keys"], context.seed + turn) == expected["digest"], f"other values after {command}")
    kills = killer.stop()
    context.figure("kills", kills, "count")
    client.peer.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
    check(program.wait(60).status == 0, f"uzswap run ended with {program.outcome.status}\n{program.tail()}")
    finish(context, daemon, [], kills)

    # What the children wrote is what they should have seen.
    for name, options in (("rdb", ("--dbfilename", "dump.rdb")), ("aof", ("--appendonly", "yes"))):
        argv, socket = arguments(context, f"loads-{name}", *options)
        argv[argv.index("--dir") + 1] = str(context.tmp / "limited")
        loader = context.start(argv, name=f"redis-loads-{name}")
        client = connect(loader, socket)
        until(lambda c=client: c.info("loading") == "0", 120, f"the {name} file is loaded")
        check(client.digest(found["keys"], context.seed) == expected["digest"], f"the {name} file holds other values")
        client.close()
        loader.kill()


@case
def memcached(context):
    only_in_the_long_form(context)
    binary = context.need_program("memcached")
    count = 200000 if context.long else 30000

    def argv(name):
        return [binary, "-u", getpass.getuser(), "-m", "2048", "-t", "2", "-s", context.tmp / name]
    limit = at_native_share(context, argv("native.sock"), "memcached-native",
                            lambda program: memcached_session(context, program, str(context.tmp / "native.sock"), count))
    context.need_uzswap()
    daemon = supervised(context)
    program = context.run_uzswap(argv("limited.sock"), socket=daemon.socket, limit=limit)
    killer = Killer(context, daemon, 0.4)
    memcached_session(context, program, str(context.tmp / "limited.sock"), count)
    kills = killer.stop()
    context.figure("kills", kills, "count")
    check(program.running(), f"memcached ended\n{program.tail()}")
    check(sum(client["evicted_pages"] for client in ask(daemon)["clients"]) > 1000, "hardly anything was evicted")
    program.kill()
    finish(context, daemon, [], kills)


if __name__ == "__main__":
    harness.run(__doc__)
