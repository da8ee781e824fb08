#!/usr/bin/python3
"""Installs libzpool into a folder of its own and builds the example with nothing but what lies there.

Arguments: the build folder, the example as the build made it. Exit status 77 is a skip; the last line says why.
"""
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

BUILD, EXAMPLE = sys.argv[1:3]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, **options)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def find(folder, name):
    found = [os.path.join(path, name) for path, _, files in os.walk(folder) if name in files]
    assert len(found) == 1, (name, found)
    return found[0]


def main():
    for tool in ("pkg-config", "meson"):
        if shutil.which(tool) is None:
            skip(f"{tool} is not installed")
    with tempfile.TemporaryDirectory() as root:
        run(["meson", "install", "-C", BUILD, "--no-rebuild", "--tags", "devel", "--destdir", root])
        package = find(root, "zpool.pc")
        header = find(root, "page_store.h")
        assert header.endswith("/include/libzpool/store/page_store.h"), header
        library = find(root, "libzpool.a")

        # The paths in it are those of the real place, and other libraries' do not lie below `root`.
        environment = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(package))
        places = [f"--define-variable=includedir={header.removesuffix('/libzpool/store/page_store.h')}",
                  f"--define-variable=libdir={os.path.dirname(library)}"]
        flags = run(["pkg-config", *places, "--static", "--cflags", "--libs", "zpool"], env=environment)
        assert f"-L{os.path.dirname(library)}" in flags and "-lzpool" in flags and "-llz4" in flags, flags
        program = os.path.join(root, "example")
        # Away from the source tree, whose headers must not be found.
        source = shutil.copy(os.environ["ZPOOL_EXAMPLE"], root)
        run([*shlex.split(os.environ["CXX"]), "-std=c++20", *shlex.split(os.environ["CXXFLAGS"]), source, "-o", program,
             *shlex.split(flags)], cwd=root)
        said = run([program, EXAMPLE])
        assert "saved:" in said and said == run([EXAMPLE, EXAMPLE]), said
        # Every header can be had, the uppermost first: none misses one that is not installed.
        include = places[0].split("=", 2)[-1]
        headers = sorted(os.path.relpath(os.path.join(path, name), include)
                         for path, _, files in os.walk(include) for name in files)
        assert len(headers) > 20, headers
        run([*shlex.split(os.environ["CXX"]), "-std=c++20", "-fsyntax-only", "-x", "c++", "-", *shlex.split(flags)],
            cwd=root, input="".join(f'#include "{header}"\n' for header in reversed(headers)))


main()
