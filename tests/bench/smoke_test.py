#!/usr/bin/python3
"""Runs each command of uzswap-bench at a tiny size: it must end, say what it measured, and leave no swap behind.

The argument names the part. Exit status 77 is a skip; the last line says why.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

BENCH = os.environ["UZSWAP_BENCH"]
SMALL = ["--megabytes", "8", "--rounds", "2"]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def swaps():
    with open("/proc/swaps", encoding="ascii") as file:
        return file.read().splitlines()[1:]


def swap_state():
    """Everything that a peer's set-up changes."""
    state = {"swaps": swaps(), "devices": sorted(d for d in os.listdir("/sys/block") if d.startswith("zram")),
             "files": sorted(f for f in os.listdir("/var/tmp") if f.startswith("uzswap-bench"))}
    zswap = "/sys/module/zswap/parameters"
    for name in os.listdir(zswap) if os.path.isdir(zswap) else []:
        with open(f"{zswap}/{name}", encoding="ascii") as file:
            state[name] = file.read()
    return state


def run(arguments, status=0):
    done = subprocess.run([BENCH, *arguments], capture_output=True, text=True, timeout=170)
    assert done.returncode == status, f"{arguments}: status {done.returncode}, wanted {status}\n{done.stdout}{done.stderr}"
    return done


def run_json(arguments):
    document = json.loads(run([*arguments, "--json"]).stdout)
    assert document["schema"] == "uzswap.bench/1" and document["command"] == arguments[0]
    for part in ("date", "machine", "versions", "options", "peer", "results"):
        assert part in document, part
    for name, figure in document["results"].items():
        assert set(figure) == {"ours", "peer", "ratio"}, name
        both = figure["ours"] is not None and figure["peer"]
        assert (figure["ratio"] is not None) == bool(both), (name, figure)
    return document


def need_uzswap():
    """Skips where this machine cannot run a program under uzswap."""
    cli = os.path.normpath(os.path.join(os.path.dirname(BENCH), "..", "uzswap", "uzswap"))
    if not os.path.exists(cli):
        skip("the uzswap program is not built")
    # Not "can the main job run?" but "can it start?": what fails after this is a failure.
    if subprocess.run([cli, "doctor"], capture_output=True, check=False, timeout=60).returncode != 0:
        skip("this machine lacks something; run `uzswap doctor`")


def peer():
    """The peer to compare with here: zram if it can be had."""
    return "zram" if os.geteuid() == 0 and not swaps() and os.path.isdir("/sys/block/zram0") else "none"


def test_pool():
    document = run_json(["pool", "--megabytes", "16", "--rounds", "2"])
    results = {name: figure["ours"] for name, figure in document["results"].items()}
    assert 0.8 < results["density"] <= 1, results
    assert results["effective_ratio"] > 1, results
    assert results["zbud_density"] < results["density"], results
    # Goals are for large pools on a quiet machine; compaction must be worth something anywhere.
    assert results["turnover_density_uncompacted"] - 0.01 < results["turnover_density"] <= 1, results
    assert results["shrunk_density_uncompacted"] + 0.1 < results["shrunk_density"] <= 1, results
    assert results["zbud_shrunk_density_uncompacted"] + 0.1 < results["zbud_shrunk_density"] <= 1, results
    for name in ("object_store_ns", "object_load_ns", "object_free_ns", "object_miss_ns", "object_store_to_memcpy",
                 "object_store_to_memcpy_and_miss", "object_load_to_memcpy_and_miss", "load_alone_p999_us",
                 "drain_gib_per_cpu_second", "index_handle_bytes_per_page", "index_drop_64gib_us", "index_clone_16gib_us",
                 "recovery_ns_per_object"):
        assert results[name] > 0, (name, results)
    for name, goal in document["details"]["goals"].items():
        reached = results[name] >= goal["goal"] if goal["is"] == ">=" else results[name] <= goal["goal"]
        assert goal["reached"] == reached, (name, goal, results[name])
    table = run(["pool", "--megabytes", "4", "--rounds", "1"]).stdout
    assert "density" in table and "[goal" in table
    with tempfile.NamedTemporaryFile(suffix=".pages") as pages:
        pages.write(bytes(range(256)) * 16 * 50)
        pages.flush()
        document = run_json(["pool", "--megabytes", "4", "--rounds", "1", "--pages", pages.name])
        assert document["options"]["pages"] == os.path.basename(pages.name)
        assert document["results"]["effective_ratio"]["ours"] > 5


def test_arguments():
    for arguments in (["fault", "--megabytes", "0"], ["fault", "--against", "nothing"], ["fault", "--bogus"], ["bogus"],
                      [], ["fault", "--pages", "/nonexistent"]):
        assert run(arguments, status=2).stderr, arguments
    assert "whole raw pages" in run(["pool", "--pages", os.path.abspath(__file__)], status=1).stderr
    assert "/nonexistent" in run(["fault", "--megabytes", "4", "--uzswap", "/nonexistent"], status=1).stderr
    run(["--help"])
    run(["--version"])


def test_peers():
    if swaps():
        done = run(["evict", *SMALL, "--no-ours", "--against", "zram"], status=1)
        assert "swap is on already" in done.stderr
        skip("swap is on; nothing but the refusal could be tested")
    before = swap_state()
    missing = []
    for kind in ("zram", "zswap"):
        for command in ("fault", "evict", "pool"):
            document = run_json([command, "--megabytes", "8", "--rounds", "2", "--no-ours", "--against", kind])
            if not document["peer"]["available"]:
                assert document["peer"]["reason"], document["peer"]
                assert all(figure["peer"] is None for figure in document["results"].values())
                missing.append(f"{kind}: {document['peer']['reason']}")
                break
            assert any(figure["peer"] for figure in document["results"].values()), document["results"]
        assert swap_state() == before, (kind, before, swap_state())
    if len(missing) == 2:
        skip("; ".join(missing))


def test_interrupted():
    if peer() == "none":
        skip("no zram swap can be had here (root, no swap on, zram in the kernel)")
    before = swap_state()
    kinds = ["zram", "zswap"] if os.path.isdir("/sys/module/zswap") else ["zram"]
    for how, kind in [(h, k) for h in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) for k in kinds]:
        bench = subprocess.Popen([BENCH, "fault", "--no-ours", "--against", kind, "--megabytes", "16", "--rounds", "1000"],
                                 stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: swaps(), "swap on")
            bench.send_signal(how)
            assert bench.wait(timeout=60) == -how
            # Killed, it can't wait for the keeper; otherwise all is undone when it ends.
            if how == signal.SIGKILL:
                wait_for(lambda: swap_state() == before, "swap off after SIGKILL")
            assert swap_state() == before, (how, kind, before, swap_state())
        finally:
            bench.kill()
            bench.wait()


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


def test_fault():
    need_uzswap()
    against = peer()
    before = swap_state()
    document = run_json(["fault", *SMALL, "--against", against])
    for name in ("random_p50_us", "random_p99_us", "sequential_us_per_page"):
        figure = document["results"][name]
        assert figure["ours"] > 0, (name, figure)
        assert against == "none" or figure["ratio"] > 0, (name, figure)
    assert swap_state() == before


def test_evict():
    need_uzswap()
    document = run_json(["evict", *SMALL, "--against", peer()])
    for name in ("evict_wall_us_per_page", "evict_cpu_us_per_page", "evict_daemon_cpu_us_per_page"):
        assert document["results"][name]["ours"] > 0, name


def test_native():
    need_uzswap()
    document = run_json(["native", "--rounds", "1", "--milliseconds", "100"])
    for name in ("malloc_operations_per_second", "mmap_operations_per_second"):
        # The ratio wanted is 0.97; in 100 ms of a busy machine only a disaster can be told from noise.
        assert document["results"][name]["ratio"] > 0.3, document["results"][name]


if __name__ == "__main__":
    globals()["test_" + sys.argv[1]]()
