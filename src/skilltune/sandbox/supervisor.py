"""Runs one command, bounds it, and ends every process that it started.

`process.run_process` runs this file as a program of its own, without the rest of skilltune, because it must be small
and must have one thread. It adopts orphans (PR_SET_CHILD_SUBREAPER), so a process that forks twice and calls `setsid`
is still a descendant, and the tree is empty exactly when `waitpid` has no child left. Where the system has no
subreaper (macOS), descendants are found by `ps`.

It ends the command if the other end of the control pipe is closed, so nothing outlives a killed skilltune.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

LINUX = sys.platform == "linux"
MARK = "SKILLTUNE_PROCESS"  # environment variable that all descendants carry
WATCH_S = 0.1  # time between two looks at the tree
SETTLE_S = 0.15  # time that processes may need to end by themselves after the command has ended
KILL_S = 20.0  # time after which a process that SIGKILL does not end (it waits in the kernel) is given up
THREADS = 8  # threads that one process may have, for the limit of the user's threads, which is only a backstop
SPARE_THREADS = 1_024
_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1


class Member(NamedTuple):
    """One living process of a tree. `cpu_s` includes its children that have ended."""

    pid: int
    cpu_s: float


def main(spec: int, control: int, status: int) -> None:
    """Run the command of the file descriptor `spec` and report to `status`, one JSON object a line."""
    with os.fdopen(spec, "rb") as file:
        job = json.loads(file.read())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the control pipe is the only way to end this process early
    if LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    began = time.monotonic()
    try:
        child = _start(job, control, status)
    except OSError as error:
        _report(status, {"failed": error.errno, "stage": error.strerror})
        return
    _report(status, {"pid": child})
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # a reader sees the end of a stream when the last process of the tree has closed it
        os.dup2(nowhere, stream)
    outcome = _Watch(job, child, control, began).run()
    _report(status, outcome)


def _report(status: int, content: dict[str, Any]) -> None:
    with suppress(OSError):  # the reader has gone
        os.write(status, json.dumps(content).encode() + b"\n")


# -- start


def _start(job: dict[str, Any], control: int, status: int) -> int:
    """Fork and execute the command. Raises OSError whose text is the stage that failed: "cwd" or "exec"."""
    told, tell = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(job, supervisor, tell, (control, status))
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        failure = pipe.read()  # empty: the pipe was closed by a successful exec
    if failure:
        os.waitpid(child, 0)
        number, _, stage = failure.decode().partition(" ")
        raise OSError(int(number), stage)
    return child


def _become(job: dict[str, Any], supervisor: int, tell: int, inherited: Iterable[int]) -> NoReturn:
    stage = "cwd"
    try:
        os.setsid()
        if LINUX:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)
        for descriptor in inherited:
            os.close(descriptor)
        for number in range(1, signal.NSIG):  # Python ignores SIGPIPE and SIGXFSZ, and so would the command
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _limit(job)
        os.chdir(job["cwd"])
        stage = "exec"
        os.execvpe(job["argv"][0], job["argv"], job["env"])
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        os.write(tell, f"{number} {stage if number else f'{stage}: {error}'}".encode())
    os._exit(127)


def _limit(job: dict[str, Any]) -> None:
    """Limits that the system enforces for each process. The sums over the tree are watched."""
    _lower(resource.RLIMIT_CORE, 0)
    if job["cpu_s"] is not None:
        _lower(resource.RLIMIT_CPU, int(job["cpu_s"]) + 1)
    if job["file_mb"] is not None:
        _lower(resource.RLIMIT_FSIZE, job["file_mb"] * 1_000_000)
    if job["processes"] is not None and LINUX and os.getuid():  # root is exempt from it
        _lower(resource.RLIMIT_NPROC, _threads_of_user() + THREADS * job["processes"] + SPARE_THREADS)
    if LINUX:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the system's first choice if memory runs out


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _threads_of_user() -> int:
    user, threads = os.getuid(), 0
    for pid in _numbers("/proc"):
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == user:
                threads += len(os.listdir(f"/proc/{pid}/task"))
    return threads


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# -- watch


class _Watch:
    """One running command, until its tree is empty."""

    def __init__(self, job: dict[str, Any], child: int, control: int, began: float) -> None:
        self.job, self.child, self.control, self.began = job, child, control, began
        self.parent = os.getppid()
        self.code: int | None = None
        self.known: dict[int, str] = {}  # macOS: processes seen below the child, with their start time
        self.woken, waker = os.pipe()
        for end in (self.woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> dict[str, Any]:
        limit = self._until_end()
        if self.code is None:
            self._terminate()
        survivors = self._clear(settle=not limit)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "code": self.code,
            "limit": limit,
            "survivors": survivors,
            "cpu_s": used.ru_utime + used.ru_stime,
            "seconds": time.monotonic() - self.began,
        }

    def _until_end(self) -> str:
        """The limit that was passed, "closed" if nobody waits any more, or "" if the command has ended."""
        end = self.began + self.job["wall_s"]
        while True:
            self._reap()
            if self.code is not None:
                return ""
            now = time.monotonic()
            if now >= end:
                return "wall_s"
            if os.getppid() != self.parent:
                return "closed"
            if over := self._over():
                return over
            if self.control in self._wait(min(WATCH_S, end - now)):
                return "closed"

    def _over(self) -> str:
        """The name of a limit over the whole tree that is passed, or ""."""
        job = self.job
        if job["cpu_s"] is None and job["memory_mb"] is None and job["processes"] is None and LINUX:
            return ""
        tree = self._tree()
        if job["processes"] is not None and len(tree) > job["processes"]:
            return "processes"
        if job["cpu_s"] is not None:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            if used.ru_utime + used.ru_stime + sum(member.cpu_s for member in tree) > job["cpu_s"]:
                return "cpu_s"
        if job["memory_mb"] is not None and _resident_mb(tree) > job["memory_mb"]:
            return "memory_mb"
        return ""

    def _wait(self, seconds: float) -> list[int]:
        ready = select.select([self.control, self.woken], (), (), max(seconds, 0))[0]
        if self.woken in ready:
            with suppress(BlockingIOError):
                os.read(self.woken, 512)
        return ready

    def _reap(self) -> bool:
        """Collect what has ended. True if no child is left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                if pid == self.child:
                    self.code = os.waitstatus_to_exitcode(status)
        return True

    def _terminate(self) -> None:
        """Ask the command to end, and give it time."""
        with suppress(OSError):
            os.killpg(self.child, signal.SIGTERM)
        end = time.monotonic() + self.job["grace_s"]
        while self.code is None and time.monotonic() < end:
            select.select([self.woken], (), (), WATCH_S)
            with suppress(BlockingIOError):
                os.read(self.woken, 512)
            self._reap()

    def _clear(self, settle: bool) -> int:
        """End all descendants. Returns the number of those that lived on after the command itself had ended."""
        end = time.monotonic() + SETTLE_S
        while settle and self._left() and time.monotonic() < end:
            time.sleep(0.01)
        survivors, end = set(), time.monotonic() + KILL_S
        while self._left() and time.monotonic() < end:
            tree = {member.pid for member in self._tree()}
            survivors |= tree - {self.child}
            for number in (signal.SIGSTOP, signal.SIGKILL):  # a stopped fork bomb cannot outrun the second signal
                for pid in tree:
                    with suppress(OSError):
                        os.kill(pid, number)
            select.select([self.woken], (), (), 0.005)
        return len(survivors)

    def _left(self) -> bool:
        nobody = self._reap()
        return not nobody or (not LINUX and bool(self._tree()))

    def _tree(self) -> list[Member]:
        if LINUX:
            return descendants(os.getpid())
        self.known, tree = _descendants_by_ps(self.child, self.known)
        return tree


# -- the tree


def descendants(root: int) -> list[Member]:
    """The living processes below `root` (Linux), without those that have ended and wait to be collected."""
    try:
        return [member for pid in _children(root) for member in _family(pid)]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended
        return _descendants_of_all(root)


def _family(pid: int) -> list[Member]:
    """A process and all below it. It costs as much as the tree is large, and not as much as the machine is busy."""
    try:
        state, _, cpu_s = _stat(pid)
        own = [] if state in b"ZX" else [Member(pid, cpu_s)]
        return own + [member for child in _children(pid) for member in _family(child)]
    except (OSError, RecursionError):  # it has just ended, and its children are found at the next look
        return []


def _children(pid: int) -> list[int]:
    found = []
    for thread in _numbers(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


def _stat(pid: int) -> tuple[bytes, int, float]:
    """State, parent and seconds of processor time, with those of children that have ended."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _descendants_of_all(root: int) -> list[Member]:
    children: dict[int, list[tuple[bytes, Member]]] = {}
    for pid in _numbers("/proc"):
        with suppress(OSError):
            state, parent, cpu_s = _stat(pid)
            children.setdefault(parent, []).append((state, Member(pid, cpu_s)))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        queue += [member.pid for _, member in below]
        found += [member for state, member in below if state not in b"ZX"]
    return found


def _numbers(folder: str) -> list[int]:
    return [int(name) for name in os.listdir(folder) if name.isdecimal()]


def _resident_mb(tree: list[Member]) -> float:
    """Private resident memory of a tree, in MB. Pages that processes share by a fork are counted for each."""
    pages = 0
    for member in tree:
        with suppress(OSError), open(f"/proc/{member.pid}/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            pages += resident - shared
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _descendants_by_ps(child: int, known: dict[int, str]) -> tuple[dict[int, str], list[Member]]:
    """The living processes below or in the group of `child`, and those that were seen there before."""
    import subprocess

    columns = ["-o", f"{'=,'.join(('pid', 'ppid', 'pgid', 'stat', 'time', 'lstart'))}="]
    listing = subprocess.run(["ps", "-A", *columns], capture_output=True, text=True, check=False).stdout
    rows = [(int(pid), int(ppid), int(pgid), *rest) for pid, ppid, pgid, *rest in map(str.split, listing.splitlines())]
    begun = {row[0]: " ".join(map(str, row[5:])) for row in rows}
    tree = {pid for pid, start in known.items() if begun.get(pid) == start} | {child} & begun.keys()
    while new := {row[0] for row in rows if row[0] not in tree and (row[1] in tree or row[2] == child)}:
        tree |= new
    alive = [row for row in rows if row[0] in tree and not str(row[3]).startswith("Z")]
    return {pid: begun[pid] for pid in tree}, [Member(row[0], _clock(str(row[4]))) for row in alive]


def _clock(text: str) -> float:
    """Seconds of "1:02.50" or "1:02:03"."""
    seconds = 0.0
    for part in text.replace("-", ":").split(":"):
        seconds = seconds * 60 + float(part or 0)
    return seconds


def marked(mark: str) -> list[int]:
    """The processes of this user whose environment carries a mark, apart from this one. The last resort if a
    supervisor was killed: a process can remove the mark from its own environment."""
    text = f"{MARK}={mark}"
    if not LINUX:
        import subprocess

        listing = subprocess.run(["ps", "-A", "-E", "-o", "pid=,command="], capture_output=True, text=True, check=False)
        return [int(line.split()[0]) for line in listing.stdout.splitlines() if text in line]
    found = []
    for pid in _numbers("/proc"):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if text.encode() in file.read().split(b"\0") and pid != os.getpid():
                found.append(pid)
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
