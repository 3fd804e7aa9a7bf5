"""Tries a sandbox level: a small program behind it attempts what the level promises to prevent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from skilltune.errors import CallConfigError
from skilltune.sandbox import confine
from skilltune.sandbox.levels import Holds, Level, Policy, wrapped
from skilltune.sandbox.process import Command

TRIAL_S = 30.0
_SOCKETS = "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock"

_ATTEMPTS = """
import json, os, socket, sys
secret, outside, work, granted, other, parent = sys.argv[1:]
def done(attempt):
    try:
        attempt()
    except Exception:
        return False
    return True
def connect(port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as it:
        it.settimeout(5)
        it.connect(("127.0.0.1", int(port)))
def write(path):
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)
def followed():
    os.symlink(secret, work + "/link")
    open(work + "/link").read()
print(json.dumps({
    "works": done(lambda: write(work + "/file")),
    "reaches": done(lambda: connect(granted)),
    "read": done(lambda: open(secret).read()) or done(followed) or done(lambda: os.link(secret, work + "/hard")),
    "write": done(lambda: write(outside + "/file")) or done(lambda: os.mkdir(outside + "/folder")),
    "network": done(lambda: connect(other)) or done(lambda: connect(other, socket.SOCK_DGRAM)),
    "processes": done(lambda: os.kill(int(parent), 0)) or done(lambda: open(f"/proc/{parent}/environ", "rb").read()),
}))
"""


def try_level(level: Level) -> Holds | str:
    """The parts that hold here, or the reason that the level cannot be used, with the remedy."""
    if sys.platform != "linux":
        return f"it needs Linux, and this is {sys.platform}"
    if level == "bwrap" and not shutil.which("bwrap"):
        return "bubblewrap is not installed; install it (Debian, Ubuntu: apt install bubblewrap)"
    if level == "landlock" and not confine.abi():
        return "this kernel has no Landlock; it needs Linux 5.13 or later, with landlock in the boot option lsm="
    seen = _attempted(level)
    if isinstance(seen, str):
        return seen
    holds = {name: not seen[name] for name in ("read", "write", "network", "processes")}
    if not (holds["read"] and holds["write"] and seen["works"]):
        return f"files are not confined as they should be (seen: {json.dumps(seen)})"
    return Holds(**holds, note=_note(level, holds["network"] and not seen["reaches"]))


def _attempted(level: Level) -> dict[str, bool] | str:
    """The attempts that succeeded behind a level."""
    with (
        tempfile.TemporaryDirectory(prefix="skilltune-") as base,
        socket.create_server(("127.0.0.1", 0)) as granted,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        secret, outside, work = (Path(base, name) for name in ("secret", "outside", "work"))
        for folder in (secret, outside, work):
            folder.mkdir()
        (secret / "file").write_text("secret")
        ports = [server.getsockname()[1] for server in (granted, other)]
        arguments = map(str, (secret / "file", outside, work, *ports, os.getpid()))
        python = os.path.realpath(sys.executable)
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        plain = Command((python, "-I", "-S", "-c", _ATTEMPTS, *arguments), work, env)
        policy = Policy(write=(work,), hidden=(secret,), connect=(ports[0],), shown=(Path(sys.base_prefix),))
        try:
            command = wrapped(level, plain, policy)
            run = subprocess.run(
                command.argv,
                cwd=command.cwd,
                env=command.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TRIAL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, CallConfigError) as error:
            return f"it cannot be started: {error}"
    try:
        return json.loads(run.stdout)
    except ValueError:
        reason = run.stderr.decode(errors="replace").strip().splitlines()
        remedy = "; allow user namespaces to bubblewrap (see docs/sandbox.md)" if level == "bwrap" else ""
        return f"it cannot be started: {reason[-1] if reason else f'exit code {run.returncode}'}{remedy}"


def _note(level: Level, unreachable: bool) -> str:
    version = confine.abi()
    parts = []
    if level == "landlock":
        parts.append(f"Landlock {version}: names of hidden files can be seen, modes of files outside changed")
        if any(os.access(path, os.W_OK) for path in _SOCKETS):
            parts.append("DOCKER'S SOCKET CAN BE REACHED, which gives away this machine")
    if version < confine.TCP_ABI:
        parts.append("limits on ports need Linux 6.7")
    if unreachable:
        parts.append("granted ports cannot be reached either")
    return "; ".join(parts)
