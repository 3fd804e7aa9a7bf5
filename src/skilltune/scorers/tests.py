"""Runs a command, such as a test suite, over the files that a target left. Its exit code is the score.

The files are copied to a fresh folder. The hidden test files are added only there, after the target has ended, and
replace files of the same name. The command runs what a model wrote, so it runs in a sandbox without network, without
keys, and without a view of the samples. Such code can still fake its own result, for example by printing a summary.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field

from skilltune.errors import CallConfigError, InfraError, JudgeError, NotGraded, UsageError
from skilltune.execute import current
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.sandbox import Command, Exit, Limits, Policy, Sandbox, probe
from skilltune.scorers.scorer import Scorer, first_target
from skilltune.workspace import checked_files, write_files

SHOWN = 1_500  # characters of the output in a reason
OUTPUT_BYTES = 200_000
FILE_MB = 100
RESEND = 2  # times that a command is started again if its worker was lost
_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_PYTEST = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s\b.*$", re.MULTILINE)
_UNITTEST = re.compile(r"^Ran (\d+) tests? in [\d.]+s\n+(?:OK|FAILED)(?: \(([^)\n]*)\))?", re.MULTILINE)
_TAP_LINE = re.compile(r"^(not )?ok\b[ \t]*\d*(?P<text>.*)$", re.MULTILINE)
_TAP_PLAN = re.compile(r"^1\.\.(\d+)", re.MULTILINE)
_SECONDS = re.compile(r"\b\d+\.\d+ ?s\b")


class Options(BaseModel):
    """Options of `{"type": "tests", …}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: Annotated[str | tuple[str, ...], Field(min_length=1)]
    files: dict[str, str] = {}  # path in the copy → file or folder beside the samples
    answer: str = ""  # path in the copy to which the answer's last code block is written
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    memory_mb: Annotated[int, Field(ge=50)] = 2_000
    processes: Annotated[int, Field(ge=1)] = 100
    sandbox: Literal["auto", "landlock", "bwrap", "none"] = "auto"
    show: tuple[str, ...] = ()  # folders that the command may read although they lie in the home or beside the samples

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.command)) if isinstance(self.command, str) else self.command


def tests(options: Options, root: Path) -> Scorer:
    """A scorer of these options. Raises UsageError for a missing test file and for a sandbox that does not hold."""
    try:
        argv = options.argv
    except ValueError as error:
        raise UsageError(f"tests: the command {options.command!r} cannot be read: {error}") from None
    if not argv or not argv[0]:
        raise UsageError('tests: the command is empty; write one, e.g. command = "python -m pytest -q"')
    hidden = _hidden_files(options, root)
    if options.answer:
        checked_files({options.answer: b""})
    sandbox = required_sandbox(options)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in hidden.items()}
    spec = repr((options.model_dump(exclude={"files", "sandbox", "show"}), sorted(digests.items())))

    async def score(sample: Sample, rollout: Rollout) -> Score:
        given = checked_files({name: (root / path).read_bytes() for name, path in sample.files.items()})
        files = {name: content for name, content in given.items() if name not in rollout.deleted}
        files = laid_over(files, {name: artifact.read() for name, artifact in rollout.artifacts.items()})
        if options.answer and rollout.answer.strip():
            files = laid_over(files, {options.answer: code_of(rollout.answer).encode("utf-8", "replace")})
        elif not rollout.artifacts and not rollout.deleted:
            return Score(0.0, "the target left neither an answer nor files")
        files = laid_over(files, hidden)
        if "/" in argv[0] and not os.path.isabs(argv[0]) and os.path.normpath(argv[0]) not in files:
            return Score(0.0, f"the target left no {argv[0]}, which the tests run")
        try:
            job = TestsJob(files, argv, options, sandbox.level, root)
            ended = (await current.get().run(run_over, job, resend=RESEND)).exit
            if ended.code and "-m" in argv[:-1] and b": No module named " in ended.stderr:
                await _require_module(job)
        except CallConfigError as error:
            raise NotGraded(f'sample "{sample.id}": the tests did not run: {error}', systemic=str(error)) from error
        except InfraError as error:
            raise JudgeError(f'sample "{sample.id}": the tests did not end: {error}') from error
        return graded(ended, argv, options, sample.id)

    def expected(sample: Sample) -> str:
        return first_target(sample) if options.answer else ""

    digest = hashlib.sha256(spec.encode()).hexdigest()
    return Scorer("tests", digest, score, expected, describe=lambda sample: [f"tests: {shlex.join(argv)} must pass"])


def laid_over(files: Mapping[str, bytes], new: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with new ones laid over them. A new file replaces a folder of its name, and a folder a file. Paths that
    lead out of the folder, which a target may make up, are left out."""
    found = {name: content for name, content in new.items() if _inside(name)}
    taken = {str(path) for name in found for path in (PurePosixPath(name), *PurePosixPath(name).parents)}
    names = {PurePosixPath(name) for name in found}
    kept = {
        name: content
        for name, content in files.items()
        if name not in taken and not any(above in names for above in PurePosixPath(name).parents)
    }
    return kept | found


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and not {"..", ".git"} & {*path.parts} and "\0" not in name


def code_of(answer: str) -> str:
    """The last fenced code block of an answer, or the whole answer if it has none."""
    blocks = _FENCED.findall(answer)
    return blocks[-1] if blocks else answer


def _hidden_files(options: Options, root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, given in options.files.items():
        path = (root / given).resolve()
        if not path.is_relative_to(root.resolve()):
            raise UsageError(f'tests: the file "{given}" leads out of {root}')
        if not path.exists():
            raise UsageError(f"tests: there is no file {given} in {root}")
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            if "__pycache__" not in file.parts:
                found[name if file == path else f"{name.rstrip('/')}/{file.relative_to(path)}"] = file.read_bytes()
    return checked_files(found)


def required_sandbox(options: Options) -> Sandbox:
    """The sandbox of the options. Raises UsageError if none holds and none was allowed."""
    sandbox = probe(options.sandbox)
    if options.sandbox == "auto" and sandbox.level == "none":
        raise UsageError(
            "tests: no sandbox holds on this machine, and the tests run what a model wrote: install bubblewrap "
            '(Debian: apt install bubblewrap), or run it unconfined with sandbox = "none"'
        )
    return sandbox


def wanted(spec: Any) -> Iterator[str]:
    """The sandbox levels that the `tests` in a scorer's spec ask for."""
    if isinstance(spec, str) and spec.partition(":")[0] == "tests":
        yield "auto"
    elif isinstance(spec, Mapping):
        if spec.get("type") == "tests":
            yield spec.get("sandbox", "auto")
        for part in spec.values():
            yield from wanted(part) if isinstance(part, Mapping | list | tuple) else ()
    elif isinstance(spec, list | tuple):
        for part in spec:
            yield from wanted(part)


# -- run


_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TestsJob:
    """A command to run over a copy of files, as plain data. The paths of the files lie inside the copy. `root` is the
    folder of the samples, which stays hidden. `wanted` are paths of files to take when the command has ended; links and
    files of more than `FILE_MB` are not taken."""

    __test__: ClassVar[bool] = False  # not for pytest

    files: Mapping[str, bytes] = field(hash=False)
    argv: tuple[str, ...]
    options: Options
    sandbox: str
    root: Path
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """The end of a command, and the wanted files that are there, by path."""

    exit: Exit
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)


async def run_over(job: TestsJob) -> Ran:
    """Run the command of a job. At most one command per processor of this process runs at a time.

    Raises CallConfigError if the command cannot be started, UsageError if the sandbox does not hold here.
    """
    files, argv, options, root, sandbox = job.files, job.argv, job.options, job.root, probe(job.sandbox)
    slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(os.cpu_count() or 1))
    base = Path(os.path.realpath(tempfile.mkdtemp(prefix="skilltune-")))
    try:
        work, home, tmp = (base / name for name in ("work", "home", "tmp"))
        for folder in (work, home, tmp):
            folder.mkdir()
        write_files(work, files)
        for name, content in files.items():
            if content.startswith(b"#!"):
                (work / name).chmod(0o755)
        ours = os.path.dirname(sys.executable)
        env = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{ours}",
            "HOME": str(home),
            "TMPDIR": str(tmp),
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        hidden = [path for path in {Path.home().resolve(), root.resolve()} if len(path.parts) > 1]
        programs = (argv[0], sys.executable)  # a command such as `sh run.sh` may start Python itself
        installed = (path for program in programs for path in _installation(program, env["PATH"], hidden))
        shown = dict.fromkeys((*installed, *(Path(path).expanduser() for path in options.show)))
        policy = Policy(write=(base,), hidden=tuple(hidden), shown=tuple(shown), connect=())
        limits = Limits(
            options.timeout_s,
            cpu_s=options.timeout_s * (os.cpu_count() or 1),
            memory_mb=options.memory_mb,
            processes=options.processes,
            file_mb=FILE_MB,
            output_bytes=OUTPUT_BYTES,
        )
        async with slots:
            ended = await sandbox.run(Command(argv, work, env), policy, limits)
        left = await asyncio.to_thread(_take, work, job.wanted)
        return Ran(replace(ended, stdout=_without(work, ended.stdout), stderr=_without(work, ended.stderr)), left)
    finally:
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)


def _take(work: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    found = dict[str, bytes]()
    for name in wanted:
        path = work / name
        inside = path.resolve().is_relative_to(work.resolve()) and not path.is_symlink()
        if inside and path.is_file() and path.stat().st_size <= FILE_MB * 10**6:
            found[name] = path.read_bytes()
    return found


def _without(work: Path, output: bytes) -> bytes:
    """An output without the folder, whose name differs from run to run."""
    return output.replace(os.fsencode(work) + b"/", b"").replace(os.fsencode(work), b".")


def _installation(program: str, path: str, hidden: Sequence[Path]) -> list[Path]:
    """The folders in which a program is installed with its libraries: `x` for `x/bin/python`. If a hidden folder, such
    as the project, lies in `x`, it is `x/bin` alone."""
    found = shutil.which(program, path=path)
    places = [] if found is None else [Path(found).absolute(), Path(found).resolve()]
    prefixes = [(place.parent.parent, place.parent) for place in places if len(place.parent.parent.parts) > 2]
    return [
        folder if any(private.is_relative_to(prefix.resolve()) for private in hidden) else prefix
        for prefix, folder in prefixes
    ]


async def _require_module(job: TestsJob) -> None:
    """Raise CallConfigError if the module of `python -m module` is not installed. It is looked for without the target's
    files, because they may print the message of a missing module themselves."""
    argv = job.argv
    at = argv.index("-m")
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({argv[at + 1]!r}) is None)"
    looking = replace(job, files={}, argv=(*argv[:at], "-c", find))
    if (await current.get().run(run_over, looking, resend=RESEND)).exit.code:
        raise CallConfigError(f'Python has no module "{argv[at + 1]}"; install it for {argv[0]}')


# -- grade


def graded(ended: Exit, argv: tuple[str, ...], options: Options, sample: str) -> Score:
    """The score of a command that has ended: 1 for exit code 0. The share of passed tests is the partial credit, if the
    command prints one (pytest, unittest, TAP)."""
    output = ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")
    share = share_passed(output)
    count = "" if share is None else f", {share[0]} of {share[1]} tests pass"
    shown = _shown(output)
    if ended.limit:
        limit = getattr(options, {"wall_s": "timeout_s", "cpu_s": "timeout_s"}.get(ended.limit, ended.limit))
        return Score(0.0, f"the tests passed a limit ({ended.limit}, {limit:g}) and were ended{count}: {shown}")
    if ended.code:
        partial = share[0] / share[1] if share and share[1] else 0.0
        return Score(0.0, f"the tests fail with exit code {ended.code}{count}: {shown}", soft=partial)
    if share is None and any(name in part for part in argv for name in ("pytest", "unittest")):
        return Score(0.0, f"the tests ended before they printed a summary: {shown}")
    if share is not None and not share[0]:
        return Score(0.0, f"no test ran{count}: {shown}")
    return Score(1.0, f"the tests pass{count}")


def share_passed(output: str) -> tuple[int, int] | None:
    """Passed tests and all tests of a summary, or None if the output has none. The last summary counts."""
    if found := _PYTEST.findall(output):
        numbers = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", found[-1])}
        passed = numbers.get("passed", 0) + numbers.get("xfailed", 0)
        return passed, passed + sum(numbers.get(name, 0) for name in ("failed", "error"))
    if found := _UNITTEST.findall(output):
        ran, text = found[-1]
        bad = sum(int(number) for name, number in re.findall(r"([a-z ]+)=(\d+)", text) if "skipped" not in name)
        return max(int(ran) - bad, 0), int(ran)
    return _tap(output)


def _tap(output: str) -> tuple[int, int] | None:
    plan = _TAP_PLAN.findall(output)
    lines = list(_TAP_LINE.finditer(output))
    if not plan or not lines:
        return None
    counted = [line for line in lines if not re.search(r"#\s*(?:todo|skip)", line["text"], re.IGNORECASE)]
    passed = sum(not line[1] for line in counted)
    return passed, max(len(counted), int(plan[-1]) - (len(lines) - len(counted)))


def _shown(output: str) -> str:
    """The end of an output, without the times that differ from run to run."""
    return _SECONDS.sub("… s", output.strip()[-SHOWN:]) or "no output"


__all__ = ["Options", "graded", "share_passed", "tests", "wanted"]
