"""sqlite3 in memory: tables, indexes, joins, updates, twice. Prints digests; argument: size in units of about a MiB."""
import hashlib
import random
import sqlite3
import sys


def digest(label, rows):
    total = hashlib.blake2b(digest_size=16)
    count = 0
    for row in rows:
        total.update(repr(row).encode())
        count += 1
    print(label, count, total.hexdigest(), flush=True)


def main():
    size = int(sys.argv[1])
    rng = random.Random(6)
    words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(3000)]
    db = sqlite3.connect(":memory:")
    db.executescript("""
        create table person(id integer primary key, name text, town text, born int, note text);
        create table sale(id integer primary key, person int, what text, price real, proof blob);
    """)
    people = size * 900
    db.executemany("insert into person values(?,?,?,?,?)",
                   ((i, " ".join(rng.choices(words, k=2)), rng.choice(words), rng.randint(1930, 2015), " ".join(rng.choices(words, k=30)))
                    for i in range(people)))
    db.executemany("insert into sale values(?,?,?,?,?)",
                   ((i, rng.randrange(people), rng.choice(words), round(rng.uniform(1, 900), 2), rng.randbytes(rng.randint(16, 400)))
                    for i in range(people * 2)))
    db.executescript("create index by_name on person(name); create index by_person on sale(person); create index by_what on sale(what, price);")
    for turn in (1, 2):
        digest(f"towns {turn}", db.execute("""select town, count(*), round(sum(price), 2), max(born) from person join sale on
                                          sale.person = person.id group by town order by town"""))
        digest(f"dear {turn}", db.execute("select * from sale order by price desc, id limit 20000"))
        db.execute("update person set note = note || ' ' || upper(name), born = born + 1 where id % 3 = ?", (turn,))
        db.execute("delete from sale where id % 11 = ?", (turn,))
        digest(f"random {turn}", (db.execute("select name, note, born from person where id = ?", (rng.randrange(people),)).fetchone()
                                  for _ in range(size * 250)))
        digest(f"whole {turn}", db.execute("select * from person order by id"))
    digest("check", db.execute("pragma integrity_check"))


if __name__ == "__main__":
    main()
