"""Docker, which other frameworks need for their tasks."""

from __future__ import annotations

import os
import shutil
import subprocess

INFO_S = 20.0
PASSED = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "XDG_RUNTIME_DIR")


def no_docker() -> str:
    """The reason why Docker cannot be used, or ""."""
    if shutil.which("docker") is None:
        return "there is no command `docker` on the PATH: install it"
    env = {name: os.environ[name] for name in PASSED if name in os.environ}
    try:
        done = subprocess.run(["docker", "info"], env=env, capture_output=True, timeout=INFO_S)
    except OSError as error:
        return f"`docker info` cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"`docker info` gives no answer within {INFO_S:g} s"
    return "" if done.returncode == 0 else "`docker info` fails: start its daemon"
