"""reasoning-gym: puzzles made by generators, with the generators' own scorers."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from hashlib import sha256
from pathlib import Path
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, text
from skilltune.benchmarks.place import place_of
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.reading import final_answer, nearest, quote
from skilltune.scorers.scorer import Scorer

SIZES = (60, 40, 100)
REFUSED = {
    "codeio": "its tasks do not repeat with the seed",
    "composite": "its parts would have to be chosen",
    "game_of_life_halting": "its scorer accepts any answer to some of its tasks",
    **dict.fromkeys(
        ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
        "its stored answers do not score 1",
    ),
}
NONSENSE = "zzz"
_UNREAD = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, ArithmeticError, AssertionError)
TRIED = 8  # tasks of a generator whose stored answer is tried


def make(place: Path, variant: str, draw: Draw) -> Env:
    if place != place_of("rg"):
        raise UsageError("bench:rg makes its tasks itself: leave out --data (env.data)")
    if variant in REFUSED:
        raise UsageError(f"bench:rg/{variant} cannot be used: {REFUSED[variant]}")
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UsageError('bench:rg needs the package reasoning-gym: pip install "skilltune[rg]"')
    known = sorted(importlib.import_module("reasoning_gym.factory").DATASETS)
    if variant not in known:
        raise UsageError(
            f"bench:rg has no generator {variant!r}{nearest(variant, known)}; `python -c 'from reasoning_gym.factory "
            "import DATASETS; print(*DATASETS)'` lists them"
        )
    size = sum(SIZES) if draw.limit is None else draw.limit
    generator = importlib.import_module("reasoning_gym").create_dataset(variant, size=size, seed=draw.seed)
    entries = {f"{variant}:{draw.seed}:{number}": generator[number] for number in range(size)}
    made = environment(variant, generator, entries, importlib.metadata.version("reasoning-gym"))
    made.private.append(Path(str(importlib.import_module("reasoning_gym").__file__)).parent)  # it solves its own tasks
    return made


def environment(variant: str, generator: Any, entries: dict[str, dict[str, Any]], version: str) -> Env:
    """The tasks of a generator. Raises UsageError if it does not accept its own answers."""

    def points(name: str, answer: str) -> tuple[float, str]:
        """(the points of an answer, the reason why the generator could not read it or "")."""
        try:
            return min(1.0, max(0.0, float(generator.score_answer(answer, entries[name])))), ""
        except _UNREAD as error:  # many scorers parse an answer without care
            return 0.0, f" (it cannot be read: {type(error).__name__}: {error})"

    for name, entry in list(entries.items())[:TRIED]:
        accepted = isinstance(entry["answer"], str) and points(name, entry["answer"])[0] >= 1.0
        if not accepted or points(name, NONSENSE)[0] >= 1.0:
            fault = "an answer of nonsense scores 1" if accepted else "the stored answer does not score 1"
            where = f"task {name.rpartition(':')[2]}"
            raise UsageError(f"bench:rg/{variant} cannot be used: in {where} {fault} (reasoning-gym {version})")
    samples = [
        Sample(id=name, input=entry["question"], target=entry["answer"], metadata={"task": name})
        for name, entry in entries.items()
    ]

    def score(sample: Sample, rollout: Rollout) -> Score:
        """The generator's own points as partial credit; 1 only for a full score."""
        got = final_answer(rollout.answer)
        if not got:
            return Score(0.0, "the answer is empty", soft=0.0)
        soft, unread = points(sample.id, got)
        said = f"{soft:g} points for {quote(got)}{unread}, expected {quote(sample.target)} or as good"
        return Score(float(soft >= 1.0), said, soft)

    scorer = Scorer(
        "rg",
        sha256(f"reasoning-gym {version} {variant} 1".encode()).hexdigest(),
        score,
        lambda sample: f"<answer>{sample.target}</answer>",
        apart=True,
        describe=lambda sample: [f"{variant}: the generator's own score; expects {quote(sample.target)} or as good"],
    )
    return Env(samples, scorer, prompt=text("rg", "prompt.md").rstrip())


RG = Benchmark(
    name="rg",
    title="reasoning-gym, generated puzzles",
    make=make,
    splits=SIZES,
    source="https://github.com/open-thought/reasoning-gym",
    licence="Apache-2.0",
    hard=Metric("solved", "the generator's own scorer gives all points"),
    soft=Metric("points", "the points of the generator's own scorer; many give some for an answer of the right form"),
    gated='the package makes the tasks: pip install "skilltune[rg]"',
    needs="rg",
    variant="GENERATOR",
    required=True,
    traps=(
        f"Some generators cannot be used: {'; '.join(f'{name} ({why})' for name, why in sorted(REFUSED.items()))}.",
        "Some scorers raise an error for an answer that they cannot read, such as prime_factorization: it scores 0.",
        "The seed of the config makes the tasks, so another seed means other tasks. The paper does not use this set.",
    ),
)
