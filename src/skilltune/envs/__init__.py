"""An Env combines samples, their scorer and the prompt that they are rendered into.

An Env checks everything that it can when it is created, before anything is spent. A sample that can never be scored, a
missing image or a path outside of the folder is the user's error at that point, and not a 0 or a crash during training.
Text is inserted by `str.replace` and never by `str.format`, because samples and skills are full of braces.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, Protocol, runtime_checkable

from skilltune.envs.formats import Reading, assemble, load_samples, placed_samples, refuse, root_of
from skilltune.envs.formats.reading import no_judge, unread_criteria
from skilltune.envs.prompt import CHOICES, Template, with_choices
from skilltune.envs.task import Task, attach, beginning, digest_of, is_image, with_files
from skilltune.envs.tools import Tools
from skilltune.errors import JudgeError, UsageError
from skilltune.execute import HERE, Executor, current
from skilltune.models import Image, Message, Tool
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import ChatTurn, Sample
from skilltune.scorers import OF_FILES, ScoreFn, Scorer, apart, build, evaluate
from skilltune.scorers.judge import Ask, Judge, prose
from skilltune.scorers.python import function_fingerprint, importing_from, load_module
from skilltune.scorers.reading import nearest, quote
from skilltune.scorers.scorer import first_target
from skilltune.scorers.tests import wanted

P = ParamSpec("P")
_INPUT = "{input}"
_LITERAL = ("exact", "contains", "f1", "em", "anls")  # scorers that compare the target's text
_ASSERTION = re.compile(r"(?:not-)?(?:i?contains(?:-all|-any)?|equals|regex|llm-rubric|is-json|contains-json|similar):")
_READ_ANYWAY = ("example", "template", "reviewed")  # metadata that skilltune itself reads


@runtime_checkable
class Environment(Protocol):
    """Tasks, the tools for them, and their scores. `Env` is the usual implementation; any other class with these
    members can be used in its place.

    `fingerprint` covers everything that turns a rollout of a given sample into another score. `task` returns the part
    of a sample that a target may see. `tools` returns the tools that the environment offers for one rollout of a task,
    or None. `score` grades a finished rollout; it raises `JudgeError` or `NotGraded` if it cannot, and never gives a 0
    for that. An environment has no loop: the target works on a task until it answers, or until the tools say that it is
    over.
    """

    @property
    def samples(self) -> Sequence[Sample]: ...

    @property
    def fingerprint(self) -> str: ...

    def task(self, sample: Sample) -> Task: ...

    def tools(self, task: Task) -> Tools | None: ...

    async def score(self, sample: Sample, rollout: Rollout) -> Score: ...


class Env:
    """Samples + scorer + prompt.

    samples: a file, folder or hf: name (see `load_samples`), or samples or rows from Python.
    score:   a scorer's spec (see `scorers.build`). With the default, a sample with `checks` of its own is scored by
             them. Any other score, {"type": "exact"} too, applies to all samples.
    prompt:  the user message, with slots `{input}` for the sample's text and `{column}` for its metadata. In a chat it
             wraps the last user turn.
    fields:  our names to the file's: {"input": "question"}; dots lead into objects: {"input": "item.question"}.
    root:    folder of images, files and python scorers; by default the sample file's, else the current one.
    visible: columns of the metadata that a target receives with its task, e.g. ["language"]. By default it receives
             only the prompt and the files.
    score_timeout_s: time limit in seconds of one call of a user's scorer; after it the sample has no score.
    """

    name = ""
    args: Mapping[str, Any] = {}  # arguments of the factory, see `env`
    visible: tuple[str, ...] = ()
    scores_text = True  # False if only a rollout of the target can be scored, because its score comes with it
    split: tuple[int, int, int] | None = None  # released sizes of a benchmark's splits

    def __init__(
        self,
        samples: str | Path | Iterable[Sample | Mapping[str, Any]],
        score: str | Mapping[str, Any] | ScoreFn = "exact",
        *,
        prompt: str | None = None,
        fields: Mapping[str, str] | None = None,
        root: Path | None = None,
        visible: Iterable[str] = (),
        tools: Callable[[Task], Tools] | None = None,
        score_timeout_s: float = apart.LIMIT_S,
    ) -> None:
        self.reading = Reading()
        self._folders: dict[str, Path] = {}  # resolved once: samples are many, their folders few
        self._tools = tools
        self.remarks: list[str] = []  # facts about data and metrics, for `notes` and for the reports
        self.score_timeout_s = score_timeout_s
        self.executor: Executor = HERE  # runs the jobs of scorers, such as `tests`
        if isinstance(samples, str | Path):
            placed = placed_samples(samples, fields, self.reading)
            root = root_of(samples) if root is None else root
        else:
            rows = [s if isinstance(s, Sample) else (f"sample {i}", s) for i, s in enumerate(samples, 1)]
            placed = assemble(rows, fields, self.reading)
        self.samples = tuple(sample for _, sample in placed)
        if not self.samples:
            raise UsageError("an Env needs at least one sample: give it rows with at least `input`")
        self.root = (Path() if root is None else Path(root)).resolve()
        self.private: list[Path] = [self.root]  # files with samples and answers, which agents and tools may not read
        self.prompt = _INPUT if prompt is None else prompt
        self._template = Template.of(self.prompt, self.samples)
        self.show(visible)
        self._ignored = tuple(key.strip() for key in (fields or {}).get("ignore", "").split(","))
        self._score = score
        self._scorer = build(score, self.root)
        self._own_checks = build("checks", self.root) if score == "exact" else self._scorer
        self._check_all([place if isinstance(samples, str | Path) else "" for place, _ in placed])
        if self.judge and not any(self.judge.lines(sample) for sample in self.samples):
            raise UsageError(
                f"the judge {self.judge.model} has nothing to read: give the score a rubric, "
                'e.g. score = {judge = "MODEL", rubric = ["The tone is friendly"]}, or samples checks in prose'
            )

    @property
    def fingerprint(self) -> str:
        """Hash of prompt, visible columns, tools and scorer: everything that turns a rollout of a given sample into
        another score."""
        parts: list[Any] = [self.prompt, self._scorer.fingerprint, self._own_checks.fingerprint]
        if self.visible:
            parts.append(sorted(self.visible))
        if self._tools is not None:
            parts.append(["tools", self.tools_fingerprint])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @functools.cached_property
    def tools_fingerprint(self) -> str:
        """Hash of the tools that the environment offers; "" if it offers none."""
        if self._tools is None:
            return ""
        own = getattr(self._tools, "fingerprint", None) or function_fingerprint(self._tools)
        offered = [(tool.name, tool.description, tool.parameters) for tool in offered_by(self)]
        return hashlib.sha256(json.dumps([own, offered], sort_keys=True).encode()).hexdigest()

    def tools(self, task: Task) -> Tools | None:
        """The tools that the environment offers for one rollout of a task, not yet opened; None if it offers none."""
        return None if self._tools is None else self._tools(task)

    @property
    def scorer(self) -> str:
        """The name of the scorer; for a user's function, the function's name."""
        return self._scorer.name

    @property
    def judge(self) -> Judge | None:
        """The model that reads the answers, or None. It can be asked once a run has bound it."""
        return self._scorer.judge

    def bound(self, ask: Ask, fingerprint: str, known: str | None = None) -> Env:
        """The same Env with a judge that is asked by `ask`. `fingerprint` covers everything that decides a verdict.

        `known` is the earlier name of a judge that has moved, so that its verdicts stay valid.
        """
        assert self.judge is not None
        made = copy.copy(self)
        judge = replace(self.judge, ask=ask, fingerprint=fingerprint, model=known or self.judge.model)
        made._scorer = made._own_checks = build(self._score, self.root, judge)
        return made

    @property
    def sandboxes(self) -> list[str]:
        """The sandbox levels that the scorers ask for; empty if none runs what a model wrote."""
        return sorted({*wanted(self._score), *(level for sample in self.samples for level in wanted(sample.checks))})

    @property
    def may_send_jobs(self) -> bool:
        """True if its scorers may run jobs on workers: those that run what a model wrote, and scorers of plug-ins and
        benchmarks, which may call `skilltune.execute.current`."""
        return bool(self.sandboxes) or isinstance(self._score, Scorer)

    def lines(self, sample: Sample) -> list[str]:
        """The lines of a sample that the judge reads; empty without a judge."""
        return self.judge.lines(sample) if self.judge else []

    def show(self, visible: Iterable[str]) -> None:
        """Make columns visible to the target. Raises UsageError for a column that no sample has."""
        self.visible = tuple(dict.fromkeys((visible,) if isinstance(visible, str) else visible))
        known = dict.fromkeys(key for sample in self.samples for key in sample.metadata)
        for name in self.visible:
            if name not in known:
                has = ", ".join(known) or "none"
                raise UsageError(
                    f"env.visible: no sample has the column {quote(name)}{nearest(name, known)}; the samples' columns "
                    f"are: {has}. The expected answer and the checks are never shown to a target"
                )

    def task(self, sample: Sample) -> Task:
        """The part of a sample that a target may see, read from disk now: prompt, files and visible columns."""
        shown = {key: copy.deepcopy(sample.metadata[key]) for key in self.visible if key in sample.metadata}
        return Task(sample.id, self._prompt(sample), self._contents(sample), shown)

    def messages(self, sample: Sample) -> tuple[Message, ...]:
        """The sample as chat messages, without the skill. The prompt contains the input, then the options of a choice
        unless they are shown already, then the sample's files. Images and files are read from `root`."""
        return with_files(self._prompt(sample), self._contents(sample))

    def _prompt(self, sample: Sample) -> tuple[Message, ...]:
        """The messages without the sample's files."""
        turns = (ChatTurn(content=sample.input),) if isinstance(sample.input, str) else sample.input
        last = max(i for i, turn in enumerate(turns) if turn.role == "user")
        made = []
        for i, turn in enumerate(turns):
            text = turn.content
            if i == last:
                asked = with_choices(sample, text, self._template) if self.chooses(sample) else text
                text = self._template.fill(sample, asked)
            made.append(Message(turn.role, text, tuple(Image.load(self._inside(sample, path)) for path in turn.images)))
        return tuple(made)

    def _contents(self, sample: Sample) -> dict[str, bytes]:
        """The content of each file of a sample, by its path in the workspace."""
        return {name: path.read_bytes() for name, path in self.files(sample).items()}

    def _beginnings(self, sample: Sample) -> dict[str, bytes]:
        """As much of each file as decides if it can be shown; nothing of an image."""
        return {name: b"" if is_image(name) else beginning(path) for name, path in self.files(sample).items()}

    def _digests(self, sample: Sample) -> dict[str, str]:
        """The SHA-256 of each file of a sample, by its path in the workspace. No file is in memory as a whole."""
        return {name: digest_of(path) for name, path in self.files(sample).items()}

    def asked(self, sample: Sample) -> str:
        """The text of all messages: what a judge reads as the task. Images are not part of it."""
        return "\n\n".join(message.text for message in self.messages(sample))

    def files(self, sample: Sample) -> dict[str, Path]:
        """The files of a sample on disk, by their names in the workspace."""
        return {name: self._inside(sample, path) for name, path in sample.files.items()}

    def require_shown(self) -> None:
        """Raise UsageError if samples have files that a chat target cannot be shown, or expect files from it."""
        if self.scorer in OF_FILES:
            raise UsageError(
                f"env.score: {self.scorer} grades files that the target writes, and a chat target writes none: name an "
                "agent as target.model, or a score that reads the answer"
            )
        unseen = {s.id: attach(self._beginnings(s).items()).unseen for s in self.samples if s.files}
        if lacking := {name: why for name, why in unseen.items() if why}:
            first = next(iter(lacking))
            raise UsageError(
                f"{len(lacking)} of {len(self.samples)} samples have files that a chat target never sees (first: "
                f'sample "{first}": {lacking[first][0]}): write what they hold into the input or into text files, or '
                "leave them out of `files`"
            )

    def notes(self) -> list[str]:
        """Defaults that were chosen without being requested, and unused columns, one line each."""
        used = {name.partition(".")[0] for name in self._template.columns} | {
            *_READ_ANYWAY,
            *self._ignored,
            *self.visible,
        }
        used |= {*CHOICES} if any(map(self.chooses, self.samples)) else set()
        columns = {} if self._own_code else self.reading.columns
        idle = [key for key in columns if key not in used and not key.startswith("__")]
        found = [*self.remarks, *self.reading.told(), *self._template.notes(self.samples)]
        if idle:
            named = ", ".join(f"{key} (in {self.reading.columns[key]:,})" for key in idle[:10])
            more = ", …" if len(idle) > 10 else ""
            how = f'env.prompt = "{{{idle[0]}}}\\n\\n{{input}}" would show one'
            found.append(
                f"columns that neither the target nor the scorer sees, with their samples: {named}{more}; {how}"
            )
        unasked = sum(map(bool, (sample.checks for sample in self.samples))) - self.reading.described
        if unasked > 0 and self.scorer != "checks" and self._own_checks is self._scorer and not self._own_code:
            found.append(
                f"{unasked} of {len(self.samples)} samples have checks of their own, which the score {self.scorer} "
                "does not look at: leave env.score out, or name a judge, and they decide"
            )
        return found

    def judged(self, sample: Sample) -> list[str]:
        """Description of a sample's scoring, one line per check: the scorer and its expected value."""
        return self._for(sample).describe(sample)

    def hashes(self, sample: Sample) -> tuple[list[str], dict[str, str]]:
        """SHA-256 of the images that the messages show, in their order, and of the files that decide a score.

        The files are those of the sample, by their paths in the workspace, and the expected ones. Each is read once.
        """
        files = self._digests(sample)
        prompt = self._prompt(sample)
        last = max(i for i, message in enumerate(prompt) if message.role == "user") if files else -1
        images = list[str]()
        for i, message in enumerate(prompt):
            images += [hashlib.sha256(image.data).hexdigest() for image in message.images]
            images += [digest for name, digest in files.items() if is_image(name)] if i == last else []
        return images, files | self._expected_digests(sample)

    def file_hashes(self, sample: Sample) -> dict[str, str]:
        """The SHA-256 of each file of a sample, by its path in the workspace, and of its expected files."""
        return self._digests(sample) | self._expected_digests(sample)

    def _expected_digests(self, sample: Sample) -> dict[str, str]:
        """The SHA-256 of the files that decide the score without being in the sample."""
        expected = self._for(sample).reads(sample)
        return {f"expected: {path.relative_to(self.root)}": digest_of(path) for path in expected}

    async def score(self, sample: Sample, rollout: Rollout) -> Score:
        """The score of a finished rollout. A scorer that fails raises JudgeError and never gives a 0."""
        return await self._timed(self._for(sample), sample, rollout)

    async def _timed(self, scorer: Scorer, sample: Sample, rollout: Rollout) -> Score:
        limit, executor = apart.limit_s.set(self.score_timeout_s), current.set(self.executor)
        try:
            return await evaluate(scorer, sample, rollout)
        finally:
            apart.limit_s.reset(limit)
            current.reset(executor)

    def expected(self, sample: Sample) -> str:
        """An answer that should score 1, as text, or "" if none is known."""
        return self._for(sample).expected(sample)

    async def validate(self) -> list[str]:
        """Problems of samples and scorer, one line each. Every expected answer must score 1, and an empty answer must
        not.

        It calls the scorer, and so a model if a user's scorer calls one. A judge is not asked, so the expected answers
        of its samples are not tried.
        """
        problems = []
        for sample in self.samples:
            expected = "" if self.lines(sample) else self.expected(sample)
            for answer in (expected, "") if expected else ("",):
                try:
                    score = await self.score(sample, Rollout(sample.id, "", 0, Trajectory(answer), None))
                except JudgeError as error:
                    problems.append(str(error))
                    break
                if answer and not score.hard:
                    problems.append(f'sample "{sample.id}": its expected answer scores {score.value:g}: {score.why}')
                if not answer and score.hard:
                    problems.append(f'sample "{sample.id}": an empty answer scores 1: {score.why}')
        return problems

    def stated(self, sample: Sample) -> str:
        """The answer that a sample states, as text, or "" if there is none.

        It is `expected`, or the target of a sample whose checks do not use it, such as the `expected_output` of an
        eval. Such a target need not score 1.
        """
        by_checks = self._for(sample).name == "checks" and not isinstance(sample.target, Mapping)
        return self.expected(sample) or (first_target(sample) if by_checks else "")

    async def tried(self, sample: Sample) -> Score | None:
        """The score of the stated answer by all computable checks, without a judge's lines. None if no answer is
        stated, or if only a judge reads it. Raises JudgeError if the scorer fails."""
        scorer, answer = self._for(sample), self.stated(sample)
        if answer and self.judge and self.lines(sample):
            checks = tuple(check for check in self.judge.checks(sample) if not list(prose([check])))
            answer = answer if checks else ""
            mode = self._score.get("mode", "all") if isinstance(self._score, Mapping) else "all"
            scorer, sample = build(f"checks:{mode}", self.root), sample.model_copy(update={"checks": checks})
        rollout = Rollout(sample.id, "", 0, Trajectory(answer), None)
        return await self._timed(scorer, sample, rollout) if answer else None

    @property
    def _own_code(self) -> bool:
        """True if the scorer is a user's function or a plug-in, which may read any metadata."""
        return self._scorer.custom

    def chooses(self, sample: Sample) -> bool:
        """True if the sample is a choice among options, which its message then lists."""
        return self._for(sample).name == "choice" or any(check.get("type") == "choice" for check in sample.checks)

    def _for(self, sample: Sample) -> Scorer:
        return self._own_checks if sample.checks else self._scorer

    def _check_all(self, places: Sequence[str]) -> None:
        """Raise UsageError for samples that can never be scored, with their places ("" if unknown)."""
        problems = [] if self._own_code else unread_criteria(self.reading, self._template.columns, len(self.samples))
        unread: list[str] = []  # problems of samples that lack a judge, reported once
        for place, sample in zip(places, self.samples, strict=True):
            try:
                self._check(sample)
            except UsageError as error:
                by_checks = self.judge is None and self._for(sample).name == "checks"
                prosaic = by_checks and any(check.get("type") == "judge" for check in sample.checks)
                (unread if prosaic else problems).append(f"{place}: {error}" if place else str(error))
        if unread:
            problems.insert(0, no_judge(self.reading, unread, len(self.samples)))
        refuse(problems)

    def _check(self, sample: Sample) -> None:
        if not sample.text.strip() and not sample.files and isinstance(sample.input, str):
            raise UsageError(f'sample "{sample.id}": its input is empty, so there is nothing to ask the target')
        scorer = self._for(sample)
        if scorer.name in _LITERAL and isinstance(sample.target, str) and (named := _ASSERTION.match(sample.target)):
            raise UsageError(
                f'sample "{sample.id}": its target begins with "{named[0]}", the name of a promptfoo assertion, and '
                f"{scorer.name} would compare it literally: name the column __expected to have it read as an assertion"
            )
        scorer.check(sample)
        paths = list(sample.files.values())
        if not isinstance(sample.input, str):
            if not any(turn.role == "user" for turn in sample.input):
                raise UsageError(f'sample "{sample.id}": its chat has no user message')
            paths += [path for turn in sample.input for path in turn.images]
        for path in paths:
            self._inside(sample, path)
        _check_names(sample)

    def _inside(self, sample: Sample, path: str) -> Path:
        """The file at `path`, links followed. Raises UsageError if it lies outside of `root` or is no readable file."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = (self.root / folder).resolve()
        full = self._folders[folder] / name
        if name in ("", ".", "..") or full.is_symlink():
            full = full.resolve()
        if not full.is_relative_to(self.root):
            raise UsageError(
                f'sample "{sample.id}": {quote(path)} leads out of {self.root}, the folder of the samples: copy the '
                "file into that folder, and name it by its path in there"
            )
        if not full.is_file():
            raise UsageError(f'sample "{sample.id}": no file {quote(path)} in {self.root}')
        return full


class _Given(Env):
    """An `Environment` that is no `Env`, with everything else that a run asks of one."""

    def __init__(self, given: Environment, name: str) -> None:
        super().__init__(given.samples, given.score, root=getattr(given, "root", None))
        self._given, self._name = given, name
        self._tools = given.tools if given.tools(self.task(self.samples[0])) is not None else None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self._name, self._given.fingerprint]).encode()).hexdigest()

    @functools.cached_property
    def tools_fingerprint(self) -> str:
        return "" if self._tools is None else self.fingerprint

    def task(self, sample: Sample) -> Task:
        task = self._given.task(sample)
        if not isinstance(task, Task):
            raise UsageError(f"{self._name}.task() must return a Task, not {type(task).__name__}")
        return task

    def _prompt(self, sample: Sample) -> tuple[Message, ...]:
        return self.task(sample).messages

    def _contents(self, sample: Sample) -> dict[str, bytes]:
        return dict(self.task(sample).files)

    def _beginnings(self, sample: Sample) -> dict[str, bytes]:
        return self._contents(sample)

    def _digests(self, sample: Sample) -> dict[str, str]:
        return {name: hashlib.sha256(data).hexdigest() for name, data in self._contents(sample).items()}


def as_env(made: Any, place: str) -> Env:
    """The Env of an object that a user made: an `Env`, or any `Environment`. Raises UsageError for anything else."""
    if isinstance(made, Env):
        return made
    if isinstance(made, type) or not isinstance(made, Environment):
        lacking = [name for name in ("samples", "fingerprint", "task", "tools", "score") if not hasattr(made, name)]
        raise UsageError(
            f"{place} must return an Env, not {type(made).__name__}{f' without {lacking[0]}' if lacking else ''}; any "
            "object with samples, fingerprint, task, tools and score can be one (skilltune.envs.Environment)"
        )
    return _Given(made, type(made).__qualname__)


def offered_by(env: Env) -> tuple[Tool, ...]:
    """The tools that an environment offers, as its first task has them; all tasks offer tools, or none."""
    found = env.tools(env.task(env.samples[0]))
    return () if found is None else tuple(found.offered)


def _check_names(sample: Sample) -> None:
    """Raise UsageError if a file of the sample has no place inside a workspace."""
    for name in sample.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or parts[0] == ".git":
            raise UsageError(
                f'sample "{sample.id}": files: {quote(name)} is not a path inside a workspace: name a relative path '
                'without "..", such as "data/in.csv"'
            )
        if inside := next((other for other in sample.files if PurePosixPath(other) in PurePosixPath(name).parents), ""):
            raise UsageError(f'sample "{sample.id}": files: {quote(inside)} is a file, so {quote(name)} has no place')


def env(fn: Callable[P, Env | Environment]) -> Callable[P, Env]:
    """Decorator that marks a function as a factory of an Env or Environment. The Env records the factory's name and
    arguments."""

    @functools.wraps(fn)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Env:
        made = as_env(fn(*args, **kwargs), f"{fn.__qualname__}()")
        bound = signature(fn).bind(*args, **kwargs)
        bound.apply_defaults()
        made.name, made.args = fn.__name__, dict(bound.arguments)
        return made

    factory.__dict__["is_env_factory"] = True
    return factory


def load_env(spec: str, **kw: Any) -> Env:
    """The Env that "env.py:invoices" names: an Env, or a factory that is called with `kw`.

    The factory need not be decorated. "env.py" is enough if the file has exactly one decorated factory. Raises
    UsageError if anything is missing.
    """
    file, colon, name = spec.rpartition(":") if not spec.endswith(".py") else (spec, "", "")
    if not file.endswith(".py"):
        raise UsageError(f'"{spec}" must look like env.py:name')
    path = Path(file)
    module = load_module(path)
    marked = [key for key, value in vars(module).items() if getattr(value, "is_env_factory", False)]
    if not colon:
        if len(marked) != 1:
            found = ", ".join(marked) or "nothing marked with @env"
            raise UsageError(f"{file}: say which env, {file}:NAME; it has {found}")
        name = marked[0]
    made: Any = getattr(module, name, None)
    if isinstance(made, Env | Environment) and not isinstance(made, type):
        if kw:
            raise UsageError(f"{spec} is an Env, not a factory: it takes no {', '.join(kw)}")
        return as_env(made, spec)
    if not callable(made):
        found = [key for key, value in vars(module).items() if isinstance(value, Env) or key in marked]
        raise UsageError(
            f'{file} has no env "{name}"{nearest(name, found)}; it has {", ".join(found) or "none"}: '
            "an Env, or a function that returns one"
        )
    plain: Any = made
    factory: Callable[..., Env] = plain if name in marked else env(plain)
    try:
        signature(factory).bind(**kw)
    except TypeError as error:
        raise UsageError(f"{spec}{signature(factory)}: {error}") from None
    with importing_from(path.resolve().parent), redirect_stdout(sys.stderr):
        try:
            return factory(**kw)
        except (SystemExit, GeneratorExit) as error:
            raise UsageError(f"{spec} ended with {type(error).__name__}: {error}") from error


__all__ = ["Env", "Environment", "Task", "Tools", "as_env", "env", "load_env", "load_samples", "offered_by"]
