"""The gateway of agents on other machines, encrypted: they trust its certificate, and nobody without it is answered."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fakes
from certificates import certificate
from engines import clustered
from skilltune import Env, Sample, Skill
from skilltune.api import aevaluate
from skilltune.cli.main import app
from skilltune.config import make_config
from skilltune.errors import UsageError
from skilltune.execute import Elsewhere, Tls
from skilltune.execute.tls import trusting
from skilltune.gateway import Gateway
from skilltune.targets.agents.job import system_certificates
from upstream import Asked, Turn, Upstream

pytestmark = pytest.mark.anyio
SKILL = Skill.parse("---\nname: answers\ndescription: Answers.\n---\nAlways say YES.\n")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


async def score_of(kind: str, folder: Path, tls: Tls, pool: ThreadPoolExecutor, server: Upstream) -> float | None:
    model = f"anthropic@{server.url}/m" if kind == "claude-code" else f"openai@{server.url}/v1/m"
    target = {"model": f"{kind}/{model}", "sandbox": "none"}
    if kind == "command":
        target = {"model": "command:script {prompt_file}", "upstream": model, "sandbox": "none"}
    workers = Elsewhere(pool, (), "ray", tls=tls)
    env = Env([Sample(id=f"s{n}", input=f"Question {n}?", target="YES") for n in range(3)], root=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skilltune.build.build_executor", lambda cfg, run, root: workers)
        return (await aevaluate(SKILL, env, target, run=folder / "run")).score


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["claude-code", "codex", "opencode", "command"])
async def test_an_agent_trusts_the_gateway_and_its_question_is_encrypted(
    kind: str, folder: Path, pool: ThreadPoolExecutor
) -> None:
    seen = list[str]()

    def answer(asked: Asked) -> Turn:
        seen.extend(key.read_text() for key in (folder / "tmp").rglob("*.pem"))
        return Turn("YES" if b"say YES" in asked.raw else "NO")

    tls = certificate(folder)
    async with Upstream(answer) as server:
        assert await score_of(kind, folder, tls, pool, server) == 1.0
    assert seen
    for trusted in seen:  # the file in the private home
        assert trusted == tls.cert.read_text() + system_certificates().decode()
        assert "PRIVATE KEY" not in trusted


async def test_without_its_certificate_the_gateway_answers_nobody(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    async with Gateway(tls=tls) as gateway:
        host, port = gateway.address
        assert gateway.url == f"https://{host}:{port}"

        def get(url: str, context: ssl.SSLContext | None = None) -> int:
            try:
                with urllib.request.urlopen(url, context=context, timeout=10) as found:
                    return found.status
            except urllib.error.HTTPError as refused:
                return refused.code

        assert await asyncio.to_thread(get, f"{gateway.url}/token/v1/models", trusting(tls.public)) == 401
        for url in (gateway.url, f"http://{host}:{port}"):
            with pytest.raises((urllib.error.URLError, ConnectionError)):
                await asyncio.to_thread(get, url)


async def test_a_certificate_for_another_address_is_refused_before_a_call(
    folder: Path, pool: ThreadPoolExecutor
) -> None:
    async with Upstream(lambda asked: Turn("YES")) as server:
        with pytest.raises(UsageError, match=r"does not trust the gateway .*tls_cert must be valid for 127\.0\.0\.1"):
            await score_of("command", folder, certificate(folder, "IP:10.1.2.3"), pool, server)
    assert server.asked == []


def test_a_key_in_the_file_of_the_certificate_does_not_leave_this_machine(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(tls.key.read_bytes() + tls.cert.read_bytes())
    found = Tls(both, both)
    found.context()
    assert found.public == tls.cert.read_bytes()


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("none.pem", "key.pem", "workers.tls_cert: cannot read .*none.pem: No such file"),
        ("cert.pem", "none.pem", "workers.tls_key: cannot read .*none.pem: No such file"),
        ("cert.pem", "other/key.pem", "the key belongs to another certificate"),
        ("text.pem", "key.pem", "both must be PEM files"),
        ("cert.pem", "locked.pem", "protected by a password"),
        ("trusted.pem", "key.pem", "trusted.pem holds no block BEGIN CERTIFICATE"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_a_run(
    cert: str, key: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate(tmp_path)
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other")
    (tmp_path / "text.pem").write_text("hello")
    trusted = ["openssl", "x509", "-in", "cert.pem", "-trustout", "-out", "trusted.pem"]
    subprocess.run(trusted, cwd=tmp_path, check=True, capture_output=True)
    locked = ["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", "key.pem", "-out", "locked.pem"]
    subprocess.run(locked, cwd=tmp_path, check=True, capture_output=True)
    workers = f'{{on = "ray", tls_cert = "{cert}", tls_key = "{key}"}}'
    target = '{model = "command:true", upstream = "openai@http://127.0.0.1:9/v1/m"}'
    found = CliRunner().invoke(app, ["check", clustered(tmp_path, monkeypatch, workers, target)])
    assert found.exit_code == 2
    assert re.search(message, " ".join(found.output.split())), found.output


def test_one_file_without_the_other_is_refused() -> None:
    for workers in ({"tls_cert": "c.pem"}, {"tls_key": "k.pem"}):
        with pytest.raises(UsageError, match="belong together"):
            make_config({"workers": {"on": "ray", **workers}})
