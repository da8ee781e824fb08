"""The demonstration of tools/quickstart: redis, natively and then with half of its memory, and every value compared."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

# The data and the client of the tests on redis: what is shown is what is tested.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "e2e"))
from redis_data import Client, Content  # noqa: E402

SEED = 1
SETTLE_SECONDS = 20


class Failure(Exception):
    """What went wrong, for the person who started this."""


def mib(count):
    return f"{count / 2**20:.0f} MiB"


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise Failure(f"process {pid} has no memory any more")


class Server:
    """A redis-server on a socket file in `directory`, with no port, no file and nothing else of the machine's."""

    def __init__(self, directory, name, prefix=(), env=None):
        self.socket = os.path.join(directory, name + ".sock")
        self.log = os.path.join(directory, name + ".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*prefix, "redis-server", "--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700",
                 "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", directory],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        self.redis = self._connect()
        self.pid = int(self.redis.info("process_id"))

    def _connect(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failure(f"redis-server ended at once (exit status {self.process.returncode}):\n{self.said()}")
            try:
                return Client(self.socket)
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise Failure(f"redis-server did not start within 30 seconds:\n{self.said()}")

    def said(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read().strip()

    def stop(self):
        """Ends it, whatever it does."""
        if getattr(self, "redis", None):
            self.redis.close()
        for how, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            if self.process.poll() is None:
                self.process.send_signal(how)
                try:
                    self.process.wait(seconds)
                except subprocess.TimeoutExpired:
                    pass


class Uzswap:
    """The programs of the build tree, and a daemon of our own on a socket in `directory`."""

    def __init__(self, build, directory):
        self.cli = os.path.join(build, "tools", "uzswap", "uzswap")
        self.env = {"UZSWAP_SOCKET": os.path.join(directory, "uzswapd.sock")}
        self.log = os.path.join(directory, "uzswapd.log")
        ready, theirs = os.pipe()
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(
                [os.path.join(build, "daemon", "uzswapd"), "--socket", self.env["UZSWAP_SOCKET"], "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=[theirs])
        os.close(theirs)
        with os.fdopen(ready, "rb") as pipe:
            if not pipe.readline():
                self.daemon.wait(10)
                raise Failure("uzswapd did not start:\n" + self.said())

    def said(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read().strip()

    def stat(self, pid):
        done = subprocess.run([self.cli, "stat", "--json", str(pid)], env={**os.environ, **self.env}, check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
        if done.returncode != 0:
            raise Failure(f"uzswap stat {pid} failed: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        client = next((client for client in report["clients"] if client["pid"] == pid), None)
        if client is None:
            raise Failure(f"uzswapd does not know redis-server (pid {pid}): its agent did not attach")
        return client, report["totals"]

    def settle(self, pid, limit):
        """Waits until the process is down at its limit. Returns the last statistics whatever comes."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            client, totals = self.stat(pid)
            if client["resident_bytes"] <= limit * 1.01 or time.monotonic() > deadline:
                return client, totals
            time.sleep(0.2)

    def stop(self):
        """After its clients have ended."""
        self.daemon.terminate()
        try:
            self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()


def native(directory, content):
    """Returns the resident bytes, the keys, and the digest of all values."""
    server = Server(directory, "native")
    try:
        keys = server.redis.fill(content)
        return resident_bytes(server.pid), keys, server.redis.digest(keys)
    finally:
        server.stop()


def limited(directory, build, content, limit):
    """Returns the resident bytes and the statistics before everything is read back, those after it, and the digest."""
    uzswap = Uzswap(build, directory)
    server = None
    try:
        server = Server(directory, "limited", (uzswap.cli, "run", "--limit", str(limit), "--"), uzswap.env)
        keys = server.redis.fill(content)
        client, totals = uzswap.settle(server.pid, limit)
        before = {"resident": resident_bytes(server.pid), "client": client, "totals": totals}
        digest = server.redis.digest(keys)
        after, _ = uzswap.settle(server.pid, limit)
        return before, after, digest
    except (Failure, OSError, RuntimeError) as error:
        raise Failure(f"{error}\nuzswapd said:\n{uzswap.said()}") from error
    finally:
        if server:
            server.stop()
        uzswap.stop()


def show(native_resident, limit, count, before, after):
    resident, pool = before["resident"], before["totals"]["pool_bytes"]
    client = before["client"]
    rows = [
        ("", "native", "under uzswap", ""),
        ("resident memory of redis-server", mib(native_resident), mib(resident), f"limit: {mib(limit)}"),
        ("compressed, in uzswapd's pool", "-", mib(pool),
         f"holds {mib(client['stored_bytes'])} of pages, {client['stored_bytes'] / max(pool, 1):.2f} : 1"),
        ("together", mib(native_resident), mib(resident + pool), f"{(resident + pool) / native_resident:.0%} of native"),
    ]
    print()
    for first, *numbers, note in rows:
        print(f"  {first:34}" + "".join(f"{number:>14}" for number in numbers) + f"   {note}")
    faults = after["faults"]["stored"] - client["faults"]["stored"]
    print()
    print(f"  keys read back                    {count:>14,}   all, and every value equal (same digest as natively)")
    print(f"  faults served meanwhile           {faults:>14,}   pages fetched from the pool because redis touched them")
    print(f"  time that such a fault took       {after['latency_us']['p50']:>11.0f} us   median in uzswapd "
          f"(99 of 100 within {after['latency_us']['p99']:.0f} us)")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="the build directory")
    parser.add_argument("--megabytes", type=int, default=100, help="how much to store (default: %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    content = Content(args.megabytes, SEED)
    directory = tempfile.mkdtemp(prefix="uzswap-demo.")
    try:
        print(f"1. redis-server without uzswap: storing {args.megabytes} MiB of sessions, users, articles, events and pictures ...",
              flush=True)
        native_resident, keys, native_digest = native(directory, content)
        limit = native_resident // 2 // 2**20 * 2**20
        print(f"2. the same under `uzswap run --limit {limit >> 20}M -- redis-server ...`, then reading every value back ...",
              flush=True)
        before, after, digest = limited(directory, os.path.abspath(args.build), content, limit)
        if digest != native_digest:
            raise Failure("Values came back changed. That must never be: please report it.\n"
                          f"digest natively {native_digest}, under uzswap {digest}; {json.dumps(after)}")
        show(native_resident, limit, len(keys), before, after)
        if before["resident"] > limit * 1.1:
            raise Failure(f"redis stayed at {mib(before['resident'])}, above its limit of {mib(limit)}.")
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
