"""A pre-forking program: workers that read what their parent built, and send back what they made of it. argv: megabytes."""
import hashlib
import multiprocessing
import random
import sys

WORKERS = 4
table = []


def work(part):
    """Reads a quarter of the parent's table, and builds something of its own beside it."""
    made = {}
    digest = hashlib.sha256()
    for turn in range(3):
        for number in range(part, len(table), WORKERS):
            row = table[number]
            made[number] = (row[::2], turn)
            digest.update(row)
        for number in sorted(made):
            digest.update(made[number][0])
    return digest.hexdigest()


def main():
    rng = random.Random(7)
    table.extend(rng.randbytes(300) + b"row %d " % number * 20 for number in range(int(sys.argv[1]) << 20 >> 9))
    multiprocessing.set_start_method("fork")
    for _ in range(2):
        with multiprocessing.Pool(WORKERS) as pool:
            for line in pool.map(work, range(WORKERS)):
                print(line)
    print(hashlib.sha256(b"".join(table)).hexdigest())


main()
