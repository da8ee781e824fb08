"""The part of a service manager that keeps descriptors: NOTIFY_SOCKET, FDSTORE=1, LISTEN_FDS, as sd_notify(3) and
sd_listen_fds(3) tell it. The real one is tested in a guest; this one lets a test kill everything and start again in a second.

Run as a program it moves the descriptors of `NUMBER:NAME,...` to 3 and on, and executes the rest of its arguments.
"""
import array
import os
import pathlib
import socket
import sys
import threading


class FdStore:
    """Keeps what is pushed, by name, until it is removed."""

    def __init__(self, directory):
        self.path = str(pathlib.Path(directory) / "notify.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.path)
        self._lock = threading.Lock()
        self._kept = {}
        self.ready = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_LEN(64 * 4), socket.MSG_CMSG_CLOEXEC)
            fds = []
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += array.array("i", content[:len(content) // 4 * 4]).tolist()
            fields = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            name = fields.get("FDNAME", "")
            with self._lock:
                if "FDSTOREREMOVE" in fields and name in self._kept:
                    os.close(self._kept.pop(name))
                if "FDSTORE" in fields and fds:
                    if name in self._kept:
                        os.close(self._kept.pop(name))
                    self._kept[name] = fds.pop(0)
            for fd in fds:
                os.close(fd)
            if fields.get("READY") == "1":
                self.ready.set()

    def names(self):
        with self._lock:
            return sorted(self._kept)

    def start(self, start, argv, **more):
        """start(argv, pass_fds=…, env=…) with everything that is kept passed on."""
        self.ready.clear()
        with self._lock:
            kept = dict(self._kept)
            listed = ",".join(f"{fd}:{name}" for name, fd in kept.items())
            return start([sys.executable, __file__, listed, *argv], pass_fds=tuple(kept.values()), **more)


def main():
    pairs = [item.split(":") for item in sys.argv[1].split(",") if item]
    # Above the targets first, so that none is overwritten before it is placed.
    base = 3 + len(pairs) + 64
    high = []
    for number, _ in pairs:
        copy = os.dup(int(number))
        while copy < base:
            copy = os.dup(int(number))
        high.append(copy)
    for i, fd in enumerate(high):
        os.dup2(fd, 3 + i, inheritable=True)
    os.closerange(3 + len(pairs), os.sysconf("SC_OPEN_MAX"))
    if pairs:
        os.environ.update(LISTEN_FDS=str(len(pairs)), LISTEN_FDNAMES=":".join(name for _, name in pairs), LISTEN_PID=str(os.getpid()))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
