#!/usr/bin/python3
"""The daemon dies at each step that publishes something (tests/crash); a successor goes on, and no program loses a word."""
import os
import random
import re
import time

import harness
from harness import case, check, until
from deaths import ask, finish, kill, verifier

# Points of the way that every run takes. What is not named is found in the sources, and must be in one of these lists.
EVERYDAY = [
    "zero_fill.before_copy", "fill.before_copy", "fill.copied", "fill.published", "load.located",
    "evict.chosen", "evict.registered", "evict.begun", "evict.posted", "evict.moved", "evict.stored", "evict.published", "evict.finished",
    "threads.listed", "register.maps_read", "register.asked", "event.taken", "event.applied",
    "fork.settled", "fork.cloned", "fork.published", "index.unlinked", "index.clone", "index.node_made", "index.node_linked", "index.slot_dropped",
    "frames.tagged", "frames.untagged", "handles.taken", "frames.populated", "frames.punched", "store.placed", "store.published", "release.unreferenced", "release.retired",
    "release.freed", "unmap.dropped", "remap.emptied", "remap.moved", "rekey.published", "ranges.begun", "ranges.written",
]
# Passed once, or a few times, in a daemon's life.
ONCE = ["keeper.started", "attach.welcomed", "attach.published"]
# Points of a successor: the first daemon is killed from outside.
RECOVERY = ["estate.recovered", "resume.overruled", "resume.settled", "resume.finished", "heirs.resumed"]
# Rare at the verifier's hands: reached in some runs, and no failure if not.
RARE = ["give.taken", "give.copied", "settle.stored", "replay.applied", "compact.published", "migrate.object", "migrate.published", "move.copied", "compact.copied", "object.copied", "object.published",
        "recover.orphan_freed", "recover.span_cleared"]
# Of a state that no crash leaves, but damage does: tests/fuzz has these.
DAMAGE = ["recover.branch_cut", "recover.entry_dropped", "recover.slot_lost"]


def some(context, points):
    """All of them in the long form; in the short one a third, by the seed."""
    return points if context.long else points[context.seed % 3::3]


def points_in(context):
    """All names in the sources, where those are there."""
    top = harness.HERE.parent.parent
    found = set()
    for folder in ("daemon", "libzpool"):
        for path in (top / folder).rglob("*.cc"):
            found |= set(re.findall(r'ZP_PAUSE_POINT\("([^"]+)"\)', path.read_text()))
    return found


def die_at(context, point, nth, kills_before=0):
    marker = context.tmp / f"died-{point}-{nth}"
    context.uzswapd = os.environ.get("UZSWAPD_CRASH", str(context.build / "tests/crash/uzswapd_crash"))
    daemon = harness.Daemon(context, "--supervise", env_more={"UZSWAP_TEST_CRASH": f"{point}:{nth}:{marker}"}, wait=point != "keeper.started")
    if point == "keeper.started":
        # Before the first readiness: nobody is attached, nothing is held, and it simply ends.
        status = daemon.wait(20).status
        check(status == 128 + 9, f"the supervisor ended with {status}")
        return True
    program = verifier(context, daemon, 48, 3 if not context.long else 8, "--fork-every-ms", "100", share=0.4)
    kills = 0
    chance = random.Random(context.seed)
    while program.running() and not (marker.exists() and kills >= kills_before):
        time.sleep(0.05)
        if kills < kills_before and not marker.exists() and chance.random() < 0.2:
            kill(ask(daemon)["daemon"]["pid"])
            kills += 1
    reached = marker.exists()
    context.say(f"{point} {nth}: {'died there' if reached else 'not reached'}, {kills} more kills")
    # One that dies while it takes over is not counted.
    finish(context, daemon, [program], kills + (1 if reached and point not in RECOVERY and not point.startswith("recover") else 0))
    return reached


@case
def known(context):
    """Every pause point of the sources is in a list here."""
    listed = set(EVERYDAY) | set(ONCE) | set(RECOVERY) | set(RARE) | set(DAMAGE)
    there = points_in(context)
    check(there - listed == set() or not there, f"not listed: {sorted(there - listed)}")
    check(listed - there == set() or not there, f"not in the sources: {sorted(listed - there)}")


@case
def everyday(context):
    context.need_uzswap()
    for point in some(context, EVERYDAY):
        for nth in (1, 17, 60) if context.long else (random.Random(f"{context.seed}{point}").choice((1, 2, 5)),):
            reached = die_at(context, point, nth)
            check(reached or nth > 5, f"{point} was never reached")
            context.end_case()
    for point in ONCE:
        check(die_at(context, point, 1), f"{point} was never reached")
        context.end_case()


@case
def recovery(context):
    context.need_uzswap()
    for point in RECOVERY:
        for nth in (1, 2) if context.long else (1,):
            check(die_at(context, point, nth, kills_before=4) or nth > 1, f"{point} was never reached")
            context.end_case()


@case
def rare(context):
    context.need_uzswap()
    for point in some(context, RARE):
        die_at(context, point, 1, kills_before=6 if point.startswith("re") else 0)
        context.end_case()


if __name__ == "__main__":
    harness.run(__doc__)
