"""Certificates that sign themselves, made by `openssl`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from skilltune.execute import Tls


def certificate(folder: Path, name: str = "IP:127.0.0.1") -> Tls:
    """A certificate for this name and its key, in `folder`. Skips the test without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test, and it is missing")
    made = Tls(folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=skilltune",
         "-addext", f"subjectAltName={name}", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", made.key, "-out", made.cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return made
