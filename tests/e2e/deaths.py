"""What tests of a daemon's death share: asking one that may just be dying, killing it, and what must be true at the end."""
import os
import random
import signal
import threading
import time

import harness
import wire
from harness import MIB, check, until


def ask(daemon, seconds=60, **fields):
    """stat, asked again where a daemon died in the middle of the answer."""
    def answer():
        try:
            return daemon.stat(**fields)
        except (OSError, wire.Closed, AssertionError):
            return None
    return until(answer, seconds, f"a daemon answers\n{daemon.tail(40)}")


def client_of(daemon, pid):
    return next((c for c in ask(daemon)["clients"] if c["pid"] == pid), None)


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def keeper_of(pid):
    """The keeper that belongs to the daemon `pid`, which is its child."""
    return until(lambda: next((p for p in harness.descendants(pid) if harness.comm(p) == "uzswap-keeper"), None), 10, f"{pid} has a keeper")


def supervised(context, *options):
    return context.daemon("--supervise", *options)


def verifier(context, daemon, megabytes, seconds, *more, share=0.3):
    """A verifier under the daemon."""
    argv = [context.verifier, "--megabytes", megabytes, "--seconds", seconds, "--seed", context.seed, *more]
    return context.run_uzswap(argv, socket=daemon.socket, limit=int(megabytes * MIB * share))


def finish(context, daemon, programs, kills, evicted_at_least=1000):
    """All programs ended well, the daemon is the last of `kills` successors, and holds nothing any more."""
    for program in programs:
        status = program.wait(300).status
        check(status == 0, f"{program.name}: status {status}\n{program.tail(60)}\n  daemon:\n{daemon.tail(60)}")
    stat = ask(daemon)
    context.figure("kills_survived", stat["daemon"]["restarts"], "count")
    check(stat["daemon"]["restarts"] >= kills, f"{stat['daemon']['restarts']} restarts after {kills} kills\n{daemon.tail(40)}")
    totals = until(lambda: (lambda t: t if t["clients"] == 0 and t["stored_pages"] == 0 and t["pool_bytes"] <= MIB else None)(ask(daemon)["totals"]),
                   20, f"the pool empties: {ask(daemon)['totals']}\n{daemon.tail(40)}")
    context.figure("pool_at_the_end", totals["pool_bytes"], "bytes")
    gone = ask(daemon, include_gone=True)["clients"]
    context.say(f"evicted {sum(c['evicted_pages'] for c in gone)} faults {sum(c['faults']['stored'] for c in gone)} corrupt {sum(c['refused']['corrupt'] for c in gone)}")
    check("cannot be taken over" not in daemon.stderr(), f"a client was given up\n{daemon.tail(60)}")
    daemon.stop()


def kill_once(daemon):
    """Kills the daemon, and returns when a successor answers."""
    pid = ask(daemon)["daemon"]["pid"]
    kill(pid)
    until(lambda: ask(daemon)["daemon"]["pid"] != pid, 60, f"a successor of {pid}\n{daemon.tail(60)}")


class Killer(threading.Thread):
    """Kills the daemon at random times, `every` seconds apart on average, until it is told to stop."""

    def __init__(self, context, daemon, every):
        super().__init__(daemon=True)
        self.daemon_, self.every, self.chance = daemon, every, random.Random(context.seed)
        self.kills, self.error, self.ended = 0, None, threading.Event()
        self.start()

    def run(self):
        try:
            while not self.ended.wait(self.chance.uniform(0, 2 * self.every)):
                kill_once(self.daemon_)
                self.kills += 1
        except Exception as error:  # told to who waits for us
            self.error = error

    def stop(self):
        """How often it killed."""
        self.ended.set()
        self.join(120)
        if self.error:
            raise self.error
        return self.kills


def kill_while(context, daemon, programs, every):
    """Kills the daemon at random times, `every` seconds apart on average, until the programs have ended. How often."""
    chance = random.Random(context.seed)
    kills = 0
    deadline = time.monotonic() + 600
    while any(p.running() for p in programs):
        check(time.monotonic() < deadline, "".join(f"{p.name} does not end\n{p.where()}{p.tail()}" for p in programs) + daemon.tail(60))
        check(daemon.running(), f"the supervisor ended\n{daemon.tail(60)}")
        time.sleep(chance.uniform(0, 2 * every))
        kill_once(daemon)
        kills += 1
    return kills
