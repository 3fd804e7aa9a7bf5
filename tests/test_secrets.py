"""No key reaches a file, a log, an event, an error or a child process, whatever the servers do with it.

Keys are planted in the environment, each command runs as a process of its own, and everything that it left or said is
searched for every form of them.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as some
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.models.redact import SHORTEST, redacted
from training import prepare, small

PLANTED = {
    "OPENAI_API_KEY": "sk-Plant/Openai+0451==7fQ&z",
    "ANTHROPIC_API_KEY": "sk-ant-Plant/8830+Xw~3=",
    "WANDB_API_KEY": "wandbPlant5512c0ffee77aa",
    "SOME_SERVICE_TOKEN": "token%Plant/6071+Jm",
}
PASSWORD = "pa55Plant-9924_Rk"
ENDS = 12  # so many characters of an end of a key are told as the key


def forms(secret: str) -> set[bytes]:
    """All that gives a secret away: the whole of it in the usual encodings, or a long part of one of its ends."""
    raw = secret.encode()
    texts = {secret, secret[:ENDS], secret[-ENDS:], quote(secret), quote(secret, safe=""), quote_plus(secret)}
    texts |= {json.dumps(secret)[1:-1], quote(secret, safe="").lower(), raw.hex()}
    for lead in (b"", b":", b"::"):  # of something longer, at each of the three offsets
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            texts.add(encode(lead + raw)[4 if lead else 0 : -4].decode())
    return {text.encode() for text in texts}


def leaks(data: bytes, where: str) -> list[str]:
    planted = {**PLANTED, "password": PASSWORD}
    return [f"{name} in {where}" for name, secret in planted.items() if any(form in data for form in forms(secret))]


def leaks_below(folder: Path) -> list[str]:
    """In names and contents of all files, the journal and its companions included."""
    found = []
    for path in folder.rglob("*"):
        found += leaks(str(path.relative_to(folder)).encode(), "a name")
        if path.is_file():
            found += leaks(path.read_bytes(), str(path.relative_to(folder)))
    return found


def skilltune(folder: Path, *args: object, **more: str) -> subprocess.CompletedProcess[bytes]:
    """One command, as a user runs it in `folder`; what it said is searched here, the folder by the caller."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment = {**kept, "HOME": str(folder), **PLANTED, **more}
    command = [sys.executable, "-m", "skilltune.cli.main", *map(str, args)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)
    assert not leaks(done.stdout, "stdout") + leaks(done.stderr, "stderr"), (args, done.stdout, done.stderr)
    assert b"Traceback" not in done.stderr, done.stderr
    return done


def desk(folder: Path, url: str, dialect: str = "openai", **overrides: str) -> Path:
    path = folder / "desk.toml"
    models = {role: f"{dialect}@{url}/{role}" for role in ("target", "optimizer")} | overrides
    keys = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
    named = {role: keys.get(model.partition("@")[0]) for role, model in models.items() if "//127." in model}
    tables = "".join(
        f'[{role}]\nmodel = "{model}"\n' + (f'key_env = "{named[role]}"\n' if named.get(role) else "")
        for role, model in models.items()
    )
    small_steps = "[train]\nepochs = 1\nbatch_size = 16\nminibatch_size = 4\n[gate]\nscreen = 12\ntexts = 4\n"
    path.write_text(f'[env]\nsamples = "samples.jsonl"\n{tables}{small_steps}')
    return path


Answer = Callable[[BaseHTTPRequestHandler, str], tuple[int, dict[str, str], str]]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server that says what `answer` makes of a request and its body; its URL without a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.reply(self.rfile.read(int(self.headers.get("content-length", "0"))).decode())

        def do_CONNECT(self) -> None:
            self.reply("")

        def reply(self, body: str) -> None:
            status, headers, text = answer(self, body)
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def quoting(status: int, pad: int = 0) -> Answer:
    """Quotes the key that it was sent, in every form, in an error of the given status."""

    def answer(request: BaseHTTPRequestHandler, body: str) -> tuple[int, dict[str, str], str]:
        sent = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        basic = base64.b64encode(f"user:{sent}".encode()).decode()
        said = [sent, quote(sent, safe=""), quote_plus(sent), base64.b64encode(sent.encode()).decode(), basic]
        return status, {"retry-after": "0"}, json.dumps({"error": {"message": "x" * pad + f"no key: {' '.join(said)}"}})

    return answer


# -- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["openai", pytest.param("anthropic", marks=pytest.mark.soak)])
def test_a_run_and_every_look_at_it_leave_no_key_anywhere(tmp_path: Path, dialect: str) -> None:
    with small(q=1.0, key=PLANTED[f"{dialect.upper()}_API_KEY"]) as world:
        prepare(world, tmp_path)
        config = desk(tmp_path, world.root if dialect == "anthropic" else world.url, dialect)
        assert skilltune(tmp_path, "check", config, "--probe").returncode == 0
        assert skilltune(tmp_path, "doctor", config).returncode == 0
        trained = skilltune(tmp_path, "train", config, "--run", "run", "--json")
        assert trained.returncode in (0, 5), trained.stderr
        for command in (
            ["train", config, "--run", "run"],
            ["eval", config, "--run", "run", "--skill", "run/best_skill.md", "--split", "select", "--json"],
            ["show", "run"],
            ["show", "run", "--json"],
            ["export", "run", "--to", "file", "--name", "desk"],
            ["doctor", config, "--json"],
        ):
            assert skilltune(tmp_path, *command).returncode in (0, 5), command
    assert (tmp_path / "run" / "run.db").exists()
    assert not leaks_below(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "pad"),
    [
        (401, 0),
        (401, 275),
        (400, 0),
        (404, 280),
        (500, 0),
        pytest.param(200, 0, marks=pytest.mark.soak),
    ],
)
def test_a_server_that_quotes_the_key_is_not_quoted(tmp_path: Path, status: int, pad: int) -> None:
    """In whatever encoding, and where the quotation would be cut in the middle of the key."""
    with small() as world, answering(quoting(status, pad)) as url:
        prepare(world, tmp_path)
        dialect = "anthropic" if status == 401 and pad else "openai"
        config = desk(tmp_path, world.url, target=f"{dialect}@{url}{'' if dialect == 'anthropic' else '/v1'}/target")
        for command in (["train", config, "--run", "run", "--json"], ["doctor", config, "--json"])[
            : 1 + (status < 500)
        ]:
            done = skilltune(tmp_path, *command)
            assert done.returncode in (2, 3)
            assert b"[key]" in done.stdout + done.stderr or pad
    assert not leaks_below(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        f"openai@http://user:{PASSWORD}@127.0.0.1:1/v1/m",
        f"openai@http://{PASSWORD}@127.0.0.1:1/v1/m",
        f"opnai@http://user:{PASSWORD}@127.0.0.1:1/v1/m",
        f"anthropic@http://user:{PASSWORD}@127.0.0.1:1/m",
        f"http://user:{PASSWORD}@127.0.0.1:1/v1/m",
    ],
)
def test_a_password_in_a_name_is_refused_and_not_repeated(tmp_path: Path, name: str) -> None:
    """No key of the environment is of interest here, so the commands run in this process."""
    with small() as world:
        prepare(world, tmp_path)
        config = str(desk(tmp_path, world.url))
        for role in ("target", "optimizer"):
            for command in (["train"], ["train", "--json"], ["check"], ["eval"], ["doctor", "--json"]):
                done = CliRunner().invoke(app, [command[0], config, f"{role}.model={name}", *command[1:]])
                if (role, command) != ("optimizer", ["eval"]):  # it needs no optimizer
                    assert done.exit_code == 2, (command, done.output)
                assert not leaks(done.output.encode(), f"{role} {command}")
    assert not leaks_below(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_password_of_a_proxy_is_not_repeated(tmp_path: Path, scheme: str) -> None:
    def refuse(request: BaseHTTPRequestHandler, body: str) -> tuple[int, dict[str, str], str]:
        return 407, {}, json.dumps({"error": {"message": f"who is {request.headers.get('proxy-authorization')}?"}})

    with small() as world, answering(refuse) as url:
        prepare(world, tmp_path)
        config = desk(tmp_path, f"{scheme}://models.invalid/v1", optimizer="examples")
        proxy = url.replace("//", f"//user:{PASSWORD}@")
        done = skilltune(tmp_path, "train", config, "--run", "run", **{f"{scheme.upper()}_PROXY": proxy})
        assert done.returncode in (2, 3)
    assert not leaks_below(tmp_path)


# -- child processes


@pytest.mark.slow
def test_the_programs_that_doctor_starts_inherit_no_key(tmp_path: Path) -> None:
    """Their environment is made for them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "claude", "codex"):
        (programs / name).write_text(f'#!/bin/sh\nenv > "{tmp_path}/{name}.seen"\necho 1.0\n')
        (programs / name).chmod(0o755)
    assert skilltune(tmp_path, "doctor", PATH=f"{programs}{os.pathsep}{os.environ['PATH']}").returncode == 0
    assert {path.name for path in tmp_path.glob("*.seen")} == {"git.seen", "claude.seen", "codex.seen"}
    assert not leaks_below(tmp_path)


CALLS = ("run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput")
INHERITING = {
    # runs the command that the user names, which may need a key of the user's
    "optimizer/answer.py": "answer --loop",
    # programs of their own, started with an environment that holds no key
    "sandbox/supervisor.py": "the supervisor of a command",
    "targets/agents/acp_client.py": "the client of a confined agent",
    # replaces itself inside of such a program
    "sandbox/confine.py": "the confined command",
}


def _starts(tree: ast.AST) -> list[ast.Call]:
    """The calls that start a process: functions of subprocess and asyncio, and everything like os.exec and os.fork."""
    made = []
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        owner, name = ast.unparse(call.func.value), call.func.attr
        of_os = owner == "os" and name.startswith(("exec", "spawn", "fork", "posix_spawn", "system", "popen"))
        if of_os or (owner == "subprocess" and name in CALLS) or (owner == "asyncio" and name.startswith("create_sub")):
            made.append(call)
    return made


def test_every_process_gets_an_environment_of_its_own() -> None:
    """A child that inherited the environment would hold every key of the user."""
    package = Path(__file__).parents[1] / "src" / "skilltune"
    inheriting, explicit = set(), set()
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "multiprocessing" not in text, path  # its children inherit everything
        for call in _starts(ast.parse(text)):
            named = any(keyword.arg == "env" for keyword in call.keywords)
            (explicit if named else inheriting).add(str(path.relative_to(package)))
    assert inheriting == set(INHERITING)
    assert {"preflight/doctor.py", "sandbox/process.py", "workspace/__init__.py"} <= explicit


# -- redaction itself

SECRETS = some.text(some.characters(min_codepoint=33, max_codepoint=126), min_size=SHORTEST, max_size=60)


@given(secret=SECRETS, before=some.binary(max_size=5), after=some.binary(max_size=5), urlsafe=some.booleans())
def test_a_secret_in_base64_is_found_at_any_offset(secret: str, before: bytes, after: bytes, urlsafe: bool) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    word = encode(before + secret.encode() + after).decode()
    assert word not in redacted(f"Basic {word}.", secret)


@given(secret=SECRETS, around=some.text(max_size=20))
def test_no_plain_or_encoded_form_of_a_secret_survives(secret: str, around: str) -> None:
    for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]):
        said = redacted(f"{around} {form} {around}", secret)
        assert form not in said.replace("[key]", "\0") or form in around


@given(text=some.text())
def test_what_holds_no_secret_is_left_alone(text: str) -> None:
    assert redacted(text, "a-secret-that-occurs-nowhere") == text
    assert redacted(text, "short") == text
