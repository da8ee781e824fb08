#!/usr/bin/python3
"""Every way in which an application changes or shares its memory, done to evicted memory: as natively, or as daemon/DESIGN.md says.

corners/corner.h is the other half: a program with one corner a run. Here it gets what a program cannot do to itself.
"""
import contextlib
import ctypes
import errno
import os
import pathlib
import random
import resource
import select
import signal
import socket
import subprocess
import sys

import harness
from harness import MIB, Skip, case, check, until

PATIENCE = 120
# What is otherwise than natively, each with its row in daemon/DESIGN.md, "What an application may notice".
KNOWN = {
    "mremap_several": "EFAULT",
    "raw_guard": "old content",
    "collapse_evicted": "EBUSY",
    "vmsplice_then_write": "old",
    "proc_mem_evicted": "EIO",
    "peek_evicted": "EIO",
    "poke_evicted": "EIO",
    "register_evicted": "EBUSY",
    "mincore_evicted": "0",
    "move_pages_evicted": "ENOENT",
    "user_namespace": "EINVAL",
    "core_of_evicted": "zero",
    "wake_op_evicted": "EFAULT",
    "lock_pi_evicted": "EFAULT",
}
# What a corner needs in its environment.
ENVIRONMENT = {"rseq": {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}}


class IoVector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def vm_access(call, pid, address, data):
    """process_vm_readv or process_vm_writev of `data`, in place: "" or the name of errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    local, remote = IoVector(ctypes.addressof(data), len(data)), IoVector(address, len(data))
    done = getattr(libc, call)(pid, ctypes.byref(local), ctypes.c_ulong(1), ctypes.byref(remote), ctypes.c_ulong(1), ctypes.c_ulong(0))
    return "" if done == len(data) else errno.errorcode[ctypes.get_errno()] if done < 0 else f"only {done} bytes"


class Driver:
    """Serves one run of a corner, and keeps what it said."""

    def __init__(self, program, peer, daemon, alone):
        self.program, self.peer, self.daemon, self.alone = program, peer, daemon, alone
        self.results, self.known, self.skipped, self.failed = [], {}, None, None

    def client(self, pid):
        """stat's record of that process; of the only one with an agent where the program cannot know its number."""
        clients = self.daemon.stat()["clients"]
        if self.alone:
            return next((c for c in clients if c["agent"]), None)
        return next((c for c in clients if c["pid"] == pid), None)

    def evict(self, pid, pages=1 << 28):
        record = self.client(int(pid))
        if record is None:
            return "no such client"
        return str(harness.wire.control(self.daemon.socket, "reclaim", PATIENCE, pid=record["pid"], bytes=int(pages) * 4096)["pages"])

    def stat(self, pid, path):
        value = self.client(int(pid))
        for key in path.split("."):
            value = value[key] if value else 0
        return str(value)

    def limit(self, pid, size):
        harness.wire.control(self.daemon.socket, "limit", pid=int(pid), limit_bytes=int(size))
        return "done"

    def restore(self, pid):
        answer = harness.wire.control(self.daemon.socket, "restore", PATIENCE, pid=int(pid))
        check(answer["failed"] == 0, f"restore: {answer}")
        return "done"

    def clients_of(self, pid):
        return str(sum(c["pid"] == int(pid) for c in self.daemon.stat()["clients"]))

    def await_no_client(self, pid):
        until(lambda: self.client(int(pid)) is None, PATIENCE, f"process {pid} is no client any more")
        return "done"

    def await_agent_gone(self):
        tasks = pathlib.Path(f"/proc/{self.program.pid}/task")
        until(lambda: not any(harness.read_text(task / "comm") == "uzswap-agent\n" for task in tasks.glob("*")), PATIENCE, "the agent is gone")
        return "done"

    @staticmethod
    def mem(pid, address, length):
        try:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
                return os.pread(file.fileno(), int(length), int(address)).hex()
        except OSError as error:
            return errno.errorcode[error.errno]

    @staticmethod
    def vm_readv(pid, address, length):
        data = ctypes.create_string_buffer(int(length))
        return vm_access("process_vm_readv", int(pid), int(address), data) or data.raw.hex()

    @staticmethod
    def vm_writev(pid, address, content):
        data = ctypes.create_string_buffer(bytes.fromhex(content), len(content) // 2)
        return vm_access("process_vm_writev", int(pid), int(address), data) or "0"

    def take(self, packet):
        word, _, text = packet.decode().partition(" ")
        if word == "ask":
            verb, *arguments = text.split()
            self.peer.send(getattr(self, verb)(*arguments).encode())
        elif word == "result":
            self.results.append(text)
        elif word == "known":
            key, _, value = text.partition(" ")
            self.known[key] = value
        elif word == "skip":
            self.skipped = text
        else:
            self.failed = self.failed or text

    def serve(self):
        """Until the last process that has the socket is gone."""
        while True:
            if not select.select([self.peer], [], [], PATIENCE)[0]:
                raise harness.Failed(f"nothing is heard of it any more; so far: {self.results} {self.known}\n{self.program.where()}")
            packet = self.peer.recv(65536)
            if not packet:
                return
            self.take(packet)


def run(context, name, daemon=None, wrap=(), alone=False, limit=None, before_exec=None):
    """One run of a corner, natively without a daemon. `wrap`: a command to start `uzswap run` by."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = context.tmp / f"{name}-{len(list(context.tmp.iterdir()))}"
    place.mkdir(mode=0o777)
    with ours, theirs:
        argv = [context.corners, name, str(theirs.fileno()), "uzswap" if daemon else "native"]
        env = ENVIRONMENT.get(name, {})
        if daemon:
            limits = ["--limit", str(limit)] if limit else []
            argv = [*wrap, context.uzswap, "run", *limits, "--", *argv]
            env = {**env, "UZSWAP_SOCKET": daemon.socket}
        program = context.start(argv, env=context.env(**env), name=name, pass_fds=(theirs.fileno(),), cwd=place, before_exec=before_exec)
        theirs.close()
        driver = Driver(program, ours, daemon, alone)
        driver.serve()
    outcome = program.wait(PATIENCE)
    daemons = f"\n  daemon:{daemon.tail(40)}" if daemon else ""
    check(driver.failed is None, f"{'uzswap' if daemon else 'native'}: {driver.failed}\n{program.tail()}{daemons}")
    driver.status = outcome.status
    return driver


def ends_empty(daemon):
    until(lambda: not daemon.stat()["clients"], 20, f"stat shows no client any more: {daemon.stat()['clients']}")
    until(lambda: daemon.stat()["totals"]["stored_pages"] == 0, 20, "nothing is stored any more")
    daemon.stop()


def compare(context, name, **more):
    """Natively, then under uzswap: the same, but for what is known."""
    native = run(context, name)
    if native.skipped:
        raise Skip(native.skipped)
    check(native.status == 0, f"natively it ends with {native.status}\n{native.program.tail()}")
    context.need_uzswap()
    daemon = context.daemon()
    limited = run(context, name, daemon, **more)
    if limited.skipped:
        raise Skip(limited.skipped)
    check(limited.status == 0, f"it ends with {limited.status}, natively with 0\n{limited.program.tail()}\n{daemon.tail(40)}")
    check(limited.results == native.results, f"it says {limited.results}, natively {native.results}")
    for key, value in limited.known.items():
        if value != native.known.get(key):
            context.say(f"{key}: {value}, natively {native.known.get(key)}")
        check(value == KNOWN[key], f"{key} is {value}, natively {native.known.get(key)}; the documents say {KNOWN[key]}")
    ends_empty(daemon)
    return limited


def corner(name):
    def one(context):
        compare(context, name)
    one.__name__ = name
    return case(one)


CORNERS = """
    munmap_whole munmap_part map_over_with_anonymous map_over_with_file reuse_by_another_thread mremap_grow mremap_shrink mremap_move
    mremap_dontunmap mremap_several brk grows_down
    mprotect_parts system_call_into_read_only write_barrier read_only_stays mlock mlockall mseal protection_keys
    dontneed dontneed_locked free remove dontfork wipeonfork populate guard guard_by_raw_call advice_about_pages collapse process_madvise
    fork_reads_and_writes child_of_a_child parent_dies_first fork_storm wipeonfork_in_a_child guard_in_a_child vfork spawn exec exec_setuid
    drops_privileges clone_vm clone_vm_outlives_exit clone_vm_outlives_exec stop_and_continue
    futexes locks signal_stack coroutine_stack rseq inheriting_mutex robust_mutex own_thread_stack threads_end_while_faulting exit_while_faulting
    system_calls pipes_and_splice direct_io aio io_uring io_uring_fixed io_uring_sqpoll zerocopy seen_from_outside debugged
    huge_pages ksm own_userfaultfd userfaultfd_after_eviction residency soft_dirty limit_of_address_space limit_of_data
    seccomp_refuses seccomp_refuses_all_threads seccomp_kills seccomp_kills_all_threads seccomp_traps_all_threads chroot own_namespaces
    core_dump
""".split()
for corner_name in CORNERS:
    corner(corner_name)


@case
def all_are_run(context):
    """Every corner that the program knows has its run here."""
    listed = subprocess.run([context.corners, "--list"], capture_output=True, check=True).stdout.decode().split()
    check(sorted(CORNERS) == sorted(n for n in listed if not n.startswith("_")), f"the program lists {listed}")


# --- containers and limits that it is started under ----------------------------------------------------------------

def unshared(context, *flags):
    unshare = context.need_program("unshare")
    tried = subprocess.run([unshare, *flags, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        raise Skip(f"unshare {' '.join(flags)}: {tried.stderr.decode().strip()}")
    compare(context, "_container", wrap=[unshare, *flags], alone=True)


@case
def pid_namespace(context):
    context.need_root()
    unshared(context, "--pid", "--fork", "--kill-child", "--mount-proc")


@case
def mount_namespace(context):
    context.need_root()
    unshared(context, "--mount", "--ipc", "--uts", "--net")


@case
def user_namespace(context):
    unshared(context, "--user", "--map-root-user")


@case
def user_and_pid_namespace(context):
    unshared(context, "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def too_small(context, which):
    """No room for the agent's 4 MiB of address space: it says so, and the program runs natively."""
    context.need_uzswap()
    daemon = context.daemon()
    # Bisecting what the program itself needs would test the loader; this much is enough for it, and not for 4 MiB more.
    for size in range(6, 64):
        def limit(size=size):
            resource.setrlimit(which, (size * MIB, size * MIB))
        native = context.start([context.corners, "--list"], before_exec=limit, name="native")
        if native.wait(20).status == 0:
            break
    else:
        raise Skip("the program does not run under such a limit at all")
    limited = context.start([context.corners, "--list"], before_exec=limit, name="limited",
                            env=context.env(LD_PRELOAD=context.agent, UZSWAP_SOCKET=daemon.socket))
    outcome = limited.wait(20)
    check(outcome.status == 0 and limited.stdout() == native.stdout(), f"status {outcome.status}\n{limited.tail()}")
    check("runs natively" in limited.stderr() or daemon.stat(include_gone=True)["clients"], f"neither attached nor told\n{limited.tail()}")
    context.say(f"{size} MiB: {limited.stderr().strip() or 'attached'}")
    ends_empty(daemon)


@case
def small_address_space(context):
    too_small(context, resource.RLIMIT_AS)


@contextlib.contextmanager
def memory_cgroup(size):
    """A function that puts its caller into a memory cgroup of its own."""
    v1 = pathlib.Path("/sys/fs/cgroup/memory")
    root = v1 if v1.is_dir() else pathlib.Path("/sys/fs/cgroup")
    group = root / f"uzswap-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")).write_text(str(size))
        if not v1.is_dir():
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise Skip(f"no memory cgroup: {error}") from None
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        def removed():
            try:
                group.rmdir()
                return True
            except OSError:
                return False
        until(removed, 10, "the memory cgroup is empty")


@case
def memory_limit_of_a_cgroup(context):
    """80 MiB in a memory cgroup of 64: killed natively, and works under a limit of 32."""
    context.need_root()
    with memory_cgroup(64 * MIB) as enter:
        native = run(context, "_memory_cgroup", before_exec=enter)
        if native.status == 0:
            raise Skip("the memory cgroup limits nothing (swap?)")
        check(native.status == -signal.SIGKILL, f"natively it ends with {native.status}\n{native.program.tail()}")
        context.need_uzswap()
        daemon = context.daemon()
        limited = run(context, "_memory_cgroup", daemon, limit=32 * MIB, before_exec=enter)
        check(limited.status == 0 and limited.results == [f"{80 * MIB // 4096} pages"],
              f"it ends with {limited.status} and says {limited.results}\n{limited.program.tail()}\n{daemon.tail()}")
        ends_empty(daemon)


# --- its end ------------------------------------------------------------------------------------------------------

@case
def killed_at_any_moment(context):
    """SIGKILL while it forks, maps, faults and is evicted from: nothing is left of it, and its neighbour notices nothing."""
    context.need_uzswap()
    daemon = context.daemon()
    rng = random.Random(context.seed)
    stays = context.run_uzswap([context.verifier, "--megabytes", 48, "--seconds", 6, "--threads", 2, "--seed", context.seed],
                               socket=daemon.socket, limit=24 * MIB)
    for turn in range(60 if context.long else 15):
        delay = rng.uniform(0, 0.4)
        dies = context.run_uzswap([context.verifier, "--megabytes", 48, "--seconds", 100, "--threads", 4, "--fork-every-ms", 10,
                                   "--seed", context.seed + turn], socket=daemon.socket, limit=16 * MIB)
        select.select([], [], [], delay)
        dies.kill()
        until(lambda: all(c["pid"] in (0, stays.pid) for c in daemon.stat()["clients"]), 20,
              f"nothing is left of the killed one in turn {turn}: {daemon.stat()['clients']}")
    check(stays.wait(PATIENCE).status == 0, f"its neighbour suffered\n{stays.tail(60)}")
    ends_empty(daemon)


if __name__ == "__main__":
    harness.run(__doc__)
