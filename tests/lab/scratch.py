"""Directories for what runs: they, and what was started in them, end with the process that asked for them."""
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

SHM = Path("/dev/shm")
PREFIX = "vmi-live-"
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def parent():
    """Where the directories are: in memory if that can be; in either case with a path that is short enough for a socket."""
    return SHM if os.access(SHM, os.W_OK) else Path("/tmp")


def die_with_parent():
    """For Popen's preexec_fn: the child is killed when the thread that started it ends, in whichever way."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_users(directory):
    """Kill the QEMUs whose command line names the directory."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
            if b"qemu" in words[0] and any(bytes(directory) in word for word in words):
                os.kill(int(cmdline.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass


def sweep():
    """Remove what a killed process left behind. Each owner holds a lock, which the kernel releases when it dies."""
    for left in parent().glob(f"{PREFIX}*"):
        try:
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            # a new directory is not locked yet
            if status.st_uid == os.getuid() and time.time() - status.st_ctime > 60:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kill_users(left)
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


class Scratch:
    """A private directory that is removed at the end of the `with`."""

    def __enter__(self):
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent()))
        self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def end_by_exception():
    """SIGTERM and SIGINT end the process as sys.exit does, so that each `with` cleans up; SIGHUP too."""
    for interruption in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(interruption, lambda number, _: sys.exit(128 + number))


def until_eof():
    """Until whoever started this process closes its standard input, or dies."""
    while os.read(0, 1 << 16):
        pass
