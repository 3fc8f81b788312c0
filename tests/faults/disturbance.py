"""A recipe in a process of its own, disturbed at a named place: killed, its disk full, its folder read-only.

Places are what Python's audit events tell of files under a folder: the n-th file opened for writing, the n-th rename.
Moments in between, as in the middle of a native writer, are reached by time.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from warm_processes import finish, start

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
_MS_RDONLY, _MS_REMOUNT = 1, 32


def begin(folder, log, cache, action, at):
    """Run in the recipe's process, before it: note each place in `log`, and at place number `at` take an action."""
    import datasets.config

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background ignore
    os.setsid()  # what it starts is found by its session, and a Ctrl-C reaches all of it
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    here, count, descriptor = os.path.realpath(folder), 0, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, args):
        nonlocal count, at
        if event not in _EVENTS or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not (args[2] or 0) & _WRITES:
            return
        path = os.path.join(os.getcwd(), os.fsdecode(args[0]))
        if not path.startswith(f"{here}{os.sep}"):
            return
        count += 1
        os.write(descriptor, f"{event.removeprefix('os.')} {os.path.relpath(path, here)}\n".encode())
        if at is not None and count >= at:
            at, once_more = None, count + 1  # first, since an exception may come of it
            if not take(action, here):
                at = once_more

    sys.addaudithook(hook)


def take(action, folder):
    """Whether it was done; a folder in which a file is open for writing does not become read-only."""
    if action == "read-only":
        mount = ctypes.CDLL(None, use_errno=True).mount
        return mount(None, os.fsencode(folder), None, _MS_REMOUNT | _MS_RDONLY, None) == 0
    if action == signal.SIGINT:
        os.killpg(0, action)  # as a terminal does
    else:
        os.kill(os.getpid(), action)
    return True


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, output, the places it came by, and what it left running."""

    returncode: int
    stdout: str
    stderr: str
    places: list[str]
    survivors: list[int]

    @property
    def last_line(self):
        """What was said last; a progress bar may close after it."""
        lines = [line.strip() for line in re.split(r"[\r\n]", self.stderr)]
        said = [line for line in lines if line and not re.search(r"\[.*(it|tokens|rows)/s.*\]$", line)]
        return said[-1] if said else ""


class Running:
    """`python recipes/<script>.py` in the folder `place/here`; see [`begin`]."""

    def __init__(self, place, script, words, action=None, at=None):
        self.log = Path(place, f"places-{time.monotonic_ns()}.log")
        given = tuple(map(str, (Path(place, "here"), self.log, Path(place, "cache"))))
        Path(place, "here").mkdir(parents=True, exist_ok=True)
        before = f"from faults.disturbance import begin; begin(*{given!r}, {action!r}, {at!r})"
        before = before.replace(repr(action), repr(int(action))) if isinstance(action, signal.Signals) else before
        self.process = start(f"recipes/{script}.py", *words, cwd=Path(place, "here"), before=before)

    def send(self, number, seconds):
        """A signal, so many seconds after it began."""
        while not self.log.exists():
            time.sleep(0.005)
        self.process.join(seconds)
        if self.process.is_alive():
            (os.killpg if number == signal.SIGINT else os.kill)(self.process.pid, number)
        return self

    def end(self):
        done = finish(self.process, timeout=300)
        survivors, deadline = running_in(self.process.pid), time.monotonic() + 30
        while survivors and time.monotonic() < deadline:
            time.sleep(0.05)
            survivors = running_in(self.process.pid)
        places = self.log.read_text().splitlines() if self.log.exists() else []
        return Ended(done.returncode, done.stdout, done.stderr, places, survivors)


def running_in(session):
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def mount(folder, size="64m"):
    """An empty disk of its own size; PermissionError where this user may not do that."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"this user may not mount: {done.stderr.strip()}")


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def unmount(folder):
    subprocess.run(["umount", "-l", str(folder)], check=True)
