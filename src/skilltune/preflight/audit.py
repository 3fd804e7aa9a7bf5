"""Search a sample set for cheap tricks: ways to score without doing the task, which a skill could learn instead.

A finding is a note with its numbers and a few sample ids, because honest data has such patterns too, e.g. a skewed
label. It is a problem only if one fixed answer solves every sample, because then there is nothing to train. The scorer
is called on at most `PROBED` samples, evenly spaced. No judge is called.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from skilltune.envs import Env
from skilltune.errors import JudgeError
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import SPLITS, Sample, Splits, spread
from skilltune.scorers.choice import options_of
from skilltune.scorers.reading import as_text, folded
from skilltune.scorers.scorer import first_target
from skilltune.words import tokens

PROBED = 100  # most samples on which the scorer is called, for each of a dozen answers
CONSTANTS = 3  # number of most frequent expected answers to try on all samples, and of values that checks name
FILLERS = ("OK", "I cannot answer this.")  # answers without content, tried on all samples first
LISTED = 100  # most expected answers in the answer that lists all
QUESTIONS = 400  # most multiple-choice samples that are searched for give-aways
PHRASES = (1, 2, 4)  # words
LEAST_QUESTIONS = 8  # least number of questions to which a rule must apply
GIVEAWAYS = 5  # most rules named, the most certain first
ALPHA = 1e-4  # error rate over all rules that were tried
LEAST_SHARE = 0.10  # least share of the samples that makes a trick worth a note
SIMILARITY = 0.8  # least Jaccard index of two near-duplicates
SKETCH = 8  # number of smallest shingle hashes per text, by which near-duplicates are found (Broder 1997)
MOST_SHINGLES = 1000  # hashes kept of one text, so that long texts do not fill the memory
SHORT = 4  # characters; many texts contain a shorter answer by accident
SHOWN = 3  # most ids or pairs that a note names
Shingles: TypeAlias = npt.NDArray[np.uint32]
_NONE = np.array([], dtype=np.uint32)
# Syntax of patterns to remove; an escaped character and the first of a class stay.
_SYNTAX = re.compile(r"\\([^\w\s])|\[(\w)[^]]*\]|\(\?(?:[a-z]+\)|:)|\\[AbBZ]|[\^$()]")


@dataclass(slots=True)
class Audit:
    """The findings, one line each; the module's docstring tells problems from notes."""

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def audit(env: Env, splits: Splits) -> Audit:
    """Search all splits for cheap tricks.

    Calls the scorer, which may call a model if the user wrote it so, but no judge. A sample is left out if it needs a
    judge or if the scorer fails on it.
    """
    samples = [*splits.train, *splits.select, *splits.test]
    expected = {sample.id: env.expected(sample).strip() for sample in samples}
    options = {sample.id: options_of(sample) for sample in samples if _has_options(sample)}
    found = Audit()
    await _fixed_answers(env, samples, expected, options, found)
    found.notes += _giveaways(env, samples, options)
    found.notes += _answers_in_sight(samples, expected, options)
    found.notes += _near_duplicates(splits)
    return found


# -- answers that ignore the sample


async def _fixed_answers(
    env: Env,
    samples: Sequence[Sample],
    expected: Mapping[str, str],
    options: Mapping[str, Mapping[str, str]],
    found: Audit,
) -> None:
    """Score fixed answers, and answers that only repeat the input or list all possible answers."""
    known = Counter(filter(None, expected.values()))
    named = Counter(itertools.chain.from_iterable(_named(sample, expected[sample.id]) for sample in samples))
    tried = (answer for answer, _ in (*known.most_common(CONSTANTS), *named.most_common(CONSTANTS)))
    probed = spread(samples, PROBED)
    chance = _chance(probed, options, len(known) or len(named))
    best, hits, asked = "", 0, 0
    for answer in dict.fromkeys((*FILLERS, *tried)):
        solved = await _solved(env, probed, lambda _, answer=answer: answer)
        if sum(solved.values()) > hits:
            best, hits, asked = answer, sum(solved.values()), len(solved)
    if asked and hits == asked == len(probed) > 1:
        found.problems.append(f"the answer {_quote(best)} solves every sample, so there is nothing to learn or certify")
    elif asked and hits / asked >= chance + LEAST_SHARE / 2 and _tail(hits, asked, chance) < ALPHA:
        found.notes.append(
            f"the answer {_quote(best)} to every task solves {_share(hits, asked)} (by chance: "
            f"{100 * chance:.0f} %): compare every score with that"
        )

    known_share = max(chance, hits / asked if asked else 0.0)
    everything = "\n".join(itertools.islice(known, LISTED))
    tricks: dict[str, Callable[[Sample], str]] = {"the input, echoed,": lambda sample: sample.text}
    if len(known) > 1:
        tricks["a list of all expected answers"] = lambda _: everything
    if options:
        tricks["a list of all options"] = lambda sample: "\n".join(
            f"({label}) {text}" for label, text in options.get(sample.id, {}).items()
        )
    for name, answer in tricks.items():
        solved = await _solved(env, probed, answer)
        if solved and (hits := sum(solved.values())) >= (known_share + LEAST_SHARE) * len(solved):
            ids = [sample for sample, right in solved.items() if right]
            found.notes.append(
                f"{name} solves {_share(hits, len(solved))} ({_some(ids)}): the scorer accepts an answer that "
                "names everything; a stricter scorer, such as exact or choice, does not"
            )


async def _solved(env: Env, samples: Sequence[Sample], answer: Callable[[Sample], str]) -> dict[str, bool]:
    """Maps each sample that can be scored without a judge to True if the answer solves it."""
    solved = {}
    for sample in samples:
        if env.lines(sample):
            continue
        try:
            score = await env.score(sample, Rollout(sample.id, "", 0, Trajectory(answer(sample)), None))
        except JudgeError:
            continue
        solved[sample.id] = bool(score.hard)
    return solved


def _named(sample: Sample, expected: str) -> Iterator[str]:
    """Answers that the sample's checks or its target pattern suggest, each once: all named values together, then each
    value alone."""
    checks = sample.checks if expected else (*sample.checks, {"pattern": first_target(sample)})
    values = list(filter(str.strip, _values(checks)))
    yield from filter(None, dict.fromkeys(("\n".join(values), *values)))


def _values(checks: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The targets of checks, and text that may match their patterns: the pattern without anchors, up to the first
    `|`."""
    for check in checks:
        if check.get("type") == "checks":
            yield from _values(check.get("checks") or ())
        elif check.get("type") != "not":
            target = check.get("target")
            targets = target if isinstance(target, list | tuple) else [target]
            yield from (as_text(value) for value in targets if value is not None)
            yield _SYNTAX.sub(r"\1\2", check.get("pattern") or "").split("|")[0]


def _chance(samples: Sequence[Sample], options: Mapping[str, Mapping[str, str]], answers: int) -> float:
    """The share that a guess solves, among a sample's options or, without options, among the distinct answers; 0 if
    there is only one."""
    choices = [len(options.get(sample.id, ())) or answers for sample in samples]
    return fmean(1 / n if n > 1 else 0.0 for n in choices) if choices else 0.0


# -- options that give the key away


@dataclass(frozen=True, slots=True)
class _Question:
    sample: Sample
    texts: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    right: int


def _giveaways(env: Env, samples: Sequence[Sample], options: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Rules that pick the right option more often than chance allows: by a phrase, a place, a length or a similarity.

    A rule applies to a question if it picks exactly one option. Its hits are compared with guessing: the binomial with
    the mean chance bounds the tail (Hoeffding 1956), corrected for the number of rules that were tried (Bonferroni).
    """
    questions = list(_questions(env, spread([s for s in samples if options.get(s.id)], QUESTIONS), options))
    picks: defaultdict[str, list[tuple[_Question, int]]] = defaultdict(list)
    for question in questions:
        for rule, picked in _picks(question):
            picks[rule].append((question, picked))
    found: list[tuple[float, str, list[tuple[_Question, int]]]] = []
    for rule, picked in picks.items():
        if len(picked) < LEAST_QUESTIONS:
            continue
        hits = sum(q.right == i for q, i in picked)
        chance = fmean(1 / len(q.texts) for q, _ in picked)
        tail = _tail(hits, len(picked), chance)
        if tail * len(picks) < ALPHA and hits / len(picked) >= chance + LEAST_SHARE:
            found.append((tail, rule, picked))
    notes, explained = [], set[tuple[str, int]]()
    for _, rule, picked in sorted(found, key=lambda item: (item[0], -len(item[2]), -len(item[1]), item[1])):
        keys = {(q.sample.id, i) for q, i in picked}
        if len(keys - explained) < len(keys) / 2:  # mostly the same options as an earlier rule
            continue
        explained |= keys
        right = [q.sample.id for q, i in picked if q.right == i]
        chance = fmean(1 / len(q.texts) for q, _ in picked)
        share = f"{_share(len(right), len(picked))} (by chance: {100 * chance:.0f} %; {_some(right)})"
        notes.append(f"the option {rule} is the right one in {share}: a skill can learn that instead of the task")
    return notes[:GIVEAWAYS]


def _questions(env: Env, samples: Sequence[Sample], options: Mapping[str, Mapping[str, str]]) -> Iterator[_Question]:
    for sample in samples:
        labels, texts = list(options[sample.id]), tuple(options[sample.id].values())
        expected = folded(env.expected(sample))
        right = [i for i, label in enumerate(labels) if expected in (label.casefold(), folded(texts[i]))]
        if len(right) == 1 and len(texts) > 1:
            yield _Question(sample, texts, tuple(tuple(tokens(text)) for text in texts), right[0])


def _picks(question: _Question) -> Iterator[tuple[str, int]]:
    """Yield (rule, index of the option) for each rule that picks exactly one option."""
    n = len(question.texts)
    for i in range(n):
        yield f"at place {i + 1}", i
    sizes = [float(len(text)) for text in question.texts]
    asked = set(tokens(question.sample.text))
    rules = {
        "with the longest text": sizes,
        "with the shortest text": [-size for size in sizes],
        "most like the others": [
            _overlap(words, set().union(*question.words[:i], *question.words[i + 1 :]))
            for i, words in enumerate(question.words)
        ],
    }
    if not all(text in question.sample.text for text in question.texts):  # else the question contains all options
        rules["most like the question"] = [_overlap(words, asked) for words in question.words]
    for key, value in question.sample.metadata.items():
        if isinstance(value, str) and " " in value:
            hint = set(tokens(value))
            rules[f"most like metadata.{key}"] = [_overlap(words, hint) for words in question.words]
    for rule, values in rules.items():
        top = [i for i, value in enumerate(values) if value == max(values)]
        if len(top) == 1:
            yield rule, top[0]
    holders: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, words in enumerate(question.words):
        for size in PHRASES:
            for start in range(len(words) - size + 1):
                holders[words[start : start + size]].add(i)
    for phrase, held in holders.items():
        if len(held) == 1:
            yield f'that says "{" ".join(phrase)}"', held.pop()


def _overlap(words: Sequence[str], others: set[str]) -> float:
    own = set(words)
    return len(own & others) / (len(own) or 1)


# -- answers that the input or the metadata contain


def _answers_in_sight(
    samples: Sequence[Sample], expected: Mapping[str, str], options: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Notes on expected answers that the input contains verbatim, or metadata that a prompt or a file might show."""
    open_ended = [s for s in samples if len(expected[s.id]) >= SHORT and s.id not in options]
    places: defaultdict[str, list[str]] = defaultdict(list)
    elsewhere: Counter[str] = Counter()  # hits with another sample's answer, which estimate the accidental hits
    for sample, other in zip(open_ended, [*open_ended[1:], *open_ended[:1]], strict=True):
        texts = {f"metadata.{key}": value for key, value in sample.metadata.items() if key != "example"}
        for place, text in {"the input": sample.text, **texts}.items():
            if isinstance(text, str) and _contains_words(expected[sample.id], text):
                places[place].append(sample.id)
            elsewhere[place] += isinstance(text, str) and _contains_words(expected[other.id], text)
    return [
        f"the expected answer stands in {place} of {_share(len(ids), len(open_ended))} ({_some(ids)}): unless the task "
        "is to find it there, an answer can be right for the wrong reason"
        for place, ids in places.items()
        if len(ids) - elsewhere[place] >= LEAST_SHARE * len(open_ended)
    ]


def _contains_words(answer: str, text: str) -> bool:
    """True if the text contains the answer as whole words."""
    place = text.casefold().find(answer.casefold())
    if place < 0:
        return False
    around = text[max(place - 1, 0) : place] + text[place + len(answer) : place + len(answer) + 1]
    return not any(map(str.isalnum, around))


# -- the same task in two splits


def _near_duplicates(splits: Splits) -> list[str]:
    """Notes on pairs of samples in different splits with equal words, or with nearly equal words apart from words that
    many tasks share."""
    split_of = {sample.id: name for name in SPLITS for sample in getattr(splits, name)}
    same: defaultdict[bytes, list[str]] = defaultdict(list)
    shingles: dict[str, Shingles] = {}
    text_of: dict[str, bytes] = {}
    for sample in (sample for name in SPLITS for sample in getattr(splits, name)):
        words = tokens(sample.text)
        text_of[sample.id] = sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
        same[text_of[sample.id]].append(sample.id)
        shingles[sample.id] = _shingles(words)
    found, counts = np.unique(np.concatenate([*shingles.values(), _NONE]), return_counts=True)
    template = found[counts > max(5, len(shingles) // 200)]  # a shingle that more samples contain belongs to a template
    own = {name: np.setdiff1d(them, template, assume_unique=True) for name, them in shingles.items()}
    sketched: defaultdict[int, list[str]] = defaultdict(list)
    for name, them in own.items():
        for shingle in them[:SKETCH] if len(them) >= SHORT else ():
            sketched[int(shingle)].append(name)

    def apart(names: Sequence[str]) -> Iterator[tuple[str, str]]:
        return ((a, b) for a, b in itertools.combinations(names, 2) if split_of[a] != split_of[b])

    equal = {names[0]: names for names in same.values() if len({split_of[name] for name in names}) > 1}
    pairs = [next(apart(names)) for names in equal.values()]
    near = {pair for names in sketched.values() for pair in apart(names)}
    near = {(a, b) for a, b in near if text_of[a] != text_of[b] and _jaccard(own[a], own[b]) >= SIMILARITY}
    notes = []
    advice = "give such samples the same `group`, so that they stay in one split"
    if pairs:
        n = sum(map(len, equal.values()))
        notes.append(f"{n} samples have the words of a sample in another split ({_pairs(pairs, split_of)}): {advice}")
    if near:
        many = f"{len(near)} pairs of samples in different splits are near-duplicates"
        notes.append(f"{many} ({_pairs(sorted(near), split_of)}): {advice}")
    return notes


def _shingles(words: Sequence[str]) -> Shingles:
    """Hashes of all runs of three words, sorted; of a long text the `MOST_SHINGLES` smallest ones."""
    hashes = {zlib.crc32(" ".join(words[i : i + 3]).encode("utf-8", "surrogatepass")) for i in range(len(words) - 2)}
    return np.array(sorted(hashes)[:MOST_SHINGLES], dtype=np.uint32)


def _jaccard(a: Shingles, b: Shingles) -> float:
    """The Jaccard index; of long texts its estimate from their smallest hashes (bottom-k sketches)."""
    if max(len(a), len(b)) >= MOST_SHINGLES // 2:
        bound = min(a[-1], b[-1])
        a, b = a[a <= bound], b[b <= bound]
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


# -- words and numbers


def _has_options(sample: Sample) -> bool:
    return isinstance(sample.metadata.get("choices"), list | tuple | Mapping) and bool(sample.metadata["choices"])


def _tail(hits: int, n: int, p: float) -> float:
    """P(X ≥ hits), X ~ Binomial(n, p)."""
    if p >= 1 or hits <= 0:
        return 1.0
    if p <= 0:
        return 0.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits, n + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _share(hits: int, n: int) -> str:
    return f"{hits} of {n} samples"


def _quote(text: str) -> str:
    return f'"{text if len(text) <= 60 else text[:57] + "…"}"'


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def _pairs(pairs: Sequence[tuple[str, str]], split_of: Mapping[str, str]) -> str:
    return _some([f"{a} in {split_of[a]} and {b} in {split_of[b]}" for a, b in pairs])
