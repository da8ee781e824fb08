#!/usr/bin/python3
"""Shows that the verifier finds what it is made to find: it damages its own memory as a bad daemon would."""
import os
import subprocess
import sys

VERIFIER = os.environ["UZSWAP_VERIFIER"]
# What is planted, the exit status, and words that the report must hold.
CASES = [
    ("zero", 1, ["verdict  ZERO", "expected 0x", "generation"]),
    ("stale", 1, ["verdict  STALE", "found    0x"]),
    ("swap", 1, ["verdict  SWAPPED"]),
    ("flip", 1, ["1 words wrong"]),
    ("fault", 1, ["SIGSEGV", "unit "]),
    ("hang", 3, ["HANG: worker 0", "wchan"]),
]


def main():
    failed = 0
    for plant, status, words in CASES:
        command = [VERIFIER, "--seconds", "20", "--megabytes", "16", "--seed", "12345", "--no-fork", "--hang-seconds", "3",
                   "--plant", plant]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        missing = [w for w in words + ["replay: verifier ", "--seed 12345"] if w not in done.stderr]
        # A flip is found where the bit was, in one word; the others show in the first word that is read.
        if done.returncode != status or missing:
            failed += 1
            print(f"FAIL {plant}: status {done.returncode} (wanted {status}), missing {missing}\n{' '.join(command)}\n{done.stderr}")
        else:
            print(f"ok   {plant}: {done.stderr.splitlines()[1]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
