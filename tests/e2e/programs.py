"""Real programs for the tests: how they are started, and what they should make."""
import random
import socket

import harness
from harness import HERE, check, until

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


def java_argv(context, size, *options):
    javac = context.need_program("javac")
    classes = context.tmp / "classes"
    if not classes.exists():
        compiler = context.start([javac, "-d", classes, APPS / "Objects.java"])
        check(compiler.wait(120).status == 0, f"javac failed\n{compiler.tail()}")
    return [context.need_program("java"), "-Xmx1500m", *options, "-cp", classes, "Objects", size]


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
