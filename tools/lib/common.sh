# Shared by tools/quickstart, tools/check and the scripts beside this file; sourced, not run.
#
# What is needed is a table of lines `package probe`. The probe says whether the thing is there, however it came there: an
# absolute path (may hold wildcards), a command, or `-` for "ask dpkg". So a machine whose node or java did not come from
# Debian's own package is left as it is.

UZSWAP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

packages_build='
g++                  g++
meson                meson
ninja-build          ninja
pkg-config           pkg-config
python3              python3
libcli11-dev         /usr/include/CLI/CLI.hpp
libfmt-dev           /usr/include/fmt/core.h
libspdlog-dev        /usr/include/spdlog/spdlog.h
nlohmann-json3-dev   /usr/include/nlohmann/json.hpp
liblz4-dev           /usr/include/lz4hc.h
libzstd-dev          /usr/include/zdict.h
libxxhash-dev        /usr/include/xxhash.h
libnuma-dev          /usr/include/numa.h
liburing-dev         /usr/include/liburing.h
libsystemd-dev       /usr/include/systemd/sd-daemon.h
'

# redis-tools, not redis-server: it holds the server's program too (see provide_redis) and starts no service.
packages_demo='
redis-tools          redis-check-rdb
'

packages_check='
git                  git
libgtest-dev         /usr/include/gtest/gtest.h
libgmock-dev         /usr/include/gmock/gmock.h
libbenchmark-dev     /usr/include/benchmark/benchmark.h
clang-14             clang++-14
clang-tidy-14        clang-tidy-14
clang-format-14      clang-format-14
libclang-rt-14-dev   /usr/lib/llvm-14/lib/clang/14*/lib/linux/libclang_rt.tsan-*.a
sqlite3              sqlite3
nodejs               node
default-jdk-headless javac
zstd                 zstd
spin                 spin
util-linux           setarch
qemu-system-x86      qemu-system-x86_64
busybox-static       busybox
cpio                 cpio
procps               ps
libevent-2.1-7       /usr/lib/*/libevent-2.1.so.7
libsasl2-2           /usr/lib/*/libsasl2.so.2
'

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

# A heading; bold on a terminal alone.
heading() {
  if [ -t 1 ]; then printf '\n\033[1m== %s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi
}

# Runs the command as root: as it is for root, through sudo else. 127 where neither is to be had.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 127; fi
}

probe_found() {  # package probe
  case $2 in
    -) [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
    /*) compgen -G "$2" >/dev/null ;;
    *) command -v "$2" >/dev/null ;;
  esac
}

# Prints the packages of the given tables that are not there, in one line.
missing_packages() {
  local package probe missing=()
  while read -r package probe; do
    [ -n "$package" ] || continue
    probe_found "$package" "$probe" || missing+=("$package")
  done <<<"$(printf '%s\n' "$@")"
  echo "${missing[*]}"
}

# Installs what is missing of the given tables, says what, and says nothing where nothing is. Fails (1) with the command that
# an administrator would type where it can't be installed.
install_packages() {
  local missing
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  local names
  read -ra names <<<"$missing"
  if ! command -v apt-get >/dev/null; then
    warn "Missing, by the names of their Debian packages: $missing"
    warn "There is no apt-get here: install them with this system's package manager, then run this again."
    return 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    warn "Missing packages: $missing"
    warn "As root run: apt-get install --no-install-recommends $missing"
    return 1
  fi
  say "Installing with apt-get: $missing"
  local log
  log=$(mktemp)
  if ! { apt_get update && apt_get install "${names[@]}"; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    warn "apt-get failed (its last lines are above). As root run: apt-get install --no-install-recommends $missing"
    return 1
  fi
  rm -f "$log"
  hash -r
  missing=$(missing_packages "$@")
  [ -z "$missing" ] || { warn "apt-get was content, but these are still missing: $missing"; return 1; }
}

# No question is asked, nothing extra comes along, and no service is started by what gets installed (RUNLEVEL=1 is how
# invoke-rc.d is told so where there is no systemd).
apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -y -q --no-install-recommends \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

# Puts a redis-server on the PATH in directory $1 where the machine has none but has redis-tools: the program redis-check-rdb
# of that package is the server under another name (Debian's redis-server package holds a link to it, and starts a service).
provide_redis() {
  command -v redis-server >/dev/null && return 0
  local program
  program=$(command -v redis-check-rdb) || return 1
  mkdir -p "$1" && ln -sfn "$program" "$1/redis-server" && PATH="$1:$PATH" && export PATH
}

# Puts memcached on the PATH in directory $1 where the machine has none: its package, unpacked and not installed, since installing it
# starts a service for everybody. Its libraries are in packages_check.
provide_memcached() {
  PATH="$1:$PATH" command -v memcached >/dev/null || {
    local unpacked
    unpacked=$(mktemp -d) && mkdir -p "$1" || return 1
    (cd "$unpacked" && apt-get -q download memcached && dpkg -x memcached_*.deb . && cp usr/bin/memcached "$1/") >"$unpacked/log" 2>&1 ||
      warn "memcached could not be had (its test is skipped): $(tail -n 1 "$unpacked/log")"
    rm -rf "$unpacked"
  }
  PATH="$1:$PATH" && export PATH
}

# meson setup where the build directory is not set up yet, or was set up with other options (the options are kept beside it).
setup_build() {  # directory options...
  local dir=$1 want
  shift
  want="$(printf '%s\n' "$UZSWAP_ROOT" "CXX=${CXX-}" "$@")"
  if [ -f "$dir/build.ninja" ] && [ "$(cat "$dir/.options" 2>/dev/null)" = "$want" ]; then return 0; fi
  rm -rf "$dir"
  mkdir -p "$(dirname "$dir")"
  meson setup "$dir" "$UZSWAP_ROOT" "$@" || return
  printf '%s\n' "$want" >"$dir/.options"
}

# How many compilers at once: one per CPU, and no more than one per 1.5 GiB of memory.
job_count() {
  local cpus memory_kib
  cpus=$(nproc)
  memory_kib=$(awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo)
  local by_memory=$(( memory_kib / 1572864 ))
  [ "$by_memory" -ge 1 ] || by_memory=1
  echo $(( cpus < by_memory ? cpus : by_memory ))
}
