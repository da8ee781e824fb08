#!/usr/bin/python3
"""`uzswap run` is as good as not there: status, signals, stops, the terminal, and nothing left behind.

Each property is tried in the ways that a program can be started: WAYS.
"""
import contextlib
import fcntl
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import deaths  # noqa: E402
import harness  # noqa: E402
from harness import case, check, until  # noqa: E402

LIMIT = 64 << 20
WAYS = ("system", "system, report", "embedded", "embedded, report")
# Says "ready", then writes down each signal that it gets; ends with 9 when its stdin or the file "stop" ends it.
RECORDER = """
import os, signal, sys, time
def note(number, frame): os.write(1, b"got %d\\n" % number)
for number in [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 3,
               signal.SIGALRM, signal.SIGWINCH]:
    signal.signal(number, note)
os.write(1, b"ready %d\\n" % os.getpid())
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
sys.exit(9)
"""


class Runs:
    """Starts `uzswap run` in each of WAYS. The embedded daemons' directories go to a place of the case's own."""

    def __init__(self, context):
        context.need_uzswap()
        self.context = context
        self.place = context.tmp / f"tmp-{context.case}"
        self.place.mkdir()
        self.daemon = context.daemon()

    def command(self, way, *argv, options=()):
        report = ["--report"] if "report" in way else []
        return [self.context.uzswap, "run", "--limit", str(LIMIT), *report, *options, "--", *map(str, argv)]

    def env(self, way, **more):
        socket = self.daemon.socket if way.startswith("system") else self.context.tmp / "nobody-listens.sock"
        return self.context.env(UZSWAP_SOCKET=socket, TMPDIR=self.place, **more)

    def start(self, way, *argv, options=(), env=None, **more):
        return harness.Program(self.context, self.command(way, *argv, options=options), env=self.env(way, **(env or {})), name="run", **more)

    def run(self, way, *argv, **more):
        program = self.start(way, *argv, **more)
        program.wait(60)
        return program

    def stop_file(self):
        """Where a RECORDER is to look for the word to end."""
        return self.context.tmp / f"stop-{time.monotonic_ns()}"

    def recorder(self, way, **more):
        """A RECORDER that is ready, and the file that ends it."""
        stop = self.stop_file()
        program = self.start(way, sys.executable, "-c", RECORDER, stop, **more)
        until(lambda: b"ready" in program.stdout(), 30, f"it is ready\n{program.tail()}")
        program.target = int(program.stdout().split()[1])
        return program, stop

    def end(self):
        until(lambda: not list(self.place.iterdir()), 20, f"nothing is left behind: {list(self.place.rglob('*'))}")
        self.daemon.stop()


def state(pid):
    text = harness.read_text(f"/proc/{pid}/stat")
    return text.rsplit(")", 1)[1].split()[0] if text else ""


def got(program):
    return [int(line.split()[1]) for line in program.stdout().splitlines() if line.startswith(b"got")]


@case
def exit_status(context):
    """CMD's status, whatever it is; its output and its input are untouched."""
    runs = Runs(context)
    for way in WAYS:
        for status in (0, 1, 7, 125, 126, 127, 255):
            program = runs.run(way, "sh", "-c", f"exit {status}")
            check(program.outcome.status == status, f"{way}: exit {status} became {program.outcome.status}\n{program.tail()}")
        done = subprocess.run(runs.command(way, "sh", "-c", "cat; echo err >&2"), env=runs.env(way), input=b"in\0put",
                              capture_output=True, check=False, timeout=60)
        check(done.stdout == b"in\0put" and done.stderr.startswith(b"err\n"), f"{way}: {done}")
        check(("report" in way) == (b"uzswap: " in done.stderr), f"{way}: {done.stderr}")
    runs.end()


@case
def ends_by_the_same_signal(context):
    """A signal that ends CMD ends uzswap; uzswap dumps no core of its own."""
    runs = Runs(context)
    for way in WAYS:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT, signal.SIGPIPE, signal.SIGRTMIN):
            child = os.fork()
            if child == 0:
                os.chdir(context.tmp)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and CMD would inherit that
                resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                command = runs.command(way, "sh", "-c", f"ulimit -c 0; kill -{int(number)} $$")
                os.dup2(os.open(context.tmp / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.execve(command[0], command, runs.env(way))
            _, status = os.waitpid(child, 0)
            check(os.waitstatus_to_exitcode(status) == -number, f"{way}: {number!r} became {status}\n{(context.tmp / 'said').read_text()}")
            check(not os.WCOREDUMP(status), f"{way}: {number!r}: uzswap dumped a core")
    runs.end()


@case
def own_errors(context):
    """What cannot be started is said before anything is: 127, 126, 125, and no daemon was started for it."""
    runs = Runs(context)
    tmp = context.tmp
    (tmp / "static.c").write_text("int main(void) { return 0; }\n")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "g++"))), None)
    (tmp / "plain").write_text("#!/bin/sh\nexit 3\n")
    (tmp / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp / "orphan").chmod(0o755)
    (tmp / "text").write_text("exit 4\n")
    (tmp / "text").chmod(0o755)
    shutil.copy("/bin/true", tmp / "setuid")
    wanted = [("no-such-command", 127, "not found"), ("/no/such/file", 127, "not found"), (tmp, 126, "directory"),
              (tmp / "plain", 126, "not executable"), (tmp / "orphan", 125, "/no/such/interpreter")]
    if compiler and subprocess.run([compiler, "-static", "-o", tmp / "static", tmp / "static.c"], capture_output=True, check=False).returncode == 0:
        wanted.append((tmp / "static", 125, "statically linked"))
        (tmp / "script").write_text(f"#!{tmp / 'static'}\n")
        (tmp / "script").chmod(0o755)
        wanted.append((tmp / "script", 125, "statically linked"))
    if os.getuid() == 0:
        os.chown(tmp / "setuid", 65534, 65534)
        (tmp / "setuid").chmod(0o4755)
        wanted.append((tmp / "setuid", 125, "setuid"))
    for way in WAYS:
        for command, status, word in wanted:
            program = runs.run(way, command)
            check(program.outcome.status == status and word in program.stderr(), f"{way}: {command}: {program.outcome.status}\n{program.tail()}")
        check(runs.run(way, tmp / "text").outcome.status == 4, f"{way}: a text without #! is for /bin/sh")
    check(not list(runs.place.iterdir()), "a daemon was started")
    program = runs.run("embedded", "true", options=["--socket", str(tmp / "none.sock")])
    check(program.outcome.status == 125 and "no daemon at" in program.stderr(), program.tail())
    program = runs.run("system", "true", options=["--pool-limit", "1G"])
    check(program.outcome.status == 125 and "--pool-limit" in program.stderr(), program.tail())
    runs.end()


@case
def signals_are_sent_on(context):
    """What somebody sends to uzswap reaches CMD, once."""
    runs = Runs(context)
    for way in WAYS:
        program, stop = runs.recorder(way)
        sent = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
                signal.SIGRTMIN + 3, signal.SIGALRM, signal.SIGWINCH]
        for count, number in enumerate(sent, 1):
            program.signal(number)
            until(lambda n=count: len(got(program)) >= n, 20, f"{way}: {number!r} arrives; it got {got(program)}")
        stop.touch()
        check(program.wait(60).status == 9 and got(program) == [int(n) for n in sent], f"{way}: {got(program)}")
    runs.end()


def job_of_a_shell(context, runs, way):
    """In a child: what a shell sees of a job that is stopped and continued. Does not return."""
    pid = 0
    try:
        signal.alarm(60)
        stop = runs.stop_file()
        out = os.open(context.tmp / f"out-{way}", os.O_RDWR | os.O_CREAT)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            command = runs.command(way, sys.executable, "-c", RECORDER, stop)
            os.execve(command[0], command, runs.env(way))
        until(lambda: b"ready" in os.pread(out, 99, 0), 30, "ready")
        target = int(os.pread(out, 99, 0).split()[1])
        os.kill(pid, signal.SIGTSTP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        check(os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTSTP, f"status {status}")
        check(state(target) == "T", f"CMD is in state {state(target)}")
        os.kill(pid, signal.SIGCONT)
        until(lambda: state(target) not in ("T", ""), 20, "CMD goes on")
        stop.touch()
        _, status = os.waitpid(pid, 0)
        check(os.waitstatus_to_exitcode(status) == 9, f"status {status}")
        os._exit(0)
    except BaseException:  # pylint: disable=broad-except
        traceback.print_exc()
        if pid:
            os.killpg(pid, signal.SIGKILL)
    os._exit(1)


@case
def stop_and_continue(context):
    """Stopped by job control's signal, CMD stops and uzswap with it; SIGCONT to uzswap wakes both."""
    runs = Runs(context)
    for way in WAYS:
        # Job control's stop is without effect in an orphaned process group; this child keeps the group from being one.
        child = os.fork()
        if child == 0:
            job_of_a_shell(context, runs, way)
        check(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"{way}: see above")

        # SIGSTOP and SIGCONT to CMD alone concern CMD alone.
        program, stop = runs.recorder(way)
        os.kill(program.target, signal.SIGSTOP)
        until(lambda p=program: state(p.target) == "T", 20, "CMD stops")
        os.kill(program.target, signal.SIGCONT)
        stop.touch()
        check(program.wait(60).status == 9, f"{way}: status {program.outcome.status}")
    runs.end()


class Terminal:
    """A program as the foreground job of a terminal of its own; this process is the shell."""

    def __init__(self, command, env):
        self.pid, self.master = pty.fork()  # the child leads a session on the terminal
        if self.pid == 0:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            job = os.fork()
            if job == 0:
                os.setpgid(0, 0)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                os.execve(command[0], command, env)
            while True:
                _, status = os.waitpid(job, os.WUNTRACED)
                if not os.WIFSTOPPED(status):
                    break
                os.write(1, b"shell: stopped by %d\n" % os.WSTOPSIG(status))
                os.tcsetpgrp(0, job)
                os.killpg(job, signal.SIGCONT)
            os.write(1, b"shell: ended with %d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        self.text = b""
        os.set_blocking(self.master, False)

    def read(self):
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 4096):
                self.text += data
        return self.text

    def await_text(self, text, seconds=30):
        until(lambda: text in self.read(), seconds, f"{text!r} on the terminal, which shows {self.text!r}")

    def close(self):
        os.close(self.master)
        os.waitpid(self.pid, 0)


@case
def terminal(context):
    """^C, ^\\ and a new size reach CMD once, ^Z stops the job and `fg` wakes it; raw bytes pass."""
    runs = Runs(context)
    for way in WAYS:
        stop = runs.stop_file()
        screen = Terminal(runs.command(way, sys.executable, "-c", RECORDER, stop), runs.env(way))
        screen.await_text(b"ready")
        for key, number in ((b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)):
            os.write(screen.master, key)
            screen.await_text(b"got %d" % number)
        fcntl.ioctl(screen.master, termios.TIOCSWINSZ, b"\x30\0\x90\0\0\0\0\0")
        screen.await_text(b"got %d" % signal.SIGWINCH)
        os.write(screen.master, b"\x1a")
        screen.await_text(b"shell: stopped by %d" % signal.SIGTSTP)
        target = int(screen.text.split()[1])
        until(lambda pid=target: state(pid) not in ("T", ""), 20, "the shell continues the job")
        os.write(screen.master, b"\x03")
        until(lambda s=screen: s.read().count(b"got 2\r") >= 2, 20, f"the second ^C: {screen.text!r}")
        stop.touch()
        screen.await_text(b"shell: ended with 9")
        for number, times in ((signal.SIGINT, 2), (signal.SIGQUIT, 1), (signal.SIGWINCH, 1)):
            check(screen.text.count(b"got %d\r" % number) == times, f"{way}: {number!r} not {times} times: {screen.text!r}")
        screen.close()
    runs.end()


@case
def ignored_signals_stay_ignored(context):
    """nohup and an ignored SIGCHLD pass through; CMD starts with an empty signal mask, as uzswap did."""
    runs = Runs(context)
    script = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN, " \
             "sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for way in WAYS:
        plain = runs.run(way, sys.executable, "-c", script)
        check(plain.stdout() == b"False False []\n", f"{way}: {plain.stdout()}")
        ignoring = runs.run(way, sys.executable, "-c", script, before_exec=ignore)
        check(ignoring.outcome.status == 0 and ignoring.stdout() == b"True True []\n", f"{way}: {ignoring.stdout()}")
    runs.end()


@case
def killed_uzswap(context):
    """SIGKILL to uzswap ends CMD, the embedded daemon and its directory."""
    runs = Runs(context)
    for way in WAYS:
        program, _ = runs.recorder(way)
        check(way.startswith("system") or list(runs.place.glob("uzswap-*/uzswapd.sock")), f"{way}: no socket in {runs.place}")
        os.kill(program.pid, signal.SIGKILL)
        until(lambda p=program: state(p.target) in ("", "Z"), 20, f"{way}: CMD ends")
        until(lambda: not list(runs.place.iterdir()), 20, f"{way}: nothing is left: {list(runs.place.rglob('*'))}")
    runs.end()


@case
def private_directory(context):
    """The embedded daemon's socket lies in a directory that nobody else can enter, and none of the caller's files stay open in it."""
    runs = Runs(context)
    reader, writer = os.pipe()
    program, stop = runs.recorder("embedded", pass_fds=(writer,))
    os.close(writer)
    (directory,) = runs.place.iterdir()
    check(directory.stat().st_mode & 0o777 == 0o700, oct(directory.stat().st_mode))
    (daemon,) = [p for p in harness.descendants(program.pid) if harness.comm(p) == "uzswapd"]
    inherited = [v for v in harness.read_text(f"/proc/{daemon}/environ").split("\0") if v.startswith(("LD_PRELOAD=", "UZSWAP_"))]
    check(not inherited, f"the daemon inherits {inherited}")
    check(os.getsid(daemon) != os.getsid(program.pid), "the daemon is in the program's session")
    for pid in [daemon, int(harness.read_text(f"/proc/{daemon}/stat").rsplit(")", 1)[1].split()[1])]:
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        check(not [f for f in held if f == os.readlink(f"/proc/self/fd/{reader}") or f == str(program.stdout_path)], f"{pid} holds {held}")
    stop.touch()
    check(program.wait(60).status == 9, "status")
    check(not directory.exists(), "the directory is still there when uzswap has ended")
    os.close(reader)
    runs.end()


@case
def background_process(context):
    """CMD leaves a process behind: uzswap ends with CMD, the daemon serves on, and goes with the last client."""
    runs = Runs(context)
    for way in ("embedded", "embedded, report"):
        stop = runs.stop_file()
        # setsid execs: the process that stays is a client with an agent of its own.
        script = f"setsid {sys.executable} -c '{RECORDER}' {str(stop)!r} >{str(context.tmp / 'left')!r} 2>&1 & while ! grep -q ready {str(context.tmp / 'left')!r}; do sleep 0.01; done; exit 3"
        begin = time.monotonic()
        done = subprocess.run(runs.command(way, "sh", "-c", script), env=runs.env(way), capture_output=True, check=False, timeout=60)
        check(done.returncode == 3, f"{way}: {done}")
        context.say(f"{way}: uzswap ended after {time.monotonic() - begin:.1f} s")
        check(list(runs.place.glob("uzswap-*/uzswapd.sock")), f"{way}: the daemon's directory is gone")
        check(way == "embedded" or b"left behind" in done.stderr, f"{way}: {done.stderr}")
        left = int((context.tmp / "left").read_text().split()[1])
        check(state(left) in "SRD", f"{way}: the process left behind is in state {state(left)}")
        stop.touch()
        until(lambda: not list(runs.place.iterdir()), 20, f"{way}: the directory goes with the last client")
        (context.tmp / "left").unlink()
    runs.end()


@case
def report(context):
    """--report: figures of what happened; of descendants, too."""
    runs = Runs(context)
    hungry = "import os, time; a = [os.urandom(1024) + bytes(3072) for _ in range(30000)]; time.sleep(1.5); print(sum(len(x) for x in a), sum(x[5] for x in a))"
    for way in ("system, report", "embedded, report"):
        program = runs.run(way, sys.executable, "-c", hungry)
        words = program.stderr()
        check(program.outcome.status == 0 and "(limit 64M)" in words and "evicted" in words and "from the pool" in words, f"{way}: {words}")
        program = runs.run(way, "sh", "-c", f"{sys.executable} -c 'import time; time.sleep(1.5)'; true")
        check("processes attached" in program.stderr(), f"{way}: {program.stderr()}")
    runs.end()


@case
def daemon_dies(context):
    """The embedded daemon is killed: a successor goes on. It is killed with its keeper: uzswap says so at once, and still ends as CMD ends."""
    runs = Runs(context)
    program, stop = runs.recorder("embedded")

    def daemon_but(other):
        return next((p for p in harness.descendants(program.pid) if harness.comm(p) == "uzswapd" and p != other), None)
    first = daemon_but(0)
    os.kill(first, signal.SIGKILL)
    daemon = until(lambda: daemon_but(first), 20, "a successor")
    keeper = deaths.keeper_of(daemon)
    os.kill(daemon, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    until(lambda: "the embedded daemon ended while" in program.stderr(), 20, "uzswap says so")
    stop.touch()
    check(program.wait(60).status == 9, f"status {program.outcome.status}")
    runs.end()


@case
def agent_library(context):
    """What every program under us gets loaded: few exported symbols, no runtime library, no need of a lock to be resolved."""
    if not shutil.which("nm") or not shutil.which("readelf"):
        raise harness.Skip("binutils is not installed")
    said = subprocess.run(["nm", "-D", "--defined-only", context.agent], capture_output=True, text=True, check=True).stdout
    check([line.split()[-1] for line in said.splitlines()] == ["madvise", "process_madvise", "pthread_mutex_destroy", "pthread_mutex_init"],
          f"exported: {said}")
    dynamic = subprocess.run(["readelf", "-d", context.agent], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    check(all(name.startswith(("libc.so", "ld-linux")) for name in needed), f"it needs {needed}")
    check("BIND_NOW" in dynamic or "NOW" in dynamic, "it is bound lazily")


@case
def environment(context):
    """LD_PRELOAD keeps what stood there, options reach the agent, and uzswap under uzswap uses the outer daemon."""
    runs = Runs(context)
    other = next(filter(os.path.exists, ("/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib64/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6")), None)
    for way in WAYS:
        env = {"LD_PRELOAD": other} if other else {}
        said = runs.run(way, "env", env=env).stdout().decode().splitlines()
        check(f"UZSWAP_LIMIT={LIMIT}" in said and f"LD_PRELOAD={context.agent}" + (f":{other}" if other else "") in said, f"{way}: {said}")
        nested = runs.run(way, context.uzswap, "run", "--limit", "96M", "--", "env").stdout().decode().splitlines()
        check(f"UZSWAP_LIMIT={96 << 20}" in nested and f"LD_PRELOAD={context.agent}" in nested, f"{way}: nested: {nested}")
    runs.end()


@case
def without_rights(context):
    """Another user: no daemon may be started, which is said before; with a daemon of root's it runs."""
    runs = Runs(context)
    context.need_root()
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if not shutil.which("setpriv") or subprocess.run([*nobody, "test", "-x", context.uzswap], check=False).returncode != 0:
        raise harness.Skip("setpriv is not there, or the build directory not readable for others")
    done = subprocess.run([*nobody, *runs.command("embedded", "true")], env=runs.env("embedded"), capture_output=True, text=True, check=False, timeout=60)
    check(done.returncode == 125 and "/dev/userfaultfd" in done.stderr and "fix:" in done.stderr, done)
    for way in ("system", "system, report"):
        done = subprocess.run([*nobody, *runs.command(way, "sh", "-c", "exit 4")], env=runs.env(way), capture_output=True, text=True, check=False, timeout=60)
        check(done.returncode == 4 and "not attached" not in done.stderr and "never attached" not in done.stderr, f"{way}: {done}")
    runs.end()


if __name__ == "__main__":
    harness.run(__doc__)
