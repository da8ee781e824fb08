#!/usr/bin/python3
"""Runs a command in a guest that has NUMA nodes: a kernel of Debian's under qemu, without KVM, on any machine.

By hand, after `ninja -C build`:
    tests/numa/guest.py --topology two-and-slow --program build/tests/numa/numa_store_test -- numa_store_test
    tests/numa/guest.py --topology holes -- cat /sys/devices/system/node/has_memory
"""
import argparse
import os
import pathlib
import shlex
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
import harness  # noqa: E402
import initramfs  # noqa: E402
import kernel  # noqa: E402
from harness import Failed, Skip  # noqa: E402
from topologies import TOPOLOGIES  # noqa: E402

QEMU = "qemu-system-x86_64"
# -cx16: qemu 7.2 emulates it wrongly at times, and a guest in eight would crash while it boots.
MACHINE = ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
           "-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 quiet"


class Outcome:
    def __init__(self, status, console, seconds):
        self.status = status    # of the command; 126 if it ended by a signal
        self.console = console  # what it and the kernel printed
        self.seconds = seconds


def cache_directory():
    return pathlib.Path(os.environ.get("UZSWAP_TEST_GUEST_CACHE") or HERE.parent.parent / "build/numa-cache").resolve()


def exit_program(context):
    return os.environ.get("UZSWAP_GUEST_EXIT", str(context.build / "tests/numa/guest_exit"))


def need(context):
    """Skip, with what to do about it, if no guest can be run here. Downloads the kernel the first time."""
    for tool, package in ((QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio")):
        if not shutil.which(tool):
            raise Skip(f"{tool} is not installed: apt-get install --no-install-recommends {package}")
    harness.check(os.path.exists(exit_program(context)), f"{exit_program(context)} is not built")
    kernel.fetched(cache_directory())


def run(context, topology, command, programs=(), files=None, seconds=120):
    """The Outcome of the shell script `command` in a guest of that topology (a name of TOPOLOGIES).

    `programs` and `files`: see initramfs.build. The console is shown as it comes. Failed if the guest does not end in time, or
    otherwise than by its init.
    """
    image = kernel.fetched(cache_directory())
    directory = pathlib.Path(tempfile.mkdtemp(prefix="guest.", dir=context.tmp))
    # A copy under the name that init calls.
    exit_copy = directory / "guest-exit"
    shutil.copy(exit_program(context), exit_copy)
    archive = initramfs.build(directory, [*programs, str(exit_copy)], files or {}, command)
    qemu = harness.Program(context, [QEMU, *MACHINE, *TOPOLOGIES[topology].qemu_arguments(), "-kernel", image, "-initrd", archive,
                                     "-append", KERNEL_ARGUMENTS], name=f"guest-{topology}")
    with open(qemu.stdout_path, "rb") as console:
        def follow():
            ended = not qemu.running()
            sys.stdout.write(console.read().decode(errors="replace"))
            sys.stdout.flush()
            return ended
        harness.until(follow, seconds, f"the guest {topology} ends")
    outcome = qemu.wait(1)
    # See guest_exit.cc. A guest that panicked or rebooted ends qemu with 0, an argument that qemu does not like with 1.
    if outcome.status < 3 or outcome.status % 2 == 0:
        raise Failed(f"the guest ended without a word of its init (qemu: {outcome.status})\n{qemu.tail()}")
    return Outcome(outcome.status // 2 - 1, qemu.stdout().decode(errors="replace"), outcome.seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", choices=sorted(TOPOLOGIES), default="two-and-slow")
    parser.add_argument("--program", action="append", default=[], metavar="FILE", help="put into the guest's /bin, with its libraries")
    parser.add_argument("--seconds", type=int, default=120, help="the guest is ended after that time")
    parser.add_argument("--build", default=os.environ.get("UZSWAP_BUILD", "build"), help="the build directory")
    parser.add_argument("command", nargs="+", help="what to run in the guest")
    options = parser.parse_args()
    options.long, options.native_only, options.seed = False, False, 1
    with harness.workplace(options) as context:
        try:
            need(context)
            return run(context, options.topology, shlex.join(options.command), options.program, seconds=options.seconds).status
        except Skip as reason:
            print(f"skip numa: {reason}")
            return 77
        except Failed as error:
            print(f"guest.py: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
