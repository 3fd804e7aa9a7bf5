"""Scorers grade an answer and explain the grade in one line. Each has a small file; `build` makes a scorer from a spec.

A built-in scorer is a function `(sample, answer, *, options) -> Score`; a scorer of files takes the rollout and the
samples' folder instead of the answer. Its keyword parameters are the options of a spec, and "name:value" sets the
first of them. An empty answer scores 0 without a call of the scorer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from json import dumps  # by name, because the submodule scorers.json takes the name `json` in this package
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from skilltune import plugins
from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers import cells as _cells
from skilltune.scorers import checks as _checks
from skilltune.scorers import files as _files
from skilltune.scorers import judge as _judge
from skilltune.scorers import tests as _tests
from skilltune.scorers.anls import anls
from skilltune.scorers.choice import choice
from skilltune.scorers.contains import contains
from skilltune.scorers.em import em
from skilltune.scorers.exact import exact
from skilltune.scorers.f1 import f1
from skilltune.scorers.json import expected_json, json_value
from skilltune.scorers.judge import Judge
from skilltune.scorers.length import length
from skilltune.scorers.ndcg import expected_ranking, ndcg
from skilltune.scorers.number import number
from skilltune.scorers.python import function_fingerprint, function_name, load_object
from skilltune.scorers.reading import Mode, alternatives, as_text, nearest, quote
from skilltune.scorers.regex import example, regex
from skilltune.scorers.scorer import ScoreFn, Scorer, evaluate, first_target, one_line_or_tagged

Compare = Callable[..., Score]
BUILTIN: dict[str, Compare] = {
    "exact": exact,
    "contains": contains,
    "regex": regex,
    "choice": choice,
    "number": number,
    "f1": f1,
    "em": em,
    "anls": anls,
    "json": json_value,
    "length": length,
    "ndcg": ndcg,
}
OF_FILES = {"files": (_files.files, _files.check), "cells": (_cells.cells, _cells.check)}
"""Scorers of the files that the target left behind, with the check of a sample."""
KINDS = (*BUILTIN, *OF_FILES, "tests", "checks", "not", "judge")
"""The types of a check, besides plug-ins and python:file.py:fn."""
_EXPECTED: dict[str, Callable[[Sample], str]] = {
    "regex": example,
    "json": expected_json,
    "ndcg": expected_ranking,
    **dict.fromkeys(("choice", "f1", "em", "anls"), one_line_or_tagged),  # these read only the last line
}
_TARGETLESS = ("length", "tests", "not", "judge", *OF_FILES)  # their target is no answer in text
SHOWN_CHARS = 400  # characters of one check in a description
SHOWN_TARGETS = 5


def build(
    spec: str | Mapping[str, Any] | Callable[..., Any], root: Path = Path(), judge: Judge | None = None
) -> Scorer:
    """A scorer from "number", "number:0.01", {"type": "number", "tolerance": 0.01}, "python:file.py:fn" or a function.

    {"judge": "MODEL", "rubric": [...]} combines the checks of each sample with those of the rubric; a model reads
    checks in prose. `judge` is that model, if a run has already bound it. A mapping may contain its own `target`, which
    replaces the sample's. Python files are relative to `root`.

    A function takes (sample, rollout) and returns a Score, a float or a bool, or an awaitable of one. A plug-in's
    scorer is such a function under its bare name; its options are its keyword-only parameters. Raises UsageError for an
    unknown name or option (with the nearest known one) and for a value of the wrong type.
    """
    if isinstance(spec, Scorer):
        return spec
    if isinstance(spec, str):
        kind, colon, value = spec.partition(":")
        if kind == "python":
            return _python(load_object(value, root), spec)
        options = {_first_option(kind): value} if colon else {}
    elif isinstance(spec, Mapping):
        options = {str(key): value for key, value in spec.items() if key != "type"}
        if "judge" in spec and "type" not in spec:
            return _judged(options, root, judge)
        kind = spec.get("type", "")
        if isinstance(kind, str) and kind.startswith("python:"):
            if options:
                raise UsageError(f"{kind} takes no options, got {', '.join(options)}")
            return _python(load_object(kind.removeprefix("python:"), root), kind)
    elif callable(spec):
        return _python(spec, function_name(spec))
    else:
        raise UsageError(f"a scorer is a name, a mapping with a type, or a function, not {type(spec).__name__}")
    match kind:
        case "checks":
            return _checklist(options, root, judge)
        case "not":
            return _negation(options, root, judge)
        case "judge" if judge is not None:
            return _line(options, judge)
        case "tests":
            return _test_suite(options, root)
    if isinstance(kind, str) and kind in OF_FILES:
        return _of_files(kind, options, root)
    if (plugin := _plugin(kind)) is not None:
        return _installed(plugin, options)
    return _builtin(kind, options)


def is_kind(kind: Any) -> bool:
    """True if a check may have this type: a scorer of ours, an installed one or a python file's function. Raises
    UsageError for an installed one that cannot be imported."""
    return isinstance(kind, str) and (kind in KINDS or kind.startswith("python:") or _plugin(kind) is not None)


def kinds() -> list[str]:
    """The names that a check's type may have, with the installed scorers."""
    return [*KINDS, *plugins.names("scorer")]


def _builtin(kind: Any, options: dict[str, Any]) -> Scorer:
    compare = _find(kind, options)
    own = (options.pop("target"),) if "target" in options else None
    options = _validated(kind, compare, options)

    def adapt(sample: Sample) -> Sample:
        return sample if own is None else sample.model_copy(update={"target": own[0]})

    def score(sample: Sample, rollout: Rollout) -> Score:
        if not rollout.answer.strip():
            return Score(0.0, "the answer is empty")
        return compare(adapt(sample), rollout.answer, **options)

    def expected(sample: Sample) -> str:
        return _EXPECTED.get(kind, first_target)(adapt(sample))

    def check(sample: Sample) -> None:
        compare(adapt(sample), expected(sample) or "x", **options)

    def describe(sample: Sample) -> list[str]:
        set_options = "".join(f", {name} = {as_text(value)}" for name, value in options.items())
        compares = kind not in _TARGETLESS and not options.keys() & {"pattern", "schema"}
        return [f"{kind}{set_options}{_accepted(kind, adapt(sample)) if compares else ''}"]

    spec = {"type": kind, **options, **({} if own is None else {"target": own[0]})}
    return Scorer(kind, _digest(spec), score, expected, check, describe=describe)


def _of_files(kind: str, options: dict[str, Any], root: Path) -> Scorer:
    compare, check_sample = OF_FILES[kind]
    own = (options.pop("target"),) if "target" in options else None
    options = _validated(kind, compare, options)

    def adapt(sample: Sample) -> Sample:
        return sample if own is None else sample.model_copy(update={"target": own[0]})

    def score(sample: Sample, rollout: Rollout) -> Score:
        return compare(adapt(sample), rollout, root, **options)

    def check(sample: Sample) -> None:
        check_sample(adapt(sample), root)

    def reads(sample: Sample) -> Iterable[Path]:
        return _files.reads(adapt(sample), root)

    def describe(sample: Sample) -> list[str]:
        set_options = "".join(f", {name} = {as_text(value)}" for name, value in options.items())
        return [f"{kind}{set_options}: expects {quote(', '.join(_files.wanted(adapt(sample))), SHOWN_CHARS)}"]

    spec = {"type": kind, **options, **({} if own is None else {"target": own[0]})}
    # A workbook may take long to read, so it is read apart and has a time limit.
    return Scorer(
        kind, _digest(spec), score, lambda sample: "", check, apart=kind == "cells", describe=describe, reads=reads
    )


def _checklist(options: dict[str, Any], root: Path, judge: Judge | None) -> Scorer:
    try:
        chosen = _checks.Options.model_validate(options)
    except ValidationError as error:
        raise UsageError(_explain("checks", error, list(_checks.Options.model_fields))) from None
    fixed = chosen.checks
    spec = {"type": "checks", **chosen.model_dump(), "inner": _fingerprints(fixed or (), root, judge)}
    return _combined("checks", spec, lambda sample: sample.checks if fixed is None else fixed, chosen.mode, root, judge)


def _judged(options: dict[str, Any], root: Path, judge: Judge | None) -> Scorer:
    try:
        chosen = _judge.Options.model_validate(options)
    except ValidationError as error:
        raise UsageError(_explain("judge", error, list(_judge.Options.model_fields))) from None
    judge = judge or Judge.of(chosen)
    inner = _fingerprints(judge.rubric, root, judge)
    spec = {"judge": judge.model, "reader": judge.fingerprint, "mode": chosen.mode, "inner": inner}
    return replace(_combined("checks", spec, judge.checks, chosen.mode, root, judge), judge=judge)


def _line(options: dict[str, Any], judge: Judge) -> Scorer:
    line = _judge.line_of(options)

    def score(sample: Sample, rollout: Rollout) -> Any:
        return _judge.read_line(sample, rollout, judge, line)

    def describe(sample: Sample) -> list[str]:
        return [f"judge, read by {judge.model}: {quote(line, SHOWN_CHARS)}"]

    return Scorer("judge", _digest({"type": "judge", "text": line}), score, lambda sample: "", describe=describe)


def _fingerprints(specs: Sequence[Mapping[str, Any]], root: Path, judge: Judge | None) -> list[str]:
    return [build({k: v for k, v in spec.items() if k != "weight"}, root, judge).fingerprint for spec in specs]


def _combined(
    name: str,
    spec: Mapping[str, Any],
    checks_of: Callable[[Sample], Sequence[Mapping[str, Any]]],
    mode: Mode,
    root: Path,
    judge: Judge | None,
) -> Scorer:
    def parts(sample: Sample) -> tuple[list[Scorer], list[float]]:
        specs = checks_of(sample)
        scorers = _checks.parts(sample, specs, lambda spec: build(spec, root, judge))
        try:
            return scorers, [_checks.Weight.model_validate(spec).weight for spec in specs]
        except ValidationError as error:
            raise UsageError(f'sample "{sample.id}": {_explain("checks", error, ["weight"])}') from None

    def score(sample: Sample, rollout: Rollout) -> Any:
        if rollout.empty:
            return Score(0.0, "the answer is empty")
        return _checks.run(sample, rollout, *parts(sample), mode)

    def expected(sample: Sample) -> str:
        compared = any(_checks.compares_with_target(spec, _TARGETLESS) for spec in checks_of(sample))
        return example(sample) or (first_target(sample) if compared else "")

    def check(sample: Sample) -> None:
        for part in parts(sample)[0]:
            part.check(sample)

    def describe(sample: Sample) -> list[str]:
        scorers, weights = parts(sample)
        how = {"all": "all must pass", "any": "one is enough", "weighted": "the weighted mean counts"}[mode]
        said = [f"{len(scorers)} check{'s' * (len(scorers) > 1)}{f', {how}' if len(scorers) > 1 else ''}:"]
        for scorer, weight in zip(scorers, weights, strict=True):
            first, *more = scorer.describe(sample) or [scorer.name]
            said += [
                f"- {first}{f' (weight {weight:g})' if mode == 'weighted' else ''}",
                *(f"  {line}" for line in more),
            ]
        return said

    def reads(sample: Sample) -> Iterable[Path]:
        return [path for part in parts(sample)[0] for path in part.reads(sample)]

    return Scorer(name, _digest(spec), score, expected, check, describe=describe, reads=reads)


def _negation(options: dict[str, Any], root: Path, judge: Judge | None) -> Scorer:
    try:
        chosen = _checks.Negation.model_validate(options)
    except ValidationError as error:
        raise UsageError(_explain("not", error, list(_checks.Negation.model_fields))) from None
    inner = build(chosen.check, root, judge)

    def score(sample: Sample, rollout: Rollout) -> Any:
        return _checks.negated(sample, rollout, inner)

    def describe(sample: Sample) -> list[str]:
        first, *more = inner.describe(sample) or [inner.name]
        return [f"not {first}", *more]

    digest = _digest({"type": "not", "inner": inner.fingerprint})
    return Scorer("not", digest, score, lambda sample: "", inner.check, describe=describe, reads=inner.reads)


def _test_suite(options: dict[str, Any], root: Path) -> Scorer:
    try:
        chosen = _tests.Options.model_validate(options)
    except ValidationError as error:
        raise UsageError(_explain("tests", error, list(_tests.Options.model_fields))) from None
    return _tests.tests(chosen, root)


def _installed(plugin: plugins.Plugin, options: dict[str, Any]) -> Scorer:
    own = (options.pop("target"),) if "target" in options else None
    options = _validated(plugin.name, plugin.value, options)
    plain = _python(plugin.value, plugin.name)

    def adapt(sample: Sample) -> Sample:
        return sample if own is None else sample.model_copy(update={"target": own[0]})

    def score(sample: Sample, rollout: Rollout) -> Any:
        return plugin.value(adapt(sample), rollout, **options)

    spec = [plugin.package, plain.fingerprint, options, own]
    return replace(plain, fingerprint=_digest(spec), score=score, expected=lambda sample: first_target(adapt(sample)))


def _python(fn: Any, name: str) -> Scorer:
    if not callable(fn):
        raise UsageError(f"{name} is not a function but a {type(fn).__name__}")
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        raise UsageError(f"{name} must take two arguments: (sample, rollout)") from None
    except ValueError:  # a builtin without a signature
        pass
    fingerprint = f"python:{function_name(fn)}:{function_fingerprint(fn)}"
    return Scorer(name, fingerprint, fn, apart=True, custom=True, describe=lambda sample: [name])


def _accepted(kind: str, sample: Sample) -> str:
    """The accepted targets as the scorer reads them: the first in full, and a few more."""
    if kind in ("json", "ndcg"):
        return f": expects {quote(as_text(sample.target), SHOWN_CHARS)}"
    first, *more = alternatives(sample)
    return f": expects {quote(first, SHOWN_CHARS)}" + "".join(f" or {quote(text)}" for text in more[:SHOWN_TARGETS])


def _plugin(kind: Any) -> plugins.Plugin | None:
    """The installed scorer of that name, or None if it is missing or one of ours has the name."""
    return None if not isinstance(kind, str) or kind in KINDS else plugins.find("scorer", kind)


def _find(kind: Any, options: Mapping[str, Any]) -> Compare:
    if isinstance(kind, str) and (kind in BUILTIN or kind in OF_FILES):
        return BUILTIN[kind] if kind in BUILTIN else OF_FILES[kind][0]
    if kind == "judge":
        prose = quote(str(next(iter(options.values()), "")))
        raise UsageError(
            f'the check {prose} (type "judge") needs a judge (a model that reads the answers), and none is named: '
            'name one with score = {judge = "MODEL"}, state the check so that it can be computed, '
            'e.g. {"type": "contains", "target": "…"}, or name another score, e.g. python:file.py:fn'
        )
    names = [name for name in kinds() if name != "judge"]
    raise UsageError(
        f'unknown scorer "{kind}"{nearest(str(kind), names)}; there are {", ".join(names)} and python:file.py:fn'
    )


def _first_option(kind: str) -> str:
    if kind in ("checks", "tests"):
        return "mode" if kind == "checks" else "command"
    plugin = _plugin(kind)
    options = _option_names(_find(kind, {}) if plugin is None else plugin.value)
    if not options:
        raise UsageError(f'the scorer "{kind}" takes no options')
    return options[0]


def _option_names(compare: Compare) -> list[str]:
    parameters = inspect.signature(compare).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _validated(kind: str, compare: Compare, options: Mapping[str, Any]) -> dict[str, Any]:
    names, hints = _option_names(compare), get_type_hints(compare, include_extras=True)
    valid: dict[str, Any] = {}
    for key, value in options.items():
        if key not in names:
            raise UsageError(_unknown(kind, key, [*names, "target"]))
        try:
            valid[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UsageError(f'scorer "{kind}": {key} = {quote(str(value))}: {message}') from None
    return valid


def _explain(kind: str, error: ValidationError, names: list[str]) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0])
    return (
        _unknown(kind, key, names) if first["type"] == "extra_forbidden" else f'scorer "{kind}": {key}: {first["msg"]}'
    )


def _unknown(kind: str, key: str, names: list[str]) -> str:
    return f'scorer "{kind}" has no option "{key}"{nearest(key, names)}; it has: {", ".join(names) or "none"}'


def _digest(spec: Any) -> str:
    return sha256(dumps(spec, sort_keys=True, default=str).encode()).hexdigest()


__all__ = ["BUILTIN", "ScoreFn", "Scorer", "build", "evaluate", "is_kind", "kinds"]
