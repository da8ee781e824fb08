#!/usr/bin/python3
"""A program that is attached but never reclaimed runs at native speed, since none of its memory is watched: no fault and no change of it reaches the daemon.
Its speed beside a native one's is said, and is measured by `uzswap-bench native`."""
import statistics

import harness
from harness import case, check


def compare(context, what):
    context.need_uzswap()
    daemon = context.daemon()
    rounds, seconds = (12, 2.0) if context.long else (3, 0.3)
    rates = {"native": [], "attached": []}

    def once(kind):
        argv = [context.churner, what, seconds]
        program = context.start(argv) if kind == "native" else context.run_uzswap(argv, socket=daemon.socket)
        check(program.wait(60).status == 0, program.tail())
        rates[kind].append(float(program.stdout()))
    for turn in range(rounds):
        # In turn first, so that a machine that slows down or warms up favours neither.
        for kind in ("native", "attached") if turn % 2 == 0 else ("attached", "native"):
            once(kind)
    # What disturbs a run makes it slower, never faster: the best of each is the least disturbed.
    best = {kind: max(values) for kind, values in rates.items()}
    context.figure("native_best", best["native"], "per_second")
    context.figure("attached_best", best["attached"], "per_second")
    context.figure("best_attached_of_native", best["attached"] / best["native"], "ratio")
    context.figure("median_attached_of_native", statistics.median(rates["attached"]) / statistics.median(rates["native"]), "ratio")
    gone = [c for c in daemon.stat(include_gone=True)["clients"] if c["comm"] == "churner"]
    check(len(gone) == rounds, f"{len(gone)} of {rounds} runs were attached")
    for client in gone:
        check(client["evicted_pages"] == 0, f"pages were evicted without a limit: {client}")
        check(not any(client["events"].values()), f"its memory was watched: {client}")
        check(not any(value for name, value in client["faults"].items() if isinstance(value, int)), f"it was held up by faults: {client}")
    daemon.stop()


@case
def malloc(context):
    compare(context, "malloc")


@case
def mmap(context):
    compare(context, "mmap")


if __name__ == "__main__":
    harness.run(__doc__)
