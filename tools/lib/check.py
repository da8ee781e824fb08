"""The stages of tools/check: lints, builds, tests, and the count. Run by tools/check, from the repository's top."""

import argparse
import concurrent.futures
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

LINTS = ("scripts", "format", "tidy")
SUITES = ("unit", "model", "stress", "fuzz", "uffd", "e2e", "numa")
# A test's own limit is its `timeout:` in meson; these multiply it, and nothing runs longer than the last one.
TIMEOUT_FACTOR = {"gcc": 1, "asan": 3, "tsan": 4, "clang": 1}
STAGE_SECONDS = 3600
LONG_FACTOR = 10
TAIL_LINES = 150


class Tally:
    """What ran and how it ended. A lint, a build and a test in one build count once each."""

    def __init__(self):
        self.passed, self.failed, self.skipped = [], [], []

    def ok(self, name, note="", shown=False):
        self.passed.append(name)
        if not shown:
            print(f"  ok    {name}{'  ' + note if note else ''}", flush=True)

    def fail(self, name, note="", output=""):
        self.failed.append(name)
        print(f"  FAIL  {name}{'  ' + note if note else ''}", flush=True)
        if output.strip():
            lines = output.rstrip().splitlines()
            if len(lines) > 2 * TAIL_LINES:
                left_out = len(lines) - 2 * TAIL_LINES
                lines = lines[:TAIL_LINES] + [f"... {left_out} lines left out ..."] + lines[-TAIL_LINES:]
            print("\n".join("        | " + line for line in lines), flush=True)

    def skip(self, name, reason):
        self.skipped.append((name, reason))
        print(f"  skip  {name}: {reason}", flush=True)


class Build:
    """One meson build tree, build/check-NAME."""

    def __init__(self, name, compiler, options, long_only=False):
        self.name, self.compiler, self.options, self.long_only = name, compiler, options, long_only
        self.dir = f"build/check-{name}"

    def setup(self):
        """Configures where that was not done yet with these options. Returns (worked, output)."""
        want = json.dumps([os.getcwd(), self.compiler, self.options])
        stamp = os.path.join(self.dir, "check-options.json")
        if os.path.exists(os.path.join(self.dir, "build.ninja")) and read(stamp) == want:
            return True, ""
        shutil.rmtree(self.dir, ignore_errors=True)
        done = run(["meson", "setup", self.dir, *self.options], env={**os.environ, "CXX": self.compiler})
        if done.returncode == 0:
            write(stamp, want)
        return done.returncode == 0, done.stdout

    def compile(self, jobs):
        """Returns (worked, output): of all that fails, not of the first only, and without ninja's line for each step."""
        done = run(["ninja", "-C", self.dir, f"-j{jobs}", "-k", "0"])
        return done.returncode == 0, re.sub(r"^\[\d+/\d+\] .*\n", "", done.stdout, flags=re.MULTILINE)


def builds():
    # Half the time of a build with -O2 -g, and the reports have their lines all the same.
    sanitized = ["-Doptimization=1", "-Ddebug=false", "-Dcpp_args=-g1 -fno-omit-frame-pointer", "-Db_lundef=false"]
    # The one by clang is also that of its lock analysis and of clang-tidy.
    has_clang = shutil.which("clang++-14") is not None
    tsan = Build("tsan", "clang++-14" if has_clang else "g++",
                 ["-Db_sanitize=thread", *sanitized, f"-Dwerror={'true' if has_clang else 'false'}"])
    return [
        Build("gcc", "g++", ["-Dbuildtype=debugoptimized", "-Dwerror=true"]),
        Build("asan", "g++", ["-Db_sanitize=address,undefined", *sanitized, "-Dwerror=false"]),
        tsan,
        # What a clang that optimizes makes of it; in the short form gcc's has to do.
        Build("clang", "clang++-14", ["-Dbuildtype=debugoptimized", "-Dwerror=true"], long_only=True),
    ]


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def run(command, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False, **more)


def heading(text):
    bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold[0]}== {text}{bold[1]}", flush=True)


def seconds_since(start):
    return f"{time.monotonic() - start:.1f} s"


def project_files(*patterns):
    """The repository's files of these kinds, new ones that git does not know yet too; without git all that lie here."""
    listed = run(["git", "-c", f"safe.directory={os.getcwd()}", "ls-files", "-co", "--exclude-standard", "--", *patterns])
    if listed.returncode == 0:
        names = listed.stdout.split("\n")
    else:
        names = [name for pattern in patterns for name in glob.glob(f"**/{pattern}", recursive=True)
                 if not name.startswith("build")]
    return sorted({name for name in names if name and os.path.isfile(name)})


# ---- lints


def lint_scripts(tally):
    """Every shell and python file parses."""
    problems, count = [], 0
    for name in project_files("tools/*", "tests/*", ".ci/*"):
        with open(name, "rb") as file:
            first = file.readline(100)
        if name.endswith(".py") or (first.startswith(b"#!") and b"python" in first):
            try:
                compile(read(name), name, "exec")
            except SyntaxError as error:
                problems.append(f"{name}:{error.lineno}: {error.msg}")
        elif name.endswith(".sh") or (first.startswith(b"#!") and first.rstrip().endswith(b"sh")):
            parsed = run(["bash", "-n", name])
            if parsed.returncode != 0:
                problems.append(parsed.stdout)
        else:
            continue
        count += 1
    if problems:
        tally.fail("lint/scripts", output="\n".join(problems))
    else:
        tally.ok("lint/scripts", f"{count} files")


def lint_format(tally):
    tool = shutil.which("clang-format-14")
    if not tool:
        return tally.skip("lint/format", "clang-format-14 is not installed")
    files = project_files("*.cc", "*.h", "*.cpp")
    start = time.monotonic()
    done = run([tool, "--dry-run", "--Werror", *files]) if files else None
    if done and done.returncode != 0:
        wrong = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error", done.stdout, re.MULTILINE)))
        tally.fail("lint/format", f"mend it with: clang-format-14 -i {' '.join(wrong)}")
    else:
        tally.ok("lint/format", f"{len(files)} files, {seconds_since(start)}")
    return None


def lint_tidy(tally, build, jobs, with_tests):
    """clang-tidy over the files of the build by clang; over those of the tests, which take as long again, if asked. What passed is
    remembered in the build tree by the digest of all that went into it (file, headers, flags, settings), so a second run reads
    only what changed."""
    tool = shutil.which("clang-tidy-14")
    if not tool or build.compiler == "g++":
        return tally.skip("lint/tidy", f"clang{'-tidy' if not tool else '++'}-14 is not installed")
    start = time.monotonic()
    top = os.getcwd() + os.sep
    settings = "".join(read(name) for name in project_files(".clang-tidy", "*/.clang-tidy"))
    settings = hashlib.sha256((settings + run([tool, "--version"]).stdout).encode()).hexdigest()
    headers = ninja_headers(build)
    stamps = os.path.join(build.dir, "check-tidy")
    os.makedirs(stamps, exist_ok=True)
    todo = {}
    for entry in json.loads(read(os.path.join(build.dir, "compile_commands.json")) or "[]"):
        path = os.path.normpath(os.path.join(entry["directory"], entry["file"]))
        if not path.startswith(top) or path.startswith(top + "build") or (path.startswith(top + "tests") and not with_tests):
            continue
        digest = hashlib.sha256((settings + entry["command"]).encode())
        for name in [path, *headers.get(entry.get("output", ""), [])]:
            digest.update(read(name).encode())
        todo[path] = os.path.join(stamps, digest.hexdigest())
    fresh = {path: stamp for path, stamp in todo.items() if not os.path.exists(stamp)}

    def check(path):
        try:
            done = run([tool, "-p", build.dir, "--quiet", path], timeout=600)
        except subprocess.TimeoutExpired:
            return path, False, f"{path}: clang-tidy took more than ten minutes"
        if done.returncode == 0:
            write(fresh[path], path)
        return path, done.returncode == 0, done.stdout

    problems = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for path, worked, output in pool.map(check, sorted(fresh, key=os.path.getsize, reverse=True)):
            if not worked:
                problems.append(output.replace(top, ""))
    note = f"{len(todo)} files, {len(fresh)} of them new or changed, {seconds_since(start)}"
    if problems:
        tally.fail("lint/tidy", f"{len(problems)} files with findings; {note}", "\n".join(problems))
    elif not todo:
        tally.skip("lint/tidy", "the build compiles no file")
    else:
        tally.ok("lint/tidy", note)
    return None


def ninja_headers(build):
    """Object file -> the project's headers that it was made from, as ninja recorded them."""
    found, current = {}, None
    for line in run(["ninja", "-C", build.dir, "-t", "deps"]).stdout.splitlines():
        if line.startswith("    "):
            name = os.path.normpath(os.path.join(build.dir, line.strip()))
            if current is not None and not name.startswith("/"):
                current.append(name)
        elif ": #deps" in line:
            current = found.setdefault(line.split(": #deps")[0], [])
    return found


# ---- tests


def tests_of(build):
    """[(name, suites)] of a build tree that is set up."""
    shown = run(["meson", "introspect", build.dir, "--tests"])
    tests = []
    for test in json.loads(shown.stdout) if shown.returncode == 0 else []:
        tests.append((test["name"], [suite.split(":")[-1] for suite in test["suite"]]))
    return tests


def test_environment(build, long):
    # A setting of the person who runs this (UZSWAP_SOCKET, say) must not reach the tests, but for those made for them.
    env = {name: value for name, value in os.environ.items() if not name.startswith("UZSWAP") or name.startswith("UZSWAP_TEST_")}
    env.pop("UZSWAP_TEST_LONG", None)
    env.update({"UZSWAP_TEST_BUILD": build.name, **({"UZSWAP_TEST_LONG": "1"} if long else {})})
    reports = os.path.abspath(os.path.join(build.dir, "check-reports"))
    shutil.rmtree(reports, ignore_errors=True)
    os.makedirs(reports)
    log = f"log_path={reports}/report"
    if build.name == "asan":
        # A sanitized program under the agent has the agent loaded before the sanitizer: said to be in order.
        env["ASAN_OPTIONS"] = f"{log}:strict_string_checks=1:detect_stack_use_after_return=1:verify_asan_link_order=0"
        env["UBSAN_OPTIONS"] = f"{log}:print_stacktrace=1:halt_on_error=1"
    if build.name == "tsan":
        env["TSAN_OPTIONS"] = f"{log}:second_deadlock_stack=1"
    return env, reports


def wrapped_for_sanitizer(build, command):
    """Both compilers' sanitizer runtimes fail at random where the kernel spreads mappings over more than 28 bits."""
    bits = read("/proc/sys/vm/mmap_rnd_bits").strip()
    if build.name in ("asan", "tsan") and bits.isdigit() and int(bits) > 28 and shutil.which("setarch"):
        if run(["setarch", "-R", "true"]).returncode == 0:
            return ["setarch", "-R", *command]
    return command


def skip_lines(test):
    """What the test said of what it left out: lines like "skip NAME: reason"."""
    lines = [line.strip() for text in (test.get("stdout"), test.get("stderr")) for line in (text or "").splitlines()]
    return [line for line in lines if re.match(r"skip(ped)?\b[^:]*: .", line, re.IGNORECASE)], [line for line in lines if line]


def skip_reason(test):
    telling, all_lines = skip_lines(test)
    return (telling or all_lines[-1:] or ["exit status 77, and it printed no reason"])[0][:300]


def run_tests(tally, build, suites, long, jobs):
    sanitized = build.name in ("asan", "tsan")
    wanted = [(name, of) for name, of in tests_of(build)
              if (not suites or set(of) & suites) and (long or not sanitized or "e2e" not in of or build.name in of)]
    if not wanted:
        return
    env, reports = test_environment(build, long)
    command = ["meson", "test", "-C", build.dir, "--no-rebuild", "--num-processes", str(jobs), "--timeout-multiplier",
               str(TIMEOUT_FACTOR[build.name] * (LONG_FACTOR if long else 1))]
    command += [name for name, _ in wanted]
    log = os.path.join(build.dir, "meson-logs", "testlog.json")
    if os.path.exists(log):
        os.unlink(log)
    deadline = STAGE_SECONDS * (10 if long else 1)
    overdue, said = follow_meson(wrapped_for_sanitizer(build, command), env, deadline)

    seen = set()
    for line in read(log).splitlines():
        test = json.loads(line)
        name = re.sub(r"^.* / ", "", test["name"])
        seen.add(name)
        title = f"{build.name}/{name}"
        note = f"{test['duration']:.1f} s"
        if test["result"] in ("OK", "EXPECTEDFAIL"):
            tally.ok(title, shown=True)
            for line in skip_lines(test)[0]:
                print(f"        in {title}: {line[:300]}", flush=True)
        elif test["result"] == "SKIP":
            tally.skip(title, skip_reason(test))
        else:
            how = {"TIMEOUT": "ran out of time", "INTERRUPT": "was interrupted"}.get(
                test["result"], f"exit status {test['returncode']}")
            again = shlex.join(["meson", "test", "-C", build.dir, name])
            tally.fail(title, f"{how}, {note}; again: {again}", (test.get("stdout") or "") + (test.get("stderr") or ""))
    for name, _ in wanted:
        if name not in seen:
            tally.fail(f"{build.name}/{name}", "did not run" + (f": the stage took over {deadline} s" if overdue else ""), said)
            said = ""
    check_reports(tally, build, reports)
    check_left_processes(tally, build)


def follow_meson(command, env, deadline):
    """Runs meson test, shows its line for each test as it ends, and ends it after the deadline. Returns whether that was so, and
    the last of what else it said."""
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", start_new_session=True) as meson:
        overdue = []

        def end(*_):
            overdue.append(True)
            os.killpg(meson.pid, signal.SIGTERM)

        signal.signal(signal.SIGALRM, end)
        signal.alarm(deadline)
        other = []
        try:
            for line in meson.stdout:
                if re.match(r"\s*\d+/\d+ ", line):
                    print("  " + line.rstrip(), flush=True)
                else:
                    other.append(line)
            meson.wait()
        except BaseException:  # interrupted: the tests must not run on without us
            end()
            raise
        finally:
            signal.alarm(0)
    return bool(overdue), "".join(other[-20:])


def check_reports(tally, build, reports):
    """What a sanitizer said in any process of the tests: a daemon's report fails the check even where its test passed."""
    if build.name not in ("asan", "tsan"):
        return
    files = sorted(glob.glob(os.path.join(reports, "*")))
    texts = [f"{os.path.basename(name)}:\n{read(name)}" for name in files if read(name).strip()]
    if texts:
        tally.fail(f"{build.name}/no sanitizer reports", f"{len(texts)} reports; the first ones:", "\n".join(texts[:5]))
    else:
        tally.ok(f"{build.name}/no sanitizer reports")


def check_left_processes(tally, build):
    """A test that ends leaves no process of this build behind (a daemon whose client was forgotten, say)."""
    top = os.path.abspath(build.dir) + os.sep
    left = []
    for attempt in range(20):
        left = [(pid, exe) for pid, exe in running() if exe.startswith(top)]
        if not left:
            break
        time.sleep(0.1 if attempt < 19 else 0)
    for pid, _ in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    if left:
        tally.fail(f"{build.name}/no process left behind", "", "\n".join(f"pid {pid}: {exe}" for pid, exe in left))
    else:
        tally.ok(f"{build.name}/no process left behind")


def running():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield int(pid), os.readlink(f"/proc/{pid}/exe")
        except OSError:
            pass


# ---- all together


def list_all(chosen):
    build = chosen[0]
    worked, output = build.setup()
    if not worked:
        print(output)
        return 1
    tests = tests_of(build)
    print("lint: " + ", ".join(LINTS))
    for suite in sorted({suite for _, suites in tests for suite in suites} | set(SUITES)):
        names = [name for name, suites in tests if suite in suites]
        print(f"{suite}: {', '.join(names) or '(none yet)'}")
    print(f"builds: {', '.join(build.name for build in builds())}")
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--suite", action="append", default=[])
    parser.add_argument("--build", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    known = [build.name for build in builds()]
    for name in args.build:
        if name not in known:
            parser.error(f"there is no build {name}; there are {', '.join(known)}")
    for name in args.suite:
        if name not in (*LINTS, *SUITES, "lint"):
            parser.error(f"there is no suite {name}; there are {', '.join((*SUITES, *LINTS, 'lint'))}")
    chosen = [build for build in builds() if (build.name in args.build if args.build else args.long or not build.long_only)]
    if args.list:
        return list_all(chosen)

    lints = {lint for lint in LINTS if not args.suite and not args.build or lint in args.suite or "lint" in args.suite}
    if "tsan" in args.build and not args.suite:
        lints.add("tidy")
    suites = set(args.suite) & set(SUITES)
    testing = bool(suites) or not args.suite
    start = time.monotonic()
    tally = Tally()

    if lints & {"scripts", "format"}:
        heading("Lints")
        if "scripts" in lints:
            lint_scripts(tally)
        if "format" in lints:
            lint_format(tally)

    for build in chosen:
        tidies = build.name == "tsan" and "tidy" in lints
        if not testing and not tidies:
            continue
        heading(f"Build {build.name} ({build.compiler} {' '.join(build.options)}), {seconds_since(start)} since the start")
        if not shutil.which(build.compiler):
            tally.skip(f"{build.name}/build", f"{build.compiler} is not installed")
            continue
        began = time.monotonic()
        worked, output = build.setup()
        if worked:
            worked, output = build.compile(args.jobs)
        if not worked:
            tally.fail(f"{build.name}/build", seconds_since(began), output)
            continue
        tally.ok(f"{build.name}/build", seconds_since(began))
        if tidies:
            lint_tidy(tally, build, args.jobs, args.long or "tidy" in args.suite or "lint" in args.suite)
        if testing:
            run_tests(tally, build, suites, args.long, args.jobs)

    heading(f"Done in {seconds_since(start)}")
    for name, reason in tally.skipped:
        print(f"skipped: {name}: {reason}")
    for name in tally.failed:
        print(f"FAILED: {name}")
    print(f"{len(tally.passed)} passed, {len(tally.failed)} failed, {len(tally.skipped)} skipped", flush=True)
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
