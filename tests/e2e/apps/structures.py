"""Large structures in python, worked on twice. Prints digests; argument: size in units of about a MiB."""
import hashlib
import random
import sys


def digest(label, items):
    total = hashlib.blake2b(digest_size=16)
    for item in items:
        total.update(repr(item).encode())
    print(label, total.hexdigest(), flush=True)


def main():
    size = int(sys.argv[1])
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(5000)]
    # Records that point to each other, big integers, floats, bytes, sets.
    records = []
    for number in range(size * 600):
        records.append({"id": number, "name": " ".join(rng.choices(words, k=4)), "score": rng.random(),
                        "big": rng.getrandbits(300), "tags": {rng.choice(words) for _ in range(3)},
                        "near": [rng.randrange(number + 1) for _ in range(4)]})
    blobs = [rng.randbytes(rng.randint(100, 3000)) for _ in range(size * 60)]
    digest("built", (r["name"] for r in records))

    index = {}
    for turn in (1, 2):
        # A walk along the pointers, a sort, a rewrite of every record: sequential and random in turn.
        place, seen = len(records) - 1, 0.0
        for step in range(len(records) // 3):
            record = records[place]
            seen += record["score"] * (step % 7)
            place = (record["near"][step % 4] * 31 + record["big"] + turn) % len(records)
        digest(f"walk {turn}", [round(seen, 6), place])
        records.sort(key=lambda r: (r["name"], r["id"]))
        for record in records:
            record["big"] = record["big"] * 3 + turn
            record["name"] = record["name"][::-1] + str(turn)
            index.setdefault(record["name"][:3], []).append(record["id"])
        digest(f"sorted {turn}", ((r["name"], r["big"], sorted(r["tags"]), r["score"]) for r in records))
        blobs = [b[turn:] + b[:turn] for b in reversed(blobs)]
        digest(f"blobs {turn}", blobs)
    digest("index", ((k, len(v), sum(v)) for k, v in sorted(index.items())))


if __name__ == "__main__":
    main()
