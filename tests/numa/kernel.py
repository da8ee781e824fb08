"""The guest's kernel: Debian's, from the mirror that apt uses on this machine, kept in a cache directory.

apt gets directories and a sources file of its own, all in the cache, so the machine's package lists, caches and hooks stay
as they are. Which mirror it is, is asked at run time and stands in the cache alone.
"""
import fcntl
import os
import pathlib
import shutil
import subprocess

from harness import Skip

SUITE = "trixie"                     # 6.12: UFFDIO_MOVE needs 6.8, which Debian 12 does not have
PACKAGE = "linux-image-cloud-amd64"  # NUMA, HMAT and userfaultfd are built in: it boots without modules
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT_SECONDS = 300


def fetched(cache):
    """The path of a kernel image; it is downloaded if the cache has none. Skip if it can't be had."""
    image = cache / "vmlinuz"
    if image.exists():
        return image
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise Skip(f"no {tool} to get a kernel with: put a Linux 6.8 or newer for x86-64 at {image}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not image.exists():
                _download(cache, image)
    except OSError as error:
        raise Skip(f"{error}: set UZSWAP_TEST_GUEST_CACHE to a directory that can be written") from None
    except subprocess.SubprocessError as error:
        raise Skip(f"{error}: mend apt, or put a Linux 6.8 or newer for x86-64 at {image}") from None
    return image


def _download(cache, image):
    work = cache / "download"
    shutil.rmtree(work, ignore_errors=True)
    problems = []
    for site in _sites():
        work.mkdir()
        try:
            _download_from(site, work, image)
            return
        except subprocess.TimeoutExpired as error:
            problems.append(f"{error.cmd[0]} took longer than {APT_SECONDS} s")
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stdout.splitlines() if line[:2] in ("E:", "W:")] or error.stdout.splitlines()
            problems.append(f"{error.cmd[0]}: {said[0] if said else 'failed'}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    # Of the first site: the others are less likely to have it at all.
    problem = problems[0] if problems else "apt has no Debian archive in its sources"
    raise Skip(f"{problem}; no kernel for the guest: mend apt or the network, or put a Linux 6.8 or newer for x86-64 at {image}")


def _sites():
    """The sites of apt's sources that have the component main, the one of this system's own release first."""
    listed = _run(["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages", "Component: main"])
    release = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if "=" in line)
    own = release.get("VERSION_CODENAME", "").strip('"')
    lines = sorted((line.split() for line in listed.splitlines()), key=lambda words: words[0] != own)
    return list(dict.fromkeys(site for _, site in lines))


def _download_from(site, work, image):
    for name in ("lists/partial", "cache/archives/partial", "unpacked"):
        (work / name).mkdir(parents=True)
    signed = f" signed-by={KEYRING}" if os.path.exists(KEYRING) else ""
    (work / "sources.list").write_text(f"deb [arch=amd64{signed}] {site} {SUITE} main\n", encoding="utf-8")
    # Read after the machine's own settings (a proxy, say, which we need): what they want done after an update is left out.
    (work / "apt.conf").write_text(f"""
Dir::State::Lists "{work}/lists";
Dir::Cache "{work}/cache";
Dir::Etc::SourceList "{work}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "2";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
""", encoding="utf-8")
    settings = ["-c", str(work / "apt.conf")]
    _run(["apt-get", *settings, "-q", "--error-on=any", "update"])
    # The package is an empty one that depends on the newest version, whose name changes with every update.
    words = _run(["apt-cache", *settings, "depends", PACKAGE]).split()
    newest = words[words.index("Depends:") + 1]
    _run(["apt-get", *settings, "-q", "download", newest], cwd=work)
    package = next(work.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(package), str(work / "unpacked")])
    next((work / "unpacked/boot").glob("vmlinuz-*")).rename(image)


def _run(command, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=True, timeout=APT_SECONDS, env={**os.environ, "LC_ALL": "C.UTF-8"}, **more).stdout
