"""The description of one benchmark, and the draw of its released number of samples."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.samples import SPLITS, Sample, apportion


@dataclass(frozen=True, slots=True)
class Draw:
    """Chooses as many samples as a benchmark releases: `sizes` of train, select and test, by hash of seed and id.

    The choice does not depend on the order of the samples, and it keeps no more of them in memory than it needs.
    """

    sizes: tuple[float, float, float]
    seed: int = 42
    limit: int | None = None  # most samples; None: the sum of the sizes, or all if that is 0

    def __call__(self, samples: Iterable[Sample]) -> list[Sample]:
        """The chosen samples in the order of their ids' hashes. A sample with a fixed split counts for that split."""
        most = round(sum(self.sizes)) if self.limit is None else self.limit
        if not most:
            return list(samples)
        ratio = self.sizes if sum(self.sizes) else (1, 1, 1)
        share = dict(zip(SPLITS, apportion(most, ratio), strict=True))
        fixed: dict[str, list[tuple[int, int, Sample]]] = {name: [] for name in SPLITS}
        free: list[tuple[int, int, Sample]] = []
        for number, sample in enumerate(samples):
            heap, room = (fixed[sample.split], share[sample.split]) if sample.split else (free, most)
            entry = (-self._rank(sample.id), -number, sample)  # a heap gives up its smallest: the largest rank
            if len(heap) < room:
                heapq.heappush(heap, entry)
            elif heap and entry > heap[0]:
                heapq.heapreplace(heap, entry)
        kept = [entry for name in SPLITS for entry in fixed[name]]
        kept += heapq.nlargest(most - len(kept), free)
        return [sample for *_, sample in sorted(kept, reverse=True)]

    def _rank(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}\0draw\0{name}".encode()).digest()[:8])


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a benchmark's data.

    `path` is its place in the benchmark's folder, `url` its address. `sha256` and `size` (bytes) are pinned, or unknown
    ("" and None). A file of a Hugging Face data set has `dataset` (owner/name@revision) and no url; its `path` may then
    be a pattern such as "data/*.parquet". `unpack` means that the file is a zip archive whose content is needed.
    """

    path: str
    url: str = ""
    sha256: str = ""
    size: int | None = None
    dataset: str = ""
    unpack: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    """A definition of a score: its name in `Score.metrics`, and its meaning in one sentence."""

    name: str
    meaning: str


Make: TypeAlias = Callable[[Path, str, Draw], Env]
"""(place of the data, variant, draw) → Env. The place is a folder, or a file that the user named. Raises UsageError."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task set that `bench:NAME` or `bench:NAME/VARIANT` names.

    make:     makes the environment. It passes its samples through the draw, and raises `Missing` without the data.
    splits:   the released sizes of train, select and test; (0, 0, 0) if all samples are used, by the config's ratio.
    hard:     the metric that decides `Score.value`; `soft` is that of `Score.soft`. `others` are further definitions,
              each a number in `Score.metrics`.
    files:    its data, see `Source`; empty if a package brings it or if the publisher gates it.
    gated:    instructions for data that the publisher gives only on request; "" if anybody may fetch it.
    needs:    the extra that its environment needs, e.g. "bench"; "" for none.
    variants: the names after the slash; empty if there are none. The first is the default unless `required`.
    variant:  the kind of name after the slash, e.g. "GENERATOR", if `make` itself knows the names; else "".
    skill:    the text of the starting skill; by default the file text/NAME/SKILL.md of this package.
    settings: lines of TOML for the config, below those of every benchmark.
    traps:    known faults of the data or of published scorers, each with what is done about it here.
    """

    name: str
    title: str
    make: Make
    splits: tuple[int, int, int]
    source: str
    licence: str
    hard: Metric
    soft: Metric
    others: tuple[Metric, ...] = ()
    files: tuple[Source, ...] = ()
    gated: str = ""
    needs: str = ""
    variants: tuple[str, ...] = ()
    variant: str = ""
    required: bool = False
    skill: str = ""
    settings: str = ""
    traps: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (self.hard, self.soft, *self.others)

    @property
    def starting_skill(self) -> str:
        return self.skill or text(self.name, "SKILL.md")


class Missing(UsageError):
    """The data of a benchmark is not there. The message names it and the command that gets it."""


def missing(name: str, place: Path, what: str, gated: str = "") -> Missing:
    """The error for data that is missing at `place`: one line with the file and the next step."""
    if place.is_file():
        return Missing(f"bench:{name}: {place} is a file: name the folder with {what} by --data PATH (env.data)")
    how = gated or f"`skilltune data fetch {name}` gets it"
    return Missing(f"bench:{name}: {what} is not in {place}: {how}, or name your copy with --data PATH (env.data)")


def text(name: str, file: str) -> str:
    """A text of a built-in benchmark: its SKILL.md, prompt.md or settings.toml."""
    return resources.files("skilltune").joinpath("benchmarks", "text", name, file).read_text(encoding="utf-8")


def pinned(name: str, base: str) -> tuple[Source, ...]:
    """The files of a built-in benchmark that text/NAME/files.txt lists: SHA-256, bytes and path, below the URL
    `base`."""
    rows = (line.split(" ", 2) for line in text(name, "files.txt").splitlines())
    return tuple(Source(path, f"{base}/{path}", digest, int(size)) for digest, size, path in rows)


__all__ = ["Benchmark", "Draw", "Make", "Metric", "Missing", "Source", "missing", "pinned", "text"]
