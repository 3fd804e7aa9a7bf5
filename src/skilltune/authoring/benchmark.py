"""Create a skill folder for `init bench:NAME`: the starting skill, and a config with the published settings."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skilltune import benchmarks
from skilltune.authoring.scaffold import filled, quoted, target_options, write_new
from skilltune.config import FILE_NAME, TargetConfig, make_config, toml_value
from skilltune.skill import MAIN

RATIO = (2, 1, 7)  # the published ratio, for a set without released sizes
CALLS = 10_000  # budget of a config; the published runs take more on the larger sets


def folder_of(spec: str) -> Path:
    """The default folder for a benchmark: its name, with the variant after a hyphen. Raises UsageError."""
    benchmark, variant = benchmarks.parse(spec)
    default = benchmark.variants[0] if benchmark.variants and not benchmark.required else ""
    return Path(_slug(benchmark.name if variant in ("", default) else f"{benchmark.name}-{variant}"))


def fetch_command(spec: str) -> str:
    """The command that gets a benchmark's data; "" if it has no files to fetch."""
    benchmark, _ = benchmarks.parse(spec)
    return f"skilltune data fetch {benchmark.name}" if benchmark.files else ""


def scaffold_benchmark(
    spec: str,
    folder: Path,
    *,
    target: str,
    optimizer: str,
    key_env: str = "",
    data: Path | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the folder and return the files written. The data need not be there yet.

    An existing SKILL.md is kept, even with `force`. Raises UsageError for an unknown benchmark or a wrong model, and if
    a config exists (unless `force`).
    """
    benchmark, variant = benchmarks.parse(spec)
    given: dict[str, Any] = tomllib.loads(benchmark.settings)
    own = given.pop("target", {})
    fitting = TargetConfig(**own).like(target) if own else None
    options = {key: value for key, value in own.items() if fitting is not None and key in fitting.model_fields_set}
    env, budget, optimizing = (given.pop(name, {}) for name in ("env", "budget", "optimizer"))
    named = f"{benchmark.name}/{variant}" if variant else benchmark.name
    key = f"key_env = {quoted(key_env)}" if key_env else '# key_env = "OPENROUTER_API_KEY"'
    place = (
        f"data = {quoted(str(data.resolve()))}"
        if data
        else '# data = "PATH"                 # your own copy of the data'
    )
    sizes = list(benchmark.splits if sum(benchmark.splits) else RATIO)
    what = "train : select : test, the released sizes" if sum(benchmark.splits) else "train : select : test"
    more = "\n".join(f"\n[{section}]\n{_lines(values)}" for section, values in given.items())
    text = filled(
        "benchmark.toml",
        title=f"{benchmarks.SCHEME}{named}: {benchmark.title}",
        licence=benchmark.licence,
        fetch=f"{fetch_command(spec)}    get the data from its publisher" if benchmark.files else benchmark.source,
        samples=quoted(f"{benchmarks.SCHEME}{named}"),
        split=f"{toml_value(sizes):<23} # {what}",
        data="\n".join(filter(None, (place, _lines(env)))),
        target=quoted(target),
        options="\n".join(filter(None, (_lines(options), target_options(target)))),
        optimizer=quoted(optimizer),
        key_env="\n".join(filter(None, (_lines(optimizing), key))),
        more=f"{more}\n" if more else "",
        limits=_lines({"calls": CALLS} | budget),
    )
    make_config(tomllib.loads(text), source=f"the settings of {named}")
    files = {FILE_NAME: text}
    if not (folder / MAIN).exists():
        name = _slug(folder.resolve().name) or benchmark.name
        files[MAIN] = re.sub(r"\A(---\n(?:.*\n)*?name: ).*", rf"\g<1>{name}", benchmark.starting_skill, count=1)
    return write_new(folder, files, force=force)


def _lines(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {toml_value(value)}" for key, value in values.items())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-")


__all__ = ["fetch_command", "folder_of", "scaffold_benchmark"]
