"""The documents' examples work: every block of code in README.md, docs/*.md and the plug-in's README is run, or
checked as far as it can be.

The blocks of a document share a folder, in their order. One with a title is a file. Python and commands are run there
against the simulated world, which answers at http://127.0.0.1:8000; configs are validated. The folder has what readers
are assumed to have: data.jsonl, SKILL.md, skilltune.toml, the skill skills/invoice-totals, and the finished runs
runs/invoice-totals, runs/rules and runs/NAME.

`<!-- test: skip REASON -->` before a block says that it cannot run here: it is still parsed, and its reason is printed.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from skilltune.api import atrain
from skilltune.cli.main import app
from skilltune.config import Config, make_config
from training import START
from world import World

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/plugin/README.md"]
SHELLS = ("bash", "sh", "console")
SERVER = "http://127.0.0.1:8000"
BLOCK = re.compile(
    r"^(?:[ ]*<!-- test: skip (?P<skip>[^\n]+?) -->\s*\n)?"
    r'^(?P<indent>[ ]*)```(?P<language>\w+)(?:[ ]+title="(?P<title>[^"\n]+)")?[ ]*\n(?P<code>.*?)^(?P=indent)```[ ]*$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    code: str
    skip: str  # the reason, "" to run it
    line: int


def blocks(text: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(text):
        code = "".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(match["language"], match["title"] or "", code, match["skip"] or "", line))
    return found


# -- the stage


class Stage(World):
    """The world behind one model name: who asks for structured output is the optimizer, all else goes to the target."""

    async def _post(self, path, headers, body, writer):
        data = json.loads(body)
        if data.get("model") not in ("target", "optimizer", "judge"):
            asks = data.get("response_format") or data.get("tools")
            data["model"] = "optimizer" if asks else "target"
        return await super()._post(path, headers, json.dumps(data).encode(), writer)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Path]]:
    """The world, and a folder to copy for each document."""
    folder = tmp_path_factory.mktemp("stage")
    world = Stage(4, 32, 16, 24, sloppy=0.0, q=0.9, seed=1)
    with world:
        samples = world.write(folder / "data.jsonl")
        (folder / "SKILL.md").write_text("Answer each ticket with its code.\n")
        skill = folder / "skills" / "invoice-totals"
        skill.mkdir(parents=True)
        (skill / "SKILL.md").write_text(START.replace("name: desk", "name: invoice-totals"))
        model = f"openai@{SERVER}/v1/qwen3"
        settings = f"[train]\nepochs = 2\nbatch_size = 16\n[gate]\nscreen = 24\n[target]\nmodel = {json.dumps(model)}\n"
        (folder / "skilltune.toml").write_text(f'skill = "SKILL.md"\n[env]\nsamples = "data.jsonl"\n{settings}')
        for name, start in (("invoice-totals", skill), ("rules", folder / "SKILL.md")):
            run = folder / "runs" / name
            model, loop, gate = f"openai@{world.url}/x", {"epochs": 2, "batch_size": 16}, {"screen": 24}
            asyncio.run(atrain(start, samples, model, run=run, train=loop, gate=gate))
        shutil.copytree(folder / "runs" / "invoice-totals", folder / "runs" / "NAME")
        yield world, folder


# -- running and checking


class Wrong(Exception):
    """The fault of a block."""


def run(world: World, folder: Path, command: list[str], ok: tuple[int, ...] = (0,)) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode not in ok:
        raise Wrong(f"exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def check_python(block: Block, world: World, folder: Path) -> None:
    try:
        ast.parse(block.code)
    except SyntaxError as error:
        raise Wrong(f"not Python: {error}") from error
    if not block.skip and not block.title:
        run(world, folder, ["-c", block.code.replace(SERVER, world.root)])


def check_shell(block: Block, world: World, folder: Path) -> None:
    code = block.code.replace("\\\n", " ")
    if block.language == "console":
        code = "\n".join(line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ "))
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            check_command(words, world, folder, skip=bool(block.skip))


def check_command(words: list[str], world: World, folder: Path, *, skip: bool) -> None:
    match words:
        case ["skilltune", *arguments]:
            parse(arguments)
            if not skip:
                arguments = [word.replace(SERVER, world.root) for word in arguments]
                run(
                    world, folder, ["-m", "skilltune.cli.main", *arguments], (0, 1, 5) if "train" in arguments else (0,)
                )
        case ["make", goal] if re.search(rf"^{goal}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
            pass
        case ["pip", "install", *wanted]:
            for what in wanted:
                check_requirement(what)
        case _ if not skip:
            raise Wrong(f"`{shlex.join(words)}` is nothing that can be run here: mark the block with the reason")


def parse(arguments: list[str]) -> None:
    """Is this a command line that `skilltune` takes?"""
    try:
        group = get_command(app)
        context = group.make_context("skilltune", list(arguments))
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        command.make_context(name, rest, parent=context)
    except Exception as error:
        if getattr(error, "exit_code", 1):
            raise Wrong(f"`skilltune {shlex.join(arguments)}`: {getattr(error, 'message', '') or error!r}") from error


def check_requirement(what: str) -> None:
    """`skilltune[a,b]` or `.[a]` names extras that exist, a path one that can be installed."""
    found = re.fullmatch(r"(skilltune|\.)(?:\[([\w,]+)\])?", what)
    if found:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        if unknown := {name for name in (found[2] or "").split(",") if name} - extras.keys():
            raise Wrong(f"there is no extra {', '.join(unknown)}")
    elif not (ROOT / what / "pyproject.toml").is_file() and not what.startswith("-"):
        raise Wrong(f"pip install {what}: nothing of skilltune's")


def check_toml(block: Block) -> None:
    try:
        tree = tomllib.loads(block.code)
    except tomllib.TOMLDecodeError as error:
        raise Wrong(f"not TOML: {error}") from error
    if "project" not in tree and "build-system" not in tree:
        unknown = tree.keys() - Config.model_fields.keys()
        if unknown:
            raise Wrong(f"no part of a config: {', '.join(unknown)}")
        make_config(tree)


def check_json(block: Block) -> None:
    try:
        json.loads(block.code)
    except ValueError:
        for line in block.code.splitlines():  # JSON Lines
            json.loads(line)


def check(block: Block, world: World, folder: Path) -> None:
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code.replace(SERVER, world.root), encoding="utf-8")
    if block.language == "python":
        check_python(block, world, folder)
    elif block.language in SHELLS:
        check_shell(block, world, folder)
    elif block.language == "toml":
        check_toml(block)
    elif block.language == "json":
        check_json(block)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    elif block.language not in ("text", "csv", "diff", "markdown", "md", "html"):
        raise Wrong(f"nobody knows what to do with a block of {block.language}")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_works(
    document: Path, stage: tuple[Stage, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, template = stage
    folder = Path(shutil.copytree(template, tmp_path / "work"))
    config = folder / "skilltune.toml"
    config.write_text(config.read_text().replace(SERVER, world.root))
    failures, skipped = [], []
    for block in blocks(document.read_text(encoding="utf-8")):
        try:
            check(block, world, folder)
        except Exception as error:
            failures.append(f"{document.relative_to(ROOT)}:{block.line}: {type(error).__name__}: {error}")
        if block.skip:
            skipped.append(f"{document.relative_to(ROOT)}:{block.line} is parsed only: {block.skip}")
    if skipped:
        with capsys.disabled():
            print("", *skipped, sep="\n")
    assert not failures, "\n\n".join(failures)


def test_no_block_escapes() -> None:
    """Every fence is one that `blocks` sees, or is without a language and so nothing to run."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        opened = re.findall(r"^ *```(\w+)", text, re.MULTILINE)
        assert [block.language for block in blocks(text)] == opened, document


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    committed = reference.PAGE.read_text(encoding="utf-8")
    assert committed == reference.page(), "run `python docs/reference.py`, and commit the page"


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(pages(site["nav"])) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    link = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
    for document in (ROOT / "docs").glob("*.md"):
        for path, anchor in link.findall(document.read_text(encoding="utf-8")):
            linked = document.parent / path if path else document
            assert linked.exists(), f"{document.relative_to(ROOT)} links to {path}"
            assert not anchor or anchor in anchors(linked), f"{document.relative_to(ROOT)} links to {path}#{anchor}"


def pages(nav: Iterable[Any]) -> Iterator[str]:
    """The files that a navigation names."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, str):
                yield value
            else:
                yield from pages(value)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nskilltune train a.toml --frok\n```", "--frok"),
        ("<!-- test: skip no key -->\n```sh\nskilltune evaluate a.toml\n```", "evaluate"),
        ("```console\n$ claude --plugin-dir x\n```", "mark the block"),
        ("```sh\nmake everything\n```", "mark the block"),
        ("```sh\npip install 'skilltune[nothing]'\n```", "no extra nothing"),
        ("```toml\n[train]\nepoch = 1\n```", "epochs"),
        ("```toml\n[trian]\nepochs = 1\n```", "trian"),
        ('```json\n{"a": 1,}\n```', "Expecting"),
        ("<!-- test: skip slow -->\n```python\nprint(\n```", "not Python"),
        ("- a list\n\n  ```python\n  assert 1 == 2\n  ```", "AssertionError"),
    ],
)
def test_a_block_that_does_not_work_is_found(
    text: str, message: str, stage: tuple[Stage, Path], tmp_path: Path
) -> None:
    (block,) = blocks(text)
    with pytest.raises(Exception, match=message):
        check(block, stage[0], tmp_path)
