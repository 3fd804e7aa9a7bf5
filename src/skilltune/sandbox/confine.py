"""Gives up rights and then runs a program: `python -I -S confine.py RULES PROGRAM ARGUMENT…` (Linux).

It runs without the rest of skilltune, because it stands between a sandbox and the program that is confined. RULES is
a JSON object, see `Rules`. The rights are given up for this process and all that it starts, and never come back:

- Landlock (kernel 5.13 and later): files are read and written only below granted paths, processes outside cannot be
  traced or (6.12) signalled, TCP connects (6.7) only to granted ports.
- Seccomp, if connections are limited: Landlock restricts only TCP, so no other kind of internet socket can be made.
  It also closes three ways around Landlock's hook: MPTCP, TCP fast open and io_uring.
- Capabilities of root that reach around both: raw disks, kernel modules, files by handle.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

REFUSED = "skilltune cannot confine the command"  # the beginning of what is printed if the program was not run
REFUSED_CODE = 126
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")

# uapi/linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_FS = (1 << 13) - 1  # all rights of ABI 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_CONNECT_TCP = 1 << 1
_SCOPED = 0b11  # abstract Unix sockets and signals stay inside
TCP_ABI, SCOPE_ABI = 4, 6

# capabilities that root keeps: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE
_KEPT_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 10}
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The version of Landlock, or 0 if this kernel has none."""
    if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
        return 0
    return max(_libc.syscall(_CREATE_RULESET, None, 0, 1), 0)


def confine(rules: dict[str, Any]) -> None:
    """Give up rights. `rules` has these keys:

    - "files": True to restrict files to the following lists of absolute paths;
    - "write": paths below which everything may be read and written;
    - "read": paths below which everything may be read, or None for the whole disk;
    - "hidden" and "shown": paths taken from and given back to what may be read (the longest decides);
    - "connect": TCP ports, or None for no limit;
    - "trial": True to end before the program is run.

    Raises OSError if the system refuses.
    """
    _drop_capabilities()
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _restrict(rules)
    if rules["connect"] is not None:
        _filter_sockets()


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _drop_capabilities() -> None:
    for capability in range(64):
        if capability not in _KEPT_CAPABILITIES:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # a user without capabilities has none to drop


# -- Landlock


def _restrict(rules: dict[str, Any]) -> None:
    version = abi()
    files = 0
    if rules["files"]:
        files = _FIRST_FS | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
        files |= _IOCTL_DEV if version >= 5 else 0
    net = _CONNECT_TCP if rules["connect"] is not None and version >= TCP_ABI else 0
    scoped = _SCOPED if version >= SCOPE_ABI else 0
    if not files | net | scoped:
        return
    attributes = struct.pack("=QQQ", files, net, scoped)[: 24 if scoped else 16 if net else 8]
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    if files:
        _grant_files(ruleset, rules, files)
    for port in rules["connect"] or () if net else ():
        rule = struct.pack("=QQ", _CONNECT_TCP, port)
        _check(_libc.syscall(_ADD_RULE, ruleset, 2, rule, 0), f"landlock rule for port {port}")
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _grant_files(ruleset: int, rules: dict[str, Any], handled: int) -> None:
    reading = _EXECUTE | _READ_FILE | _READ_DIR
    for path in readable(rules["read"], rules["hidden"], rules["shown"]):
        _grant(ruleset, path, reading & handled)
    for name in DEVICES:
        _grant(ruleset, f"/dev/{name}", (reading | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & handled)
    for path in rules["write"]:
        _grant(ruleset, path, handled & ~(_MAKE_CHAR | _MAKE_BLOCK))


def _grant(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # a path that does not exist, or that this user cannot reach, needs no right
        return
    try:
        if not os.path.isdir(path):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, descriptor)
        _check(_libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
    finally:
        os.close(descriptor)


def readable(read: Iterable[str] | None, hidden: Iterable[str], shown: Iterable[str]) -> Iterator[str]:
    """The paths whose whole content may be read, for a system that can only grant. Devices are left out, because a
    disk's device contains its files."""
    marks = dict.fromkeys(hidden, False) | dict.fromkeys(shown, True) | {"/dev": False}
    starts = ["/"] if read is None else list(read)
    for start in starts:
        decided = [path for path in marks if _contains(path, start)]
        yield from _granted(start, marks, marks[max(decided, key=len)] if decided else True)


def _granted(path: str, marks: dict[str, bool], on: bool) -> Iterator[str]:
    on = marks.get(path, on)
    below = [mark for mark in marks if mark != path and _contains(path, mark)]
    if not below:
        if on:
            yield path
        return
    with suppress(OSError):
        prefix = path.rstrip("/") + "/"
        for name in os.listdir(path) if on else {mark[len(prefix) :].partition("/")[0] for mark in below}:
            child = prefix + name
            if not os.path.islink(child):  # rights hold for the target
                yield from _granted(child, marks, on)


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# -- seccomp

_SYSCALLS = {  # architecture of the audit system, then socket, sendto, sendmsg, sendmmsg, io_uring_setup
    "x86_64": (0xC000003E, 41, 44, 46, 307, 425),
    "aarch64": (0xC00000B7, 198, 206, 211, 269, 425),
}
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EACCES, _ENOSYS, _EAFNOSUPPORT = 13, 38, 97
_FAST_OPEN = 0x20000000
_Step = tuple[int, int, str, str]  # code, value, label if true, label if false ("" is the next step)


def _filter_sockets() -> None:
    program = socket_filter(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


def socket_filter(machine: str) -> bytes:
    """A BPF program that allows Unix, netlink and TCP sockets, and no other way to the network."""
    audit, socket, sendto, sendmsg, sendmmsg, io_uring = _SYSCALLS[machine]

    def load(offset: int) -> _Step:
        return (_LOAD, offset, "", "")

    def argument(number: int) -> _Step:
        return load(16 + 8 * number)  # the low half, because both machines are little-endian

    steps: list[_Step | str] = [
        load(4),
        (_IF_EQUAL, audit, "", "refuse"),  # a program of another architecture has other numbers
        load(0),
        (_IF_AT_LEAST, 0x40000000, "refuse", ""),  # x32
        (_IF_EQUAL, io_uring, "missing", ""),  # it can make and connect sockets without a system call
        (_IF_EQUAL, socket, "socket", ""),
        (_IF_EQUAL, sendto, "flags 3", ""),
        (_IF_EQUAL, sendmmsg, "flags 3", ""),
        (_IF_EQUAL, sendmsg, "flags 2", "allow"),
        "flags 3",
        argument(3),
        (_IF_BIT, _FAST_OPEN, "refuse", "allow"),
        "flags 2",
        argument(2),
        (_IF_BIT, _FAST_OPEN, "refuse", "allow"),
        "socket",
        argument(0),
        (_IF_EQUAL, 1, "allow", ""),  # AF_UNIX
        (_IF_EQUAL, 16, "allow", ""),  # AF_NETLINK, by which programs list the interfaces
        (_IF_EQUAL, 2, "internet", ""),
        (_IF_EQUAL, 10, "internet", "unknown"),
        "internet",
        argument(1),
        (_AND, 0xF, "", ""),  # without SOCK_NONBLOCK and SOCK_CLOEXEC
        (_IF_EQUAL, 1, "", "refuse"),  # SOCK_STREAM
        argument(2),
        (_IF_EQUAL, 0, "allow", ""),
        (_IF_EQUAL, 6, "allow", "refuse"),  # IPPROTO_TCP; not MPTCP or SCTP
        "allow",
        (_RETURN, _ALLOW, "", ""),
        "refuse",
        (_RETURN, _ERRNO | _EACCES, "", ""),
        "missing",
        (_RETURN, _ERRNO | _ENOSYS, "", ""),
        "unknown",
        (_RETURN, _ERRNO | _EAFNOSUPPORT, "", ""),
    ]
    labels: dict[str, int] = {}
    code: list[_Step] = []
    for step in steps:
        if isinstance(step, str):
            labels[step] = len(code)
        else:
            code.append(step)
    jumps = [[labels[to] - at - 1 if to else 0 for to in step[2:]] for at, step in enumerate(code)]
    return b"".join(struct.pack("=HBBI", step[0], *jump, step[1]) for step, jump in zip(code, jumps, strict=True))


# -- run


def require_program(program: str) -> None:
    """Raise OSError if the program, or the interpreter that its first line names, is out of reach."""
    with open(program, "rb") as file:
        first = file.readline(1000)
    if first.startswith(b"#!") and first[2:].split():
        require_program(os.fsdecode(first[2:].split()[0]))


def main(rules: str, argv: list[str]) -> NoReturn:
    for number in range(1, signal.NSIG):  # Python ignores some signals, and so would the program
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    asked = json.loads(rules)
    try:
        confine(asked)
        if asked["trial"]:
            require_program(argv[0])
            sys.exit(0)
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"{REFUSED}: {argv[0]}: {error.strerror or error}\n")
    sys.exit(REFUSED_CODE)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
