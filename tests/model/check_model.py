#!/usr/bin/python3
"""The protocol's models, searched completely by spin: that they hold, and that each defence taken out of them is missed."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = "events OPERATIONS=1 WRITES=1"
CHANGES = "crash WITH_UNMAP WITH_REMOVE WITH_WRITE"
TWO_MOVE = "PLACES=3 SECOND_MAPPING"
CRASH_AND_MOVES = f"crash {TWO_MOVE} WITH_REMAP EVICTIONS=0 OPERATIONS=1"

HOLDS = [
    SMALL,
    f"{SMALL} WITH_MISREPORT",
    "events OPERATIONS=2 WRITES=1 EVICTIONS=1",
    f"remap {TWO_MOVE}",
    "remap EVICTIONS=1",
    "crash",
    "crash CRASHES=2",
    CRASH_AND_MOVES,
]
# Minutes, and up to 3 GB.
HOLDS_LONG = [
    "events",
    f"{SMALL} WITH_OVERRULE",
    f"remap {TWO_MOVE} EVICTIONS=1 WORKERS=1",
    "crash PLACES=2 WITH_REMAP",
    f"{CHANGES} OPERATIONS=2",
]
# What is taken out, and the model that misses it.
DEFENCES = {
    "NO_GATE": "events",
    "NO_SEQUENCE_CHECK": "events",
    "NO_PROOF": "events",
    "NO_DOOM": SMALL,
    "NO_BUSY_SLOT": SMALL,
    "NO_RESULT_RESET": SMALL,
    "NO_SECOND_LOOKUP": SMALL,
    "NO_LOCK_OVER_READ": SMALL,
    "NO_LOCK_OVER_COPY": SMALL,
    "NO_WAKE": SMALL,
    "NO_COLLECTION": f"{SMALL} WITH_MISREPORT",
    "NO_UNREGISTER_OF_STAGING": "events WITH_OVERRULE",
    "NO_MOVES": f"remap {TWO_MOVE}",
    "NO_KEPT_MOVES": CRASH_AND_MOVES,
    "NO_STEPS_WITH_MOVES": CRASH_AND_MOVES,
    "NO_SUBSTEP": "crash PLACES=2 WITH_REMAP",
    "NO_REPLAY": CHANGES,
    "NO_OVERRULE_AT_RESTART": "crash",
    "NO_WAKE_AT_RESTART": "crash",
    "NO_HANDLE_IN_FILLING": "crash",
}
# What does not hold, and is known not to: see README.md.
GAPS = [f"remap {TWO_MOVE} WITH_OVERTAKING"]


class Skip(Exception):
    pass


def search(model, directory, memory):
    """What the search found: "" if all states are right, else the first error. Raises where it could not look at all of them."""
    name, *defines = model.split()
    for tool in ("spin", "gcc"):
        if not shutil.which(tool):
            raise Skip(f"{tool} is not installed")

    def run(*command):
        return subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    said = run("spin", "-a", *(f"-D{define}" for define in defines), os.path.join(HERE, f"{name}.pml"))
    if not os.path.exists(os.path.join(directory, "pan.c")):
        raise RuntimeError(f"spin -a: {said}")
    said = run("gcc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={memory}", "-o", "pan", "pan.c")
    if not os.path.exists(os.path.join(directory, "pan")):
        raise RuntimeError(f"gcc: {said}")
    out = run("./pan", "-m1000000")
    errors = re.search(r"errors: (\d+)", out)
    if errors and errors.group(1) != "0":
        return re.search(r"pan:\d+: (.*)", out).group(1) + "\n" + run("./pan", "-r", f"{name}.pml.trail")[-6000:]
    if not errors or "out of memory" in out or "depth too small" in out or "Search not completed" in out:
        raise RuntimeError(f"the search was not complete:\n{out[-2000:]}")
    return ""


def main():
    long = bool(os.environ.get("UZSWAP_TEST_LONG"))
    failed = False
    cases = [(model, True) for model in HOLDS + (HOLDS_LONG if long else [])]
    cases += [(f"{model} {defence}", False) for defence, model in DEFENCES.items()] + [(model, False) for model in GAPS]
    for model, holds in cases:
        with tempfile.TemporaryDirectory(prefix="uzswap-model.") as directory:
            began = time.monotonic()
            try:
                error = search(model, directory, 4000 if long else 1000)
            except Skip as reason:
                print(f"skip: {reason}")
                return 77
            except RuntimeError as reason:
                error, holds = str(reason), None
        right = holds is not None and (error == "") == holds
        failed |= not right
        print(f"{'ok  ' if right else 'FAIL'} {model}: {'holds' if not error else error.splitlines()[0][:100]} ({time.monotonic() - began:.1f} s)", flush=True)
        if not right:
            print(error if error else "it should be missed, and is not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
