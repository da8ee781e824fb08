"""What the guest has for a root: busybox, an init, the files that a test gives it, and the libraries of those."""
import os
import pathlib
import re
import shutil
import subprocess

from harness import Skip

BUSYBOX = "/bin/busybox"  # Debian's busybox-static; any static one will do

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
stty -onlcr
ip link set lo up
export PATH=/bin HOME=/tmp LC_ALL=C.UTF-8
cd /tmp
/command </dev/null
exec guest-exit $?
"""


def libraries(program):
    """Absolute paths of what `program` is linked with, the dynamic loader among them."""
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if re.search(r"not a dynamic executable|statically linked", listed.stdout):
        return []
    missing = re.findall(r"(\S+) => not found", listed.stdout)
    if listed.returncode != 0 or missing:
        raise Skip(f"{program} lacks libraries: {', '.join(missing) or listed.stdout.strip()}")
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def build(directory, programs, files, command):
    """Writes an initramfs below `directory` and returns its path.

    `programs` are put into /bin under their own names, `files` is {path in the guest: text}, `command` the text of a shell
    script that init runs.
    """
    for tool, package in (("busybox", "busybox-static"), ("cpio", "cpio"), ("ldd", "libc-bin")):
        if not shutil.which(tool):
            raise Skip(f"no {tool}: apt-get install {package}")
    root = directory / "root"
    for name in ("bin", "proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if libraries(busybox):
        raise Skip(f"{busybox} is not static: apt-get install busybox-static")
    shutil.copy(busybox, root / "bin/busybox")
    for program in programs:
        _copy(program, root / "bin" / os.path.basename(program))
        for library in libraries(program):
            inside = root / library[1:]
            if not inside.exists():
                inside.parent.mkdir(parents=True, exist_ok=True)
                _copy(library, inside)
    for path, text in {"init": INIT, "command": "#!/bin/busybox sh\n" + command, **files}.items():
        inside = root / path.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text, encoding="utf-8")
        inside.chmod(0o755)
    archive = directory / "initramfs"
    names = "\0".join(sorted(str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*")))
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "-0", "-o", "-H", "newc", "-R", "0:0", "--quiet"], input=names.encode(), stdout=out, cwd=root, check=True)
    shutil.rmtree(root)
    return archive


def _copy(source, target):
    """Without its debug information, which is most of a program and is memory of the guest."""
    stripped = subprocess.run(["strip", "--strip-debug", "-o", target, source], capture_output=True, check=False)
    if stripped.returncode != 0:
        shutil.copy(source, target)
    target.chmod(0o755)
