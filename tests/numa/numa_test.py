#!/usr/bin/python3
"""libzpool and the daemon on machines with several NUMA nodes: guests under qemu (README.md).

The exit status is 77, with the reason, where no guest can be run.
"""
import os
import re

import guest
import harness
from harness import case, check
from topologies import TOPOLOGIES


def store_test(context, topology):
    """All of numa_store_test.cc on that topology."""
    program = os.environ.get("UZSWAP_NUMA_STORE_TEST", str(context.build / "tests/numa/numa_store_test"))
    nodes = ",".join(map(str, TOPOLOGIES[topology].nodes_with_memory()))
    outcome = guest.run(context, topology, f"UZSWAP_TEST_NODES={nodes} exec numa_store_test --gtest_color=no\n", [program], seconds=300)
    context.figure("time", outcome.seconds, "seconds")
    check(outcome.status == 0, f"numa_store_test: status {outcome.status}")
    check(re.search(r"\[  PASSED  \] [1-9]", outcome.console), "numa_store_test ran no test")


@case
def store_on_one_node(context):
    store_test(context, "plain")


@case
def store_on_two_nodes_and_a_slow_one(context):
    store_test(context, "two-and-slow")


@case
def store_on_nodes_with_a_hole(context):
    store_test(context, "holes")


# A daemon, a program that knows each word of its memory at half of its size, and once a second where the daemon's frames lie. That
# and the daemon's words are shown last, so that they don't stand between the lines of others. Without the verifier's helpers: on
# emulated CPUs they leave the workers no time.
PROGRAM_UNDER_A_LIMIT = """
export UZSWAP_SOCKET=/run/uzswapd.sock UZSWAP_AGENT=/bin/libuzswap-agent.so
mkfifo /run/ready
uzswapd --ready-fd 3 3>/run/ready 2>/run/daemon.log &
daemon=$!
read ready </run/ready
echo "ready: $ready"
taskset {cpus} uzswap run --limit {limit}M --report -- verifier --megabytes {megabytes} --seconds {seconds} --threads 4 --seed {seed} --no-helpers &
program=$!
while kill -0 $program 2>/dev/null; do
{each_second}
  grep uzswap-frames /proc/$daemon/numa_maps >>/run/frames
  sleep 1
done
wait $program
echo "program: $?"
kill $daemon
wait $daemon
echo "daemon: $?"
cat /run/daemon.log /run/frames
"""

# All of node 0 but a few megabytes, by a file that prefers it.
FILL_NODE_0 = """
mkdir /filler
mount -t tmpfs -o mpol=prefer:0,size=100% tmpfs /filler
free=$(awk '/MemFree/ {print int($4 / 1024)}' /sys/devices/system/node/node0/meminfo)
dd if=/dev/zero of=/filler/file bs=1M count=$((free - 8)) 2>/dev/null
"""


def program_under_a_limit(context, before="", cpus=3, each_second=""):
    """Runs the verifier on two nodes, on the CPUs of that mask; returns the console and for each node the most frames that the daemon
    had there."""
    megabytes, seconds = 16, 60 if context.long else 10
    script = before + PROGRAM_UNDER_A_LIMIT.format(megabytes=megabytes, limit=megabytes // 2, seconds=seconds, seed=context.seed,
                                                     cpus=cpus, each_second=each_second)
    outcome = guest.run(context, "two", script, [context.uzswapd, context.uzswap, context.agent, context.verifier], seconds=180 + 5 * seconds)
    context.figure("time", outcome.seconds, "seconds")

    def said(pattern):
        return re.findall(pattern, outcome.console, re.M)
    check(outcome.status == 0, f"the script: status {outcome.status}")
    check(said("^ready: 1$"), "uzswapd did not say that it is ready")
    check(said("^program: 0$") and said("^verifier: ok: every word right"), "the verifier is not content")
    check(said("^daemon: 0$"), "uzswapd did not end cleanly")
    check(said(r"^ *evicted +(\d{4,}|\d+k) pages"), "hardly anything was evicted")
    most = {0: 0, 1: 0}
    # An address, the policy, the file, and how many of its pages lie on each node.
    arenas = said(r"^[0-9a-f]+ [^:]+:(\d+) file=/memfd:uzswap-frames(.*)$")
    check({int(home) for home, _ in arenas} == set(most), "the daemon has not one arena for each of the two nodes")
    for home, places in arenas:
        frames = {int(node): int(count) for node, count in re.findall(r"N(\d+)=(\d+)", places)}
        most[int(home)] = max(most[int(home)], frames.pop(int(home), 0))
        # The file's header is written before the file has a node, and a frame may be seen before it is refused.
        check(sum(frames.values()) <= 8, f"frames of node {home} lie elsewhere: {places}")
    for node, count in most.items():
        context.figure(f"most_frames_on_node_{node}", count, "pages")
    return outcome.console, most


@case
def program_on_two_nodes(context):
    _, most = program_under_a_limit(context)
    check(most[0] + most[1] > 1000, "the pool never held much")


# Back and forth: a node is emptied while the program runs, and shows no frame, then the other.
DRAIN_BOTH = """
  for node in 0 1; do
    uzswap node drain $node && uzswap node list && uzswap node open $node || echo "drain failed"
  done
"""


@case
def program_while_nodes_are_drained(context):
    """What is stored moves from node to node under the program's feet: every word stays right."""
    console, _ = program_under_a_limit(context, each_second=DRAIN_BOTH)
    drained = re.findall(r"^node \d: (\S+) moved away", console, re.M)
    context.figure("drains", len(drained), "count")
    check(len(drained) >= 4 and any(amount not in ("0", "0B") for amount in drained), f"nothing moved: {drained}")
    check("drain failed" not in console, "a drain left something behind")
    # What `node list` said right behind each drain.
    rows = re.findall(r"^ *(\d+) +drained +(\S+) +(\S+)", console, re.M)
    check(rows and all(objects == "0" for _, _, objects in rows), f"objects on a drained node: {rows}")


@case
def program_beside_a_full_node(context):
    """The program runs on node 0, so the daemon prefers it, which is full: nothing is lost, nobody is killed, node 1 takes what does not fit."""
    _, most = program_under_a_limit(context, FILL_NODE_0, cpus=1)
    check(most[1] > 1000, "node 1 never held much")


# A program that is idle, so that what it has stored stays stored, goes from node 0 to node 1: what is stored follows. A look where a
# thread is shows where it last ran, so it is woken there by a character that is not yet the line it waits for.
PROGRAM_THAT_MOVES = """
export UZSWAP_SOCKET=/run/uzswapd.sock UZSWAP_AGENT=/bin/libuzswap-agent.so
mkfifo /run/ready /run/input
uzswapd --ready-fd 3 3>/run/ready 2>/run/daemon.log &
daemon=$!
read ready </run/ready
taskset 1 uzswap run --limit 8M -- grower burst 24 </run/input >/run/output &
program=$!
exec 4>/run/input
on() { uzswap node list | awk -v node=$1 '$1 == node {print $4}'; }
tries=0
until [ "$(on 0)" -ge 4000 ] || [ $tries -gt 60 ]; do sleep 1; tries=$((tries + 1)); done
echo "before: $(on 0) $(on 1)"
for task in /proc/$(pidof grower)/task/*; do taskset -p 2 ${task##*/} >/dev/null; done
tries=0
until [ "$(on 0)" = 0 ] || [ $tries -gt 120 ]; do echo -n x >&4; sleep 1; tries=$((tries + 1)); done
echo "after: $(on 0) $(on 1)"
uzswap node list
echo >&4
echo >&4
wait $program
echo "program: $?"
cat /run/output
kill $daemon
wait $daemon
echo "daemon: $?"
cat /run/daemon.log
"""


@case
def program_that_moves_to_another_node(context):
    """What is stored of a program follows it to the node where it runs from now on."""
    outcome = guest.run(context, "two", PROGRAM_THAT_MOVES, [context.uzswapd, context.uzswap, context.agent, context.grower], seconds=300)
    context.figure("time", outcome.seconds, "seconds")

    def said(pattern):
        return re.findall(pattern, outcome.console, re.M)
    check(outcome.status == 0 and said("^daemon: 0$"), f"the script: status {outcome.status}")
    check(said("^program: 0$") and said("^right$"), "the program did not find its memory as it was")
    check(said(r"^before: \d{4,} 0$"), "not much was stored, or not on node 0 alone")
    check(said(r"^after: 0 \d{4,}$") and said(r"^moved: .* \d+\.\dM followed"), "nothing followed the program to node 1")


if __name__ == "__main__":
    harness.run(__doc__, guest.need)
