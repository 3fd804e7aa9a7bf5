"""Benchmarks: published task sets as environments, named `bench:NAME` or `bench:NAME/VARIANT`.

A benchmark is one file here and one entry in `BENCHMARKS`, or a plug-in. It makes an `Env`: samples, prompt and scorer.
The loop that does a task is a target, so each benchmark runs with every target. No data comes with this package. An
item that cannot be used is reported and left out, and is never a 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skilltune import plugins
from skilltune.benchmarks.alfworld import ALFWORLD
from skilltune.benchmarks.bbh import BBH
from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Missing, Source, missing
from skilltune.benchmarks.bfcl import BFCL
from skilltune.benchmarks.docvqa import DOCVQA
from skilltune.benchmarks.gsm8k import GSM8K
from skilltune.benchmarks.livemath import LIVEMATH
from skilltune.benchmarks.officeqa import OFFICEQA
from skilltune.benchmarks.place import data_folder, place_of
from skilltune.benchmarks.rg import RG
from skilltune.benchmarks.searchqa import SEARCHQA
from skilltune.benchmarks.spreadsheetbench import SPREADSHEETBENCH
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.scorers.reading import nearest

SCHEME = "bench:"
BENCHMARKS: dict[str, Benchmark] = {
    made.name: made for made in (SEARCHQA, SPREADSHEETBENCH, OFFICEQA, DOCVQA, LIVEMATH, ALFWORLD, BBH, GSM8K, BFCL, RG)
}
"""The built-in benchmarks by name. A package registers more by the entry point group `skilltune.benchmarks`: its object
is a `Benchmark`."""


def is_benchmark(spec: str) -> bool:
    return spec.startswith(SCHEME)


def names() -> list[str]:
    """The names of all benchmarks, built-in ones first."""
    return [*BENCHMARKS, *(name for name in plugins.names("benchmark") if name not in BENCHMARKS)]


def find(name: str) -> Benchmark:
    """The benchmark of that name. Raises UsageError, with the nearest name, if there is none."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if (plugin := plugins.find("benchmark", name)) is not None:
        if isinstance(plugin.value, Benchmark):
            return replace(plugin.value, name=name)
        made = type(plugin.value).__name__
        raise UsageError(f'the benchmark plug-in "{name}" of {plugin.package} is a {made}, not a Benchmark')
    known = names()
    raise UsageError(f'there is no benchmark "{name}"{nearest(name, known)}; there are {", ".join(known)}')


def parse(spec: str) -> tuple[Benchmark, str]:
    """The benchmark and the variant that "bench:NAME[/VARIANT]" names. Raises UsageError."""
    name, slash, variant = spec.removeprefix(SCHEME).partition("/")
    benchmark = find(name)
    known = benchmark.variants
    if not slash and known and not benchmark.required:
        return benchmark, known[0]
    if known and variant not in known:
        fault = f'has no variant "{variant}"{nearest(variant, known)}' if slash else "needs a variant"
        raise UsageError(f"bench:{name} {fault}: write bench:{name}/NAME with one of {', '.join(known)}")
    if benchmark.variant and benchmark.required and not variant:
        raise UsageError(f"bench:{name} needs a name after it: bench:{name}/{benchmark.variant}")
    if slash and not known and not benchmark.variant:
        raise UsageError(f"bench:{name} has no variants: leave out /{variant}")
    return benchmark, variant


def load(spec: str, place: Path | None = None, *, seed: int = 42, limit: int | None = None) -> Env:
    """The environment that "bench:NAME[/VARIANT]" names.

    place: folder or file of its data; by default NAME in the data folder.
    seed:  seed of the choice of samples, if the data holds more than the benchmark's released number.
    limit: most samples, in place of the released number.

    Raises `Missing` (a UsageError) if the data is not there, and UsageError if it cannot be read.
    """
    benchmark, variant = parse(spec)
    place = place_of(benchmark.name) if place is None else place
    if benchmark.files and not place.exists() and place != place_of(benchmark.name):
        raise Missing(f"bench:{benchmark.name}: there is no file or folder {place} (--data, env.data)")
    made = benchmark.make(place, variant, Draw(benchmark.splits, seed, limit))
    made.private.append(place)
    made.name = f"{benchmark.name}/{variant}" if variant else benchmark.name
    hard, soft = benchmark.hard, benchmark.soft
    partial = "" if soft.name == hard.name else f"; partial credit is {soft.name}: {soft.meaning}"
    made.remarks.append(f"bench:{made.name} counts {hard.name}: {hard.meaning}{partial}")
    if sum(benchmark.splits):
        made.split = benchmark.splits
        if (least := sum(benchmark.splits)) > len(made.samples) and limit is None:
            made.remarks.append(
                f"{spec} has {len(made.samples)} of the {least} samples of the released splits "
                f"{'/'.join(map(str, benchmark.splits))} here, so the splits are smaller in proportion: the scores "
                "compare with none that were published"
            )
    return made


__all__ = [
    "BENCHMARKS",
    "SCHEME",
    "Benchmark",
    "Draw",
    "Metric",
    "Missing",
    "Source",
    "data_folder",
    "find",
    "is_benchmark",
    "load",
    "missing",
    "names",
    "parse",
    "place_of",
]
