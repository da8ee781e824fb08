"""Realistic, seeded content for redis, and a small client: pipelined commands, replies, a digest of the key space.

What is stored: JSON sessions, hashes of users, articles of words, lists of events, and blobs that nothing compresses
(about an eighth of the bytes). No value repeats; redis' memory full of it compresses about 1.7:1 by lz4, a page at a time.
"""
import ctypes
import ctypes.util
import hashlib
import itertools
import json
import random
import re
import socket

from harness import check, until


class Content:
    """The commands that fill a redis with about `megabytes`; the same for the same seed."""

    def __init__(self, megabytes, seed):
        self.megabytes, self.seed = megabytes, seed
        words = random.Random(7)
        syllables = [c + v for c in "b d f g h k l m n p r s t v w br st tr ch".split() for v in ("a", "e", "i", "o", "u", "ai", "er", "on")]
        self.vocabulary = ["".join(words.choices(syllables, k=words.choice((1, 2, 2, 3, 3, 4)))) for _ in range(3000)]
        self.weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(len(self.vocabulary))))

    def sentence(self, rng, count):
        return " ".join(rng.choices(self.vocabulary, cum_weights=self.weights, k=count))

    def commands(self):
        """Yields (key, command arguments)."""
        rng = random.Random(self.seed)
        wanted, made, number = self.megabytes << 20, 0, 0
        while made < wanted:
            number += 1
            kind = rng.random()
            if kind < 0.40:
                key = f"session:{rng.getrandbits(48):012x}:{number}"
                value = self.session(rng, number)
                command = ("SET", key, value)
            elif kind < 0.68:
                key = f"user:{number}"
                command = ("HSET", key, *self.user(rng, number))
            elif kind < 0.81:
                key = f"article:{number}"
                text = ". ".join(self.sentence(rng, rng.randint(6, 18)).capitalize() for _ in range(rng.randint(8, 40)))
                command = ("SET", key, text)
            elif kind < 0.963:
                key = f"events:{number}"
                command = ("RPUSH", key, *(f"{1700000000 + number * 7 + i}|{rng.choice(('view', 'click', 'buy', 'back'))}|/shop/"
                                           f"{rng.choice(self.vocabulary)}/{rng.randint(1, 99999)}" for i in range(rng.randint(8, 60))))
            else:
                key = f"blob:{number}"
                command = ("SET", key, rng.randbytes(rng.randint(1000, 4500)))
            made += sum(len(part) for part in command) + 64
            yield key, command

    def session(self, rng, number):
        return json.dumps({
            "id": f"{rng.getrandbits(128):032x}", "user": number, "ip": ".".join(str(rng.randint(1, 254)) for _ in range(4)),
            "agent": rng.choice(("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "curl/7.88.1")),
            "created": 1700000000 + rng.randint(0, 10**7), "expires": 1710000000 + rng.randint(0, 10**7),
            "csrf": f"{rng.getrandbits(80):020x}", "locale": rng.choice(("en", "de", "fr", "ja", "pt")),
            "cart": [{"sku": f"{rng.choice(self.vocabulary)}-{rng.randint(100, 9999)}", "n": rng.randint(1, 5),
                      "price": round(rng.uniform(1, 400), 2)} for _ in range(rng.randint(0, 6))],
            "seen": [rng.choice(self.vocabulary) for _ in range(rng.randint(3, 20))]})

    def user(self, rng, number):
        name = f"{rng.choice(self.vocabulary)} {rng.choice(self.vocabulary)}".title()
        fields = {"name": name, "mail": f"{name.split()[0].lower()}{number}@example.org", "born": str(rng.randint(1940, 2010)),
                  "city": rng.choice(self.vocabulary).capitalize(), "token": f"{rng.getrandbits(96):024x}",
                  "score": str(rng.random()), "about": self.sentence(rng, rng.randint(5, 40)),
                  "last_login": str(1700000000 + rng.randint(0, 10**7))}
        return list(itertools.chain.from_iterable(fields.items()))


def encode(command):
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Client:
    def __init__(self, path, seconds=120):
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.settimeout(seconds)
        self.peer.connect(path)
        self.file = self.peer.makefile("rb", 1 << 20)

    def close(self):
        self.file.close()
        self.peer.close()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"-":
            raise RuntimeError(f"redis: {rest.decode()}")
        return int(rest) if kind == b":" else rest

    def __call__(self, *command):
        self.peer.sendall(encode(command))
        return self.reply()

    def pipeline(self, commands, batch=200):
        """Yields the replies, in order; at most `batch` commands are under way."""
        commands = iter(commands)
        while chunk := list(itertools.islice(commands, batch)):
            self.peer.sendall(b"".join(map(encode, chunk)))
            for _ in chunk:
                yield self.reply()

    def fill(self, content):
        """The list of keys. Small batches: replies of writes are short, so neither side ever waits for the other's buffer."""
        keys, commands = [], []
        for key, command in content.commands():
            keys.append(key)
            commands.append(command)
            if len(commands) == 100:
                list(self.pipeline(commands))
                commands.clear()
        list(self.pipeline(commands))
        return keys

    def digest(self, keys, seed=None):
        """Of the values of all keys, whatever the order in which they are read (shuffled by `seed`), as hex."""
        keys = list(keys)
        if seed is not None:
            random.Random(seed).shuffle(keys)
        how = {"session": "GET", "article": "GET", "blob": "GET", "user": "HGETALL", "events": "LRANGE"}
        total = 0
        reads = ((how[key.split(":")[0]], key) + (("0", "-1") if key.startswith("events") else ()) for key in keys)
        for key, value in zip(keys, self.pipeline(reads, 64)):
            if isinstance(value, list) and key.startswith("user"):
                value = [part for pair in sorted(zip(value[::2], value[1::2])) for part in pair]
            parts = value if isinstance(value, list) else [value if value is not None else b"(nil)"]
            one = hashlib.blake2b(key.encode() + b"\0" + b"\0".join(b"%d:%b" % (len(p), p) for p in parts), digest_size=16)
            total = (total + int.from_bytes(one.digest(), "little")) % (1 << 128)
        return f"{total:032x}"

    def info(self, field):
        text = self("INFO").decode()
        return re.search(rf"^{field}:(.*)\r?$", text, re.M).group(1).strip()


def lz4_ratio(pid, pages=2000, seed=1):
    """How lz4 shrinks the pages of a process' private memory, a page at a time; None without the library."""
    name = ctypes.util.find_library("lz4")
    if not name:
        return None
    lz4 = ctypes.CDLL(name)
    places = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            parts = line.split()
            if parts[1].startswith("rw") and (len(parts) == 5 or parts[-1] == "[heap]" or parts[-1].startswith("[anon")):
                start, end = (int(x, 16) for x in parts[0].split("-"))
                places += range(start, end, 4096)
    random.Random(seed).shuffle(places)
    out = ctypes.create_string_buffer(8192)
    raw = small = 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
        for place in places:
            pagemap.seek(place // 4096 * 8)
            if not pagemap.read(8)[7] & 0x80:
                continue
            memory.seek(place)
            page = memory.read(4096)
            if page.count(0) == 4096:
                continue
            size = lz4.LZ4_compress_default(page, out, 4096, 8192)
            raw, small = raw + 4096, small + (size if size < 4096 else 4096)
            if raw >= pages * 4096:
                break
    return raw / small if small else None


def arguments(context, name, *more):
    directory = context.tmp / name
    directory.mkdir(exist_ok=True)
    socket = directory / "redis.sock"
    return ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no",
            "--dir", str(directory), "--daemonize", "no", *more], str(socket)


def connect(program, socket):
    def attempt():
        check(program.running(), f"redis-server ended early\n{program.tail()}\n{program.stdout().decode(errors='replace')[-2000:]}")
        try:
            client = Client(socket)
            client("PING")
            return client
        except (OSError, RuntimeError):
            return None
    return until(attempt, 60, f"redis-server answers\n{program.tail()}")
