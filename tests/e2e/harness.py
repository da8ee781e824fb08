"""What every end-to-end test is run by: temporary places, programs, their memory over time, daemons, and the report.

A test file defines functions marked @case and ends with `harness.run(__doc__)`. A case gets a Context. It raises Failed
(or any assertion), or Skip with a reason; the exit status of the file is 1 if a case failed, 77 if all were skipped.

Nothing is left behind: each test has a guard, a process that outlives it and, when the test is gone for
whatever reason, kills the process groups that it started and removes its directory.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import re
import select
import shutil
import signal
import stat as stat_module
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import wire

MIB = 1 << 20
PAGE = 4096
HERE = pathlib.Path(__file__).resolve().parent
_cases = []


class Skip(Exception):
    """The test cannot be run here; the text says what is missing."""


class NativePartOnly(Exception):
    """With --native-only: what can be done without uzswap has been done."""


class Failed(Exception):
    """The test found something wrong."""


def case(function):
    _cases.append(function)
    return function


def check(condition, text):
    if not condition:
        raise Failed(text)


def mib(size):
    return f"{size / MIB:.1f} MiB"


def until(condition, seconds, what, poll=0.02):
    """Polls until `condition()` is truthy and returns that; Failed with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(poll)


# --- /proc ---------------------------------------------------------------------------------------------------------

def read_text(path):
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except (OSError, ProcessLookupError):
        return ""


def memory_of(pid):
    """(VmRSS, RssAnon, VmHWM) in bytes, zeros if the process is gone."""
    found = dict(re.findall(r"^(VmRSS|RssAnon|VmHWM):\s+(\d+) kB", read_text(f"/proc/{pid}/status"), re.M))
    return tuple(int(found.get(name, 0)) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM"))


def alive(pid):
    text = read_text(f"/proc/{pid}/stat")
    return bool(text) and text.rsplit(")", 1)[1].split()[0] not in "ZX"


def is_ours(name):
    """Whether a process of that name is uzswap, the daemon, its keeper or its supervisor."""
    return name.startswith("uzswap")


def comm(pid):
    return read_text(f"/proc/{pid}/comm").strip()


def session(number):
    """All living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        stat = read_text(f"/proc/{entry}/stat") if entry.isdigit() else ""
        fields = stat.rsplit(")", 1)[1].split() if stat else []
        if fields and fields[0] not in "ZX" and int(fields[3]) == number:
            found.append(int(entry))
    return found


def descendants(pid):
    """All processes below `pid`, without it."""
    below = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            text = read_text(f"/proc/{entry}/stat")
            if text:
                below.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found


class Sampler(threading.Thread):
    """Watches the memory of one process, or of a tree's processes (uzswap's own left out), every few milliseconds."""

    def __init__(self, pid, tree=False, interval=0.02):
        super().__init__(daemon=True)
        self.pid, self.tree, self.interval = pid, tree, interval
        self.start_time = time.monotonic()
        self.samples = {}  # pid -> [(seconds since the start, VmRSS, RssAnon)]
        self.names = {}
        self._end = threading.Event()
        self.start()

    def run(self):
        while not self._end.is_set():
            for pid in [self.pid] + descendants(self.pid) if self.tree else [self.pid]:
                rss, anon, _ = memory_of(pid)
                name = comm(pid)
                if rss and not (self.tree and is_ours(name)):
                    self.names[pid] = name
                    self.samples.setdefault(pid, []).append((time.monotonic() - self.start_time, rss, anon))
            self._end.wait(self.interval)

    def now(self):
        return time.monotonic() - self.start_time

    def stop(self):
        self._end.set()
        self.join()
        return self

    def series(self):
        """The samples of the process that grew most."""
        return max(self.samples.values(), key=lambda s: max(x[1] for x in s), default=[])

    def peak(self, since=0.0):
        return max((rss for at, rss, _ in self.series() if at >= since), default=0)

    def peak_anon(self, since=0.0):
        return max((anon for at, _, anon in self.series() if at >= since), default=0)

    def typical(self, since=0.0):
        """The median of what was seen in the later half of its life."""
        series = [s for s in self.series() if s[0] >= since]
        later = sorted(rss for _, rss, _ in series[len(series) // 2:])
        return later[len(later) // 2] if later else 0

    def longest_above(self, size, since=0.0):
        """The longest time without a sample at or below `size`."""
        longest, began = 0.0, None
        for at, rss, _ in self.series():
            if at < since:
                continue
            if rss <= size:
                began = None
            else:
                began = at if began is None else began
                longest = max(longest, at - began)
        return longest


# --- programs ------------------------------------------------------------------------------------------------------

class Outcome:
    def __init__(self, status, peak_rss, seconds):
        self.status = status      # exit status, or minus the signal
        self.peak_rss = peak_rss  # bytes, greatest of the process and of those it waited for
        self.seconds = seconds


class Program:
    """A started process in a group of its own; its output goes to files in the test's directory."""
    _count = 0

    def __init__(self, context, argv, env=None, name=None, stdin=subprocess.DEVNULL, pass_fds=(), cwd=None, before_exec=None):
        Program._count += 1
        self.name = name or os.path.basename(argv[0])
        self.argv = [str(a) for a in argv]
        base = context.tmp / f"{Program._count:02d}-{self.name}"
        self.stdout_path, self.stderr_path = base.with_suffix(".out"), base.with_suffix(".err")
        self.outcome = None
        self._begin = time.monotonic()

        def prepare():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if before_exec:
                before_exec()

        with open(self.stdout_path, "wb") as out, open(self.stderr_path, "wb") as err:
            self._popen = subprocess.Popen(self.argv, env=env, stdin=stdin, stdout=out, stderr=err, cwd=cwd or context.tmp,
                                           pass_fds=pass_fds, start_new_session=True, preexec_fn=prepare)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        context.guard.add(self.pid)
        context.programs.append(self)

    @property
    def stdin(self):
        return self._popen.stdin

    def stdout(self):
        return self.stdout_path.read_bytes()

    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def running(self):
        return self.outcome is None and not select.select([self._pidfd], [], [], 0)[0]

    def wait(self, seconds):
        """Its Outcome; Failed (and killed) if it does not end in time."""
        if self.outcome is None:
            if not select.select([self._pidfd], [], [], seconds)[0]:
                where = self.where()
                self.kill()
                raise Failed(f"{self.name} (pid {self.pid}) did not end within {seconds} s\n{where}{self.tail()}")
            _, status, usage = os.wait4(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self._popen.returncode = code
            self.outcome = Outcome(code, usage.ru_maxrss * 1024, time.monotonic() - self._begin)
            os.close(self._pidfd)
        return self.outcome

    def where(self):
        """Where each thread of the tree hangs, for a report."""
        text = ""
        for pid in [self.pid] + descendants(self.pid):
            for task in sorted(os.listdir(f"/proc/{pid}/task")) if os.path.isdir(f"/proc/{pid}/task") else []:
                at = f"/proc/{pid}/task/{task}"
                text += (f"  {comm(pid)} {pid}/{task} wchan {read_text(at + '/wchan') or '?'} "
                         f"syscall {read_text(at + '/syscall').strip() or '?'}\n")
        return text

    def tail(self, lines=25):
        kept = "\n    ".join(self.stderr().splitlines()[-lines:])
        return f"  its last words on stderr:\n    {kept}\n" if kept else "  it said nothing on stderr\n"

    def signal(self, number):
        if self.running():
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self):
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.outcome is None:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
            self.wait(10)


class Daemon(Program):
    """A uzswapd on a socket in the test's directory, ready for clients."""

    def __init__(self, context, *options, socket=None, wait=True, wrap=(), env_more=None):
        self.socket = socket or str(context.tmp / f"uzswapd-{Program._count}.sock")
        ready, write_end = os.pipe()
        try:
            super().__init__(context, [*wrap, context.uzswapd, "--socket", self.socket, "--ready-fd", str(write_end), *options],
                             env=context.env(**(env_more or {})), name="uzswapd", pass_fds=(write_end,))
        finally:
            os.close(write_end)
        with os.fdopen(ready, "rb", buffering=0) as pipe:
            if wait:
                said = pipe.read(2) if select.select([pipe], [], [], 20)[0] else b""
                check(said == b"1\n", f"uzswapd did not say that it is ready (said {said!r})\n{self.tail()}")

    def stat(self, **fields):
        return wire.control(self.socket, "stat", **fields)

    def client(self, pid):
        """stat's record of that process, None if there is none."""
        return next((c for c in self.stat()["clients"] if c["pid"] == pid), None)

    def stop(self, seconds=60):
        """SIGTERM; its end must be clean."""
        self.signal(signal.SIGTERM)
        outcome = self.wait(seconds)
        self.check_words()
        check(outcome.status == 0, f"uzswapd ended with status {outcome.status} after SIGTERM\n{self.tail()}")

    def check_words(self):
        words = self.stderr()
        for bad in ("AddressSanitizer", "ThreadSanitizer", "runtime error:", "LeakSanitizer", "CHECK failed"):
            check(bad not in words, f"uzswapd says {bad!r}\n{self.tail(80)}")


# --- the guard -----------------------------------------------------------------------------------------------------

class Guard:
    """A process that sees the test's end (a closed pipe) and then ends what the test started."""

    def __init__(self, directory):
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.close(self._writer)
                self._watch(reader, directory)
            finally:
                os._exit(0)
        os.close(reader)

    def add(self, group):
        os.write(self._writer, f"{group}\n".encode())

    def end(self):
        os.close(self._writer)
        os.waitpid(self.pid, 0)

    @staticmethod
    def _watch(reader, directory):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        text = b""
        while chunk := os.read(reader, 4096):
            text += chunk
        groups = {int(line) for line in text.split()}
        # Whatever is of these sessions: a program started by the test, and its children in their groups. Again until a look finds
        # nobody: a daemon's keeper may just have started another one.
        for _ in range(100):
            found = [pid for group in groups for pid in session(group)]
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not found:
                break
        if not os.environ.get("UZSWAP_TEST_KEEP"):
            shutil.rmtree(directory, ignore_errors=True)


def sweep():
    """Removes directories of tests that are gone without a guard to clean up after them."""
    for old in pathlib.Path(tempfile.gettempdir()).glob("uzswap-test.*.*"):
        owner = old.name.split(".")[1]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}") and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)


# --- the context ---------------------------------------------------------------------------------------------------

class Context:
    """What a case works with."""

    def __init__(self, options, tmp, guard):
        self.tmp, self.guard, self.programs = tmp, guard, []
        self.long, self.native_only, self.seed = options.long, options.native_only, options.seed
        build = pathlib.Path(options.build).resolve()  # programs run in another directory
        self.build = build
        self.is_sanitized = os.environ.get("UZSWAP_TEST_BUILD") in ("asan", "tsan")
        self.uzswap = os.environ.get("UZSWAP", str(build / "tools/uzswap/uzswap"))
        self.uzswapd = os.environ.get("UZSWAPD", str(build / "daemon/uzswapd"))
        self.agent = os.environ.get("UZSWAP_AGENT", str(build / "tools/agent/libuzswap-agent.so"))
        self.grower = os.environ.get("UZSWAP_GROWER", str(build / "tests/e2e/grower"))
        self.churner = os.environ.get("UZSWAP_CHURNER", str(build / "tests/e2e/churner"))
        self.corners = os.environ.get("UZSWAP_CORNERS", str(build / "tests/e2e/corners"))
        self.verifier = os.environ.get("UZSWAP_VERIFIER", str(build / "tests/stress/verifier"))
        self.case = ""
        self.figures = {}

    def env(self, **more):
        """The environment for a program: ours without uzswap's own variables, with `more`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("UZSWAP") and k != "LD_PRELOAD"}
        # uzswap finds its parts beside itself when installed; in the build tree it is told.
        kept.update(UZSWAP_AGENT=self.agent, UZSWAPD=self.uzswapd, LC_ALL="C.UTF-8")
        kept.update({k: str(v) for k, v in more.items()})
        return kept

    def need_program(self, name):
        found = shutil.which(name)
        if not found:
            raise Skip(f"{name} is not installed")
        return found

    def need_uzswap(self):
        """Skip if this is a run without uzswap, or if the machine has not what it needs."""
        if self.native_only:
            raise NativePartOnly
        release = tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", os.uname().release).groups())
        if release < (6, 8):
            raise Skip(f"the kernel is {os.uname().release}; UFFDIO_MOVE needs 6.8")
        try:
            device = os.stat("/dev/userfaultfd")
        except OSError as error:
            raise Skip(f"/dev/userfaultfd: {error.strerror}") from None
        if not stat_module.S_ISCHR(device.st_mode) or not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
            raise Skip("no permission to open /dev/userfaultfd (be root)")
        for path in (self.uzswap, self.uzswapd, self.agent):
            check(os.path.exists(path), f"{path} is not built")

    def need_root(self):
        if os.getuid() != 0:
            raise Skip("needs root")

    def start(self, argv, **more):
        return Program(self, argv, **{"env": self.env(), **more})

    def daemon(self, *options, **more):
        return Daemon(self, *options, **more)

    def run_uzswap(self, argv, socket=None, options=(), env=None, limit=None, **more):
        """Starts `uzswap run` with argv; without a socket it starts a daemon of its own, for the run."""
        where = {"UZSWAP_SOCKET": socket or str(self.tmp / "nobody-listens.sock")}
        limits = ["--limit", str(limit)] if limit is not None else []
        return Program(self, [self.uzswap, "run", *limits, *options, "--", *argv], env=self.env(**where, **(env or {})),
                       name="run-" + os.path.basename(argv[0]), **more)

    def figure(self, name, value, unit):
        """A measured value: printed, and kept for UZSWAP_TEST_FIGURES."""
        self.figures[f"{self.case}.{name}_{unit}"] = value
        shown = mib(value) if unit == "bytes" else f"{value:.3f} {unit}" if isinstance(value, float) else f"{value} {unit}"
        print(f"  {name:34s} {shown}", flush=True)

    def say(self, text):
        print(f"  {text}", flush=True)

    def end_case(self):
        for program in self.programs:
            program.kill()
        self.programs.clear()


def target_of(program, seconds=20):
    """The pid of the process that `uzswap run` started: its child, or, where it need not stay, what it has become."""
    def find():
        check(program.running(), f"{program.name} ended early\n{program.tail()}")
        return [p for p in [program.pid] + descendants(program.pid) if comm(p) and not is_ours(comm(p))]
    return until(find, seconds, f"{program.name} starts its program\n{program.tail()}")[0]


def embedded_socket(program):
    """The socket of the daemon that `uzswap run` started for its program."""
    for pid in descendants(program.pid):
        words = read_text(f"/proc/{pid}/cmdline").split("\0")
        if comm(pid) == "uzswapd" and "--socket" in words:
            return words[words.index("--socket") + 1]
    raise Failed(f"{program.name} has started no daemon of its own\n{program.tail()}")


# --- main ----------------------------------------------------------------------------------------------------------

def parse(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these: " + ", ".join(f.__name__ for f in _cases))
    parser.add_argument("--long", action="store_true", default=bool(os.environ.get("UZSWAP_TEST_LONG")),
                        help="the full sizes (or UZSWAP_TEST_LONG=1)")
    parser.add_argument("--native-only", action="store_true", help="without uzswap: shows that the test itself is right")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("UZSWAP_TEST_SEED", "1")))
    parser.add_argument("--build", default=os.environ.get("UZSWAP_BUILD", "build"), help="the build directory")
    options = parser.parse_args()
    unknown = set(options.cases) - {f.__name__ for f in _cases}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    return options


def replay_line(options, name):
    words = [sys.argv[0], name, "--seed", str(options.seed)] + (["--long"] if options.long else [])
    words += ["--native-only"] if options.native_only else []
    settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("UZSWAP") and k != "UZSWAP_TEST_LONG"]
    return " ".join(settings + words)


@contextlib.contextmanager
def workplace(options):
    """A Context in a directory of its own; what was started in it is ended, and the directory removed, when it is left."""
    sweep()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tmp = pathlib.Path(tempfile.mkdtemp(prefix=f"uzswap-test.{os.getpid()}."))
    tmp.chmod(0o755)
    guard = Guard(tmp)
    try:
        yield Context(options, tmp, guard)
    finally:
        guard.end()


def run(description, need=None):
    """Runs the cases. `need(context)` comes before the first and raises Skip where none of them can be run."""
    options = parse(description)
    passed, failed, skipped = [], [], []
    with workplace(options) as context:
        if need:
            try:
                need(context)
            except Skip as reason:
                print(f"skip {pathlib.Path(sys.argv[0]).resolve().parent.name}: {reason}", flush=True)
                sys.exit(77)
        for function in _cases:
            name = function.__name__
            if options.cases and name not in options.cases:
                continue
            print(f"case {name}", flush=True)
            context.case = name
            begin = time.monotonic()
            try:
                function(context)
                passed.append(name)
                print(f"pass {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except NativePartOnly:
                passed.append(name)
                print(f"pass {name}, its native part only ({time.monotonic() - begin:.1f} s)", flush=True)
            except Skip as reason:
                skipped.append(name)
                print(f"skip {name}: {reason}", flush=True)
            except Exception as error:  # pylint: disable=broad-except
                failed.append(name)
                text = str(error) if isinstance(error, Failed) else traceback.format_exc()
                print(f"FAIL {name}: {text}\n  replay: {replay_line(options, name)}", flush=True)
            finally:
                context.end_case()
        if path := os.environ.get("UZSWAP_TEST_FIGURES"):
            with open(path, "a", encoding="utf-8") as out:
                print(json.dumps(context.figures), file=out)
    print(f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped")
    sys.exit(1 if failed else 77 if skipped and not passed else 0)
