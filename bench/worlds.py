"""Training in many simulated worlds (tests/worlds), over real HTTP: what ships, what it cost, and when it was there.

Each run trains with a preset against the server of a family. The true score is noise-free, on the world's test split,
as a share of what the best skill of the family attains. There is no certificate unless `--certify` asks for it, because
it takes a third of the time and decides nothing about the training.

*after N*: the true score of the version that is the incumbent when N target calls are made, or of the shipped skill if
the run has ended by then. Brackets: 95 % bootstrap intervals over seeds. *changed*: runs that ship another skill than
the input. *target calls*: before the certificate.

    python bench/worlds.py                                          the tuning families, preset default
    python bench/worlds.py --families quarter,desk --seeds 12 --set train.patience=8 --constant gate.priors.WORTH=0.5
    python bench/worlds.py --vary q=0                               every family with an optimizer that is never right
    python bench/worlds.py --families locked --why "release 1.0"    adds a line to the log in bench/worlds.md

With `--keep FILE` every outcome is written down, and the same command goes on where it was ended. Outcomes of other
sources (skilltune, the worlds, this file) are not used.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import importlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import skilltune
from skilltune.api import run_training
from skilltune.config import make_config
from worlds import FAMILIES, LOCKED, TUNING, Family, FamilyWorld, unlock
from worlds.anytime import BUDGETS, bootstrap

ROOT = Path(__file__).parents[1]
TOKENS_A_KIND = 60  # room in the skill; at least the preset's limit
LOG = ROOT / "bench" / "worlds.md"


@dataclass(frozen=True, slots=True)
class Task:
    """One run; everything that decides its outcome. The seed is the world's and the run's."""

    family: Family
    seed: int
    preset: str
    settings: str  # JSON: the config's tables
    constants: str  # JSON: "module.NAME" → value
    certify: bool

    @property
    def key(self) -> str:
        return json.dumps({"code": code(), **asdict(self)}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run. `curve` holds (target calls, true score) of the input and of each accepted version."""

    true: float
    start: float
    changed: bool
    accepted: int
    steps: int
    target: int
    optimizer: int
    seconds: float  # CPU, world included
    reason: str  # why the training ended
    curve: tuple[tuple[int, float], ...]

    def after(self, calls: int) -> float:
        """The true score after so many target calls."""
        return self.true if self.target <= calls else [score for made, score in self.curve if made <= calls][-1]


@functools.cache
def code() -> str:
    """A digest of all sources that decide an outcome."""
    roots = Path(skilltune.__file__).parent, ROOT / "tests" / "worlds"
    sources = sorted(path for root in roots for path in root.rglob("*") if path.suffix in (".py", ".md", ".txt"))
    own = (ROOT / "tests" / "world.py", Path(__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*sources, *own))).hexdigest()[:16]


@contextmanager
def constants(values: Mapping[str, Any]) -> Iterator[None]:
    """Constants of skilltune by "module.NAME", changed in every module that imported them, and restored."""
    changed = []
    for name, value in values.items():
        module, _, constant = name.rpartition(".")
        home = importlib.import_module(f"skilltune.{module}")
        if not hasattr(home, constant):
            raise SystemExit(f"--constant {name}: skilltune.{module} has no constant {constant}")
        old = getattr(home, constant)
        for holder in [m for key, m in list(sys.modules.items()) if key.startswith("skilltune") and m]:
            if getattr(holder, constant, None) is old:
                changed.append((holder, constant, old))
                setattr(holder, constant, value)
    try:
        yield
    finally:
        for holder, constant, old in changed:
            setattr(holder, constant, old)


def run(task: Task) -> Outcome:
    with constants(json.loads(task.constants)):
        return _run(task)


def _run(task: Task) -> Outcome:
    began = time.process_time()
    with FamilyWorld(task.family, task.seed) as world, tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        samples = [sample for sample in world.samples() if task.certify or sample["split"] != "test"]
        (place / "data.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        if world.start:
            (place / "SKILL.md").write_text(world.start)
        settings: dict[str, Any] = json.loads(task.settings)
        room = TOKENS_A_KIND * world.classes
        settings["train"] = {**({"max_skill_tokens": room} if room > 2000 else {}), **settings.get("train", {})}
        settings["target"] = {
            **{"model": f"openai@{world.url}/target", "lookahead": False},  # look-ahead would blur the count of calls
            **settings.get("target", {}),
        }
        settings["optimizer"] = {"model": f"openai@{world.url}/optimizer", **settings.get("optimizer", {})}
        settings["env"] = {"samples": str(place / "data.jsonl"), "score": world.score, **settings.get("env", {})}
        tree = {"preset": task.preset, "skill": "SKILL.md", "seed": task.seed, **settings}
        made, steps, reasons = [0], [0], list[str]()

        def listen(kind: str, data: Mapping[str, Any]) -> None:
            if kind == "verdict":
                steps[0] += 1
                if data["accepted"]:
                    made.append(world.calls["target"])
            elif kind == "stopping":
                reasons.append(data["reason"])

        cfg = make_config(tree, source="bench/worlds.py")
        result = asyncio.run(run_training(cfg, place, place / "run", listeners=[listen]))
        best = world.attainable
        scores = [world.true_score(version.text) / best for version in result.versions]
        tested = 2 * task.family.test if result.certificate is not None else 0
        return Outcome(
            true=world.true_score(result.best.text) / best,
            start=scores[0],
            changed=result.best.text != result.start.text,
            accepted=len(result.versions) - 1,
            steps=steps[0],
            target=world.calls["target"] - tested,
            optimizer=world.calls["optimizer"],
            seconds=time.process_time() - began,
            reason=" ".join(reasons) or (str(result.stopped) if result.stopped else "the last step"),
            curve=tuple(zip(made, scores, strict=False)),
        )


def outcomes(tasks: Sequence[Task], jobs: int, keep: Path | None) -> Iterator[tuple[Task, Outcome]]:
    """Each task with its outcome, in order; those that were kept are not made again."""
    known = dict(_kept(keep)) if keep and keep.exists() else {}
    todo = [task for task in tasks if task.key not in known]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        made = pool.imap(run, todo)
        for task in tasks:
            if task.key not in known:
                known[task.key] = next(made)
                if keep is not None:
                    with keep.open("a") as file:
                        file.write(json.dumps({"key": task.key, "outcome": asdict(known[task.key])}) + "\n")
            yield task, known[task.key]


def _kept(file: Path) -> Iterator[tuple[str, Outcome]]:
    for line in file.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # a killed process may leave half a line
            row = json.loads(line)
            curve = tuple((made, score) for made, score in row["outcome"].pop("curve"))
            yield row["key"], Outcome(**row["outcome"], curve=curve)


# -- tables


HEADERS = (
    *("family", "true score", "sd", "worst", "target calls", "optimizer calls", "accepted", "changed"),
    *(f"after {calls:,}" for calls in BUDGETS),
    "CPU s",
)


def row(name: str, runs: Sequence[Outcome]) -> str:
    true = [run.true for run in runs]
    cells = (
        *(name, f"{fmean(true):.3f}", f"{pstdev(true):.3f}", f"{min(true):.2f}"),
        *(f"{fmean(run.target for run in runs):.0f}", f"{fmean(run.optimizer for run in runs):.0f}"),
        *(f"{fmean(run.accepted for run in runs):.1f}", f"{sum(run.changed for run in runs)} of {len(runs)}"),
        *(f"{fmean(run.after(calls) for run in runs):.3f}" for calls in BUDGETS),
        f"{fmean(run.seconds for run in runs):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def summary(cells: Mapping[Family, list[Outcome]]) -> Iterator[str]:
    """The anytime curve over the families whose optimizer may be right, and the changes by those that never are."""
    able = {family: runs for family, runs in cells.items() if family.q > 0}
    if able:
        yield ""
        yield "| optimizer right at times | families | runs | true score | worst run | target calls |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for calls in (*BUDGETS, None):
            scores = [[run.true if calls is None else run.after(calls) for run in runs] for runs in able.values()]
            mean, low, high = bootstrap(scores)
            spent = fmean(fmean(min(run.target, calls or run.target) for run in runs) for runs in able.values())
            worst = min(score for cell in scores for score in cell)
            label = "at the end" if calls is None else f"after {calls:,}"
            size = f"{len(able)} | {sum(map(len, scores))}"
            yield f"| {label} | {size} | {mean:.3f} ({low:.3f} to {high:.3f}) | {worst:.2f} | {spent:.0f} |"
    if never := [run for family, runs in cells.items() if not family.q for run in runs]:
        changed = sum(run.changed for run in never)
        calls = fmean(run.target for run in never)
        yield f"\nnever right: {changed} of {len(never)} runs changed the skill, {calls:.0f} target calls"


# -- the command line


def parse(text: str) -> Any:
    """A value as JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def assigned(texts: Sequence[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise SystemExit(f"{wrong[0]}: write NAME=VALUE")
    return {name: parse(value) for name, _, value in pairs}


def tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.patience": 8} as {"train": {"patience": 8}}."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        table = tree
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tree


def chosen(names: str, vary: Mapping[str, Any], why: str) -> list[Family]:
    """The families by name; "tuning" and "locked" are the halves. Locked families need a reason, which is logged."""
    groups = {"tuning": [*TUNING], "locked": [*LOCKED]}
    every = [name for part in names.split(",") for name in groups.get(part, [part])]
    if unknown := [name for name in every if name not in FAMILIES]:
        raise SystemExit(f"no family {unknown[0]!r}; known: tuning, locked, {', '.join(FAMILIES)}")
    if wrong := sorted(vary.keys() - {field.name for field in fields(Family)}):
        raise SystemExit(f"--vary {wrong[0]}: a family has no such parameter")
    unlock(every, why, LOG)
    return [replace(FAMILIES[name], **vary) for name in every]


def listing() -> Iterator[str]:
    """The table of the families: their half and every parameter that is not the default."""
    yield "| family | half | parameters |"
    yield "| --- | --- | --- |"
    for name, family in FAMILIES.items():
        values = ((field.name, getattr(family, field.name), field.default) for field in fields(Family)[1:])
        said = ", ".join(f"{key} {value}" for key, value, default in values if value != default)
        yield f"| {name} | {'locked' if name in LOCKED else 'tuning'} | {said or 'the defaults'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="tuning", help="names, or tuning, or locked (needs --why)")
    parser.add_argument("--why", default="", help="the reason for a look at locked families")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting: train.patience=8")
    parser.add_argument(
        "--constant", action="append", default=[], metavar="NAME=VALUE", help="a constant: gate.priors.WORTH=0.5"
    )
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=VALUE", help="a family parameter: q=0")
    parser.add_argument("--certify", action="store_true", help="with the certificate")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a file of known outcomes (JSON lines); new ones are added")
    parser.add_argument("--runs", action="store_true", help="print a line for every run to stderr")
    parser.add_argument("--list", action="store_true", help="print the table of the families, and run nothing")
    options = parser.parse_args()
    if options.list:
        print("\n".join(listing()))
        return
    settings = json.dumps(tree_of(assigned(options.set)), sort_keys=True)
    changed = json.dumps(assigned(options.constant), sort_keys=True)
    families = chosen(options.families, assigned(options.vary), options.why)
    seeds = range(options.first, options.first + options.seeds)
    tasks = [
        Task(family, seed, options.preset, settings, changed, options.certify) for family in families for seed in seeds
    ]
    print(f"preset {options.preset} {settings} {changed}, seeds {seeds.start} to {seeds.stop - 1}\n")
    print(f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|")
    cells: dict[Family, list[Outcome]] = {}
    for task, outcome in outcomes(tasks, options.jobs, options.keep):
        runs = cells.setdefault(task.family, [])
        runs.append(outcome)
        if options.runs:
            print(f"{task.family.name} {task.seed}: {outcome}", file=sys.stderr, flush=True)
        if len(runs) == len(seeds):
            print(row(task.family.name, runs), flush=True)
    print("\n".join(summary(cells)))


if __name__ == "__main__":
    main()
