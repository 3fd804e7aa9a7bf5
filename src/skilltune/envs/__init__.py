"""Env: samples, what an answer to them is worth, and how a sample becomes a prompt.

An Env checks everything it can when it is made, before anything is spent: a sample that its scorer could never score,
a missing image or a path that leads out of the folder is the user's error now, not a 0 or a crash in the middle of
training. Text is put in place by `str.replace`, never `str.format`: samples and skills are full of braces.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

from skilltune.envs.formats import assemble, load_samples, placed_samples, refuse, root_of
from skilltune.errors import JudgeError, UsageError
from skilltune.models import Image, Message
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import ScoreFn, Scorer, apart, build, evaluate
from skilltune.scorers.judge import Ask, Judge, prose
from skilltune.scorers.python import importing_from, load_module
from skilltune.scorers.reading import nearest, quote
from skilltune.scorers.scorer import first_target

P = ParamSpec("P")
_INPUT = "{input}"


class Env:
    """Samples + scorer + prompt.

    samples: a file, folder or hf: name (see `load_samples`), or samples or rows from Python.
    score:   a scorer's spec (see `scorers.build`). Under the default, a sample that has `checks` of its own is scored
             by those; any other score, {"type": "exact"} too, holds for all samples.
    prompt:  the user message, with `{input}` where the sample's text goes; in a chat, around its last user turn.
    fields:  our names to the file's: {"input": "question"}.
    root:    folder of images, files and python scorers; by default the sample file's, else the current one.
    score_timeout_s: seconds that one call of a user's scorer may take; after it the sample has no score.
    """

    name = ""
    args: Mapping[str, Any] = {}  # what the factory was called with, see `env`

    def __init__(
        self,
        samples: str | Path | Iterable[Sample | Mapping[str, Any]],
        score: str | Mapping[str, Any] | ScoreFn = "exact",
        *,
        prompt: str | None = None,
        fields: Mapping[str, str] | None = None,
        root: Path | None = None,
        score_timeout_s: float = apart.LIMIT_S,
    ) -> None:
        self.score_timeout_s = score_timeout_s
        if isinstance(samples, str | Path):
            placed = placed_samples(samples, fields)
            root = root_of(samples) if root is None else root
        else:
            rows = [s if isinstance(s, Sample) else (f"sample {i}", s) for i, s in enumerate(samples, 1)]
            placed = assemble(rows, fields)
        self.samples = tuple(sample for _, sample in placed)
        if not self.samples:
            raise UsageError("an Env needs at least one sample")
        self.root = (Path() if root is None else Path(root)).resolve()
        self.prompt = _INPUT if prompt is None else prompt
        if _INPUT not in self.prompt:
            raise UsageError(f"the prompt {quote(self.prompt)} has no {_INPUT}: the samples would never be seen")
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
        """Hash of the prompt and the scorer: all that turns a rollout of a given sample into another score."""
        parts = [self.prompt, self._scorer.fingerprint, self._own_checks.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def scorer(self) -> str:
        """The scorer by its name: of a user's function, the function's own."""
        return self._scorer.name

    @property
    def judge(self) -> Judge | None:
        """The model that reads the answers, if the score names one. It can be asked once a run has bound it."""
        return self._scorer.judge

    def bound(self, ask: Ask, fingerprint: str) -> Env:
        """The same Env with its judge asked by `ask`; `fingerprint` is what decides a verdict there."""
        assert self.judge is not None
        made = copy.copy(self)
        judge = replace(self.judge, ask=ask, fingerprint=fingerprint)
        made._scorer = made._own_checks = build(self._score, self.root, judge)
        return made

    def lines(self, sample: Sample) -> list[str]:
        """What the judge reads of a sample's checks; nothing where there is no judge."""
        return self.judge.lines(sample) if self.judge else []

    def messages(self, sample: Sample) -> tuple[Message, ...]:
        """The sample as chat messages, without the skill; images are read from `root`."""
        if isinstance(sample.input, str):
            return (Message("user", self.prompt.replace(_INPUT, sample.input)),)
        turns = sample.input
        last = max(i for i, turn in enumerate(turns) if turn.role == "user")
        texts = [self.prompt.replace(_INPUT, t.content) if i == last else t.content for i, t in enumerate(turns)]
        return tuple(
            Message(turn.role, text, tuple(Image.load(self._inside(sample, path)) for path in turn.images))
            for turn, text in zip(turns, texts, strict=True)
        )

    def file_hashes(self, sample: Sample) -> dict[str, str]:
        """The SHA-256 of each file of a sample by its path in the workspace."""
        return {
            name: hashlib.sha256(self._inside(sample, path).read_bytes()).hexdigest()
            for name, path in sample.files.items()
        }

    async def score(self, sample: Sample, rollout: Rollout) -> Score:
        """The score of a finished rollout. A scorer that fails raises JudgeError: never a 0."""
        return await self._timed(self._for(sample), sample, rollout)

    async def _timed(self, scorer: Scorer, sample: Sample, rollout: Rollout) -> Score:
        token = apart.limit_s.set(self.score_timeout_s)
        try:
            return await evaluate(scorer, sample, rollout)
        finally:
            apart.limit_s.reset(token)

    def expected(self, sample: Sample) -> str:
        """An answer that should score 1, as text; "" if none is known."""
        return self._for(sample).expected(sample)

    async def validate(self) -> list[str]:
        """What is wrong with samples and scorer, one line each: every expected answer must score 1, an empty one not.

        Calls the scorer, and so a model if a user's scorer calls one; a judge is not asked, so no expected answer of
        its samples is tried.
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
        """The answer that a sample states, as text; "" if it states none. It is `expected`, or the target of a sample
        whose checks do not look at it, such as the `expected_output` of an eval, which then need not score 1."""
        by_checks = self._for(sample).name == "checks"
        return self.expected(sample) or (first_target(sample) if by_checks else "")

    async def tried(self, sample: Sample) -> Score | None:
        """What the stated answer scores by all that can be computed, a judge's lines left out; None where no answer is
        stated or only a judge reads it. Raises JudgeError for a scorer that fails."""
        scorer, answer = self._for(sample), self.stated(sample)
        if answer and self.judge and self.lines(sample):
            checks = tuple(check for check in self.judge.checks(sample) if not list(prose([check])))
            answer = answer if checks else ""
            mode = self._score.get("mode", "all") if isinstance(self._score, Mapping) else "all"
            scorer, sample = build(f"checks:{mode}", self.root), sample.model_copy(update={"checks": checks})
        rollout = Rollout(sample.id, "", 0, Trajectory(answer), None)
        return await self._timed(scorer, sample, rollout) if answer else None

    def _for(self, sample: Sample) -> Scorer:
        return self._own_checks if sample.checks else self._scorer

    def _check_all(self, places: Sequence[str]) -> None:
        """Raises UsageError for samples that could never be scored, with their places ("" where there is none)."""
        problems: list[str] = []
        unread: list[str] = []  # what lacks a judge, told once
        for place, sample in zip(places, self.samples, strict=True):
            try:
                self._check(sample)
            except UsageError as error:
                by_checks = self.judge is None and self._for(sample).name == "checks"
                prosaic = by_checks and any(check.get("type") == "judge" for check in sample.checks)
                (unread if prosaic else problems).append(f"{place}: {error}" if place else str(error))
        if unread:
            how = f"{len(unread)} of {len(self.samples)} samples have such checks"
            problems.insert(0, f"{unread[0]}; {how}; in a command it is 'env.score={{judge = \"MODEL\"}}'")
        refuse(problems)

    def _check(self, sample: Sample) -> None:
        self._for(sample).check(sample)
        paths = list(sample.files.values())
        if not isinstance(sample.input, str):
            if not any(turn.role == "user" for turn in sample.input):
                raise UsageError(f'sample "{sample.id}": its chat has no user message')
            paths += [path for turn in sample.input for path in turn.images]
        for path in paths:
            self._inside(sample, path)
        for name in sample.files:
            if not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise UsageError(f'sample "{sample.id}": files: {quote(name)} is not a path inside a workspace')

    def _inside(self, sample: Sample, path: str) -> Path:
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root):
            raise UsageError(f'sample "{sample.id}": {quote(path)} leads out of {self.root}')
        if not full.is_file():
            raise UsageError(f'sample "{sample.id}": no file {quote(path)} in {self.root}')
        return full


def env(fn: Callable[P, Env]) -> Callable[P, Env]:
    """Mark a function as a factory of an Env. The Env knows the factory's name and the arguments it was made with."""

    @functools.wraps(fn)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Env:
        made = fn(*args, **kwargs)
        if not isinstance(made, Env):
            raise UsageError(f"{fn.__qualname__}() must return an Env, not {type(made).__name__}")
        bound = inspect.signature(fn).bind(*args, **kwargs)
        bound.apply_defaults()
        made.name, made.args = fn.__name__, dict(bound.arguments)
        return made

    factory.__dict__["is_env_factory"] = True
    return factory


def load_env(spec: str, **kw: Any) -> Env:
    """The Env that "env.py:invoices" names: an Env, or a factory, decorated or plain, called with `kw`.

    "env.py" alone will do if the file holds exactly one decorated factory. Raises UsageError for anything missing.
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
    if isinstance(made, Env):
        if kw:
            raise UsageError(f"{spec} is an Env, not a factory: it takes no {', '.join(kw)}")
        return made
    if not callable(made):
        found = [key for key, value in vars(module).items() if isinstance(value, Env) or key in marked]
        raise UsageError(
            f'{file} has no env "{name}"{nearest(name, found)}; it has {", ".join(found) or "none"}: '
            "an Env, or a function that returns one"
        )
    plain: Any = made
    factory: Callable[..., Env] = plain if name in marked else env(plain)
    try:
        inspect.signature(factory).bind(**kw)
    except TypeError as error:
        raise UsageError(f"{spec}{inspect.signature(factory)}: {error}") from None
    with importing_from(path.resolve().parent), redirect_stdout(sys.stderr):
        try:
            return factory(**kw)
        except (SystemExit, GeneratorExit) as error:
            raise UsageError(f"{spec} ended with {type(error).__name__}: {error}") from error


__all__ = ["Env", "env", "load_env", "load_samples"]
