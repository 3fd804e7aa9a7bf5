"""Training on a simulated world, for the end-to-end tests; `python tests/training.py JSON` does it in a process of its
own, so that it can be killed.

Worlds are small (a run takes about a second) and a pure function of their seed: what a test saw once, it always sees.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from skilltune import Env, Result
from skilltune.api import run_training
from skilltune.config import make_config
from skilltune.journal.run import Run
from skilltune.metering.slots import Endpoint
from skilltune.models.retry import RetryPolicy
from skilltune.rollout import Rollout
from world import TICKET, Call, Dice, Faults, Prompt, World

FRONT = "---\nname: desk\ndescription: Enters the code of a ticket.\n---\n"
START = f"{FRONT}# Desk\n\nAnswer each ticket with its code.\n"
DEFAULTS = {"train.epochs": 2, "train.batch_size": 16, "train.minibatch_size": 4, "gate.screen": 24}
SECRET = "The answer names the code which the desk enters for such a ticket"
Json = dict[str, Any]
Fate = Callable[[Call, str | None], str | None]


def judged_world(folder: Path, world: World, **score: Any) -> dict[str, Any]:
    """A folder to train in: the code of a ticket is a judge's business. Returns the config."""
    rows = [
        {
            **{key: row[key] for key in ("id", "input", "split")},
            "checks": [{"type": "judge", "text": f'{SECRET}: "{row["target"]}"'}],
        }
        for row in world.samples()
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "SKILL.md").write_text(START)
    return {
        "skill": "SKILL.md",
        "env": {"samples": "samples.jsonl", "score": {"judge": f"openai@{world.url}/judge", **score}},
        "target": {"model": f"openai@{world.url}/target", "workers": 16},
        "optimizer": {"model": f"openai@{world.url}/optimizer"},
        "train": {"epochs": 2, "batch_size": 16, "minibatch_size": 4},
        "gate": {"screen": 40},
    }


def small(**settings: Any) -> World:
    """A world in which training takes about a second."""
    return World(**{"classes": 4, "train": 32, "select": 16, "test": 24, "sloppy": 0.0, **settings})


def padding(world: World) -> None:
    """An optimizer that is right, and adds a useless line to everything that it writes."""
    reflect = world.optimizer.reflect

    def padded(prompt: Prompt, dice: Dice) -> dict[str, Any]:
        answer = reflect(prompt, dice)
        for number, edit in enumerate(answer["edits"]):
            useless = f"Keep an eye on {world.names[number % 2]} tickets before moving on."
            if edit["text"] and useless not in prompt.skill:
                answer["edits"].append({**edit, "text": useless})
                break
        return answer

    world.optimizer.stages["reflect"] = padded


class Fated(World):
    """A small world in which `fate(call, sample id)` says what befalls a call, always: "error", "garbled", … or None.

    `asked` counts the calls by stage and number of messages: a question has two, the same asked again has four.
    """

    def __init__(self, fate: Fate, **settings: Any) -> None:
        super().__init__(**{"classes": 4, "train": 32, "select": 16, "test": 24, "sloppy": 0.0, **settings})
        self.fate = fate
        self.asked: Counter[tuple[str | None, int]] = Counter()

    def __enter__(self) -> Fated:
        super().__enter__()
        return self

    def _check(self, call: Call, headers: dict[str, str], faults: Faults) -> None:
        super()._check(call, headers, faults)
        self.asked[call.stage, len(call.body["messages"])] += 1
        asked = [name for name in TICKET.findall(call.user) if name in self.tickets]
        call.fault = self.fate(call, asked[-1] if asked else None) or call.fault
        self._befall(call, faults)


@dataclass(frozen=True)
class Trained:
    """A finished run: its result, and its folder with the journal as read from disk."""

    result: Result
    folder: Path

    @property
    def versions(self) -> list[str]:
        return [version.hash for version in self.result.versions]

    @property
    def outcome(self) -> tuple[object, ...]:
        """The parts in which two runs of the same settings must be equal."""
        return self.versions, self.result.best.text, self.result.certificate, self.result.exit_code

    @property
    def verdicts(self) -> list[Json]:
        return events(self.folder, "verdict")

    def read(self, name: str) -> str:
        return (self.folder / name).read_bytes().decode()

    def rows(self, name: str) -> list[Json]:
        return [json.loads(line) for line in self.read(name).splitlines()]


def events(folder: Path, type: str) -> list[Json]:
    """The data of the recorded events of one type."""
    run = Run.read(folder)
    try:
        return [data for _, _, data in run.events(type)]
    finally:
        run.close()


def prepare(world: World, folder: Path, text: str = START) -> None:
    """Write the samples and the skill, once."""
    if not (folder / "samples.jsonl").exists():
        world.write(folder / "samples.jsonl")
    if not (folder / "SKILL.md").exists():
        (folder / "SKILL.md").write_bytes(text.encode())


async def train(world: World, folder: Path, settings: Json | None = None, **tables: Any) -> Trained:
    """Train on the world as `train_at` does, with START as the skill unless the folder holds one already."""
    prepare(world, folder)
    return await train_at(world.url, folder, settings, **tables)


async def train_at(
    url: str,
    folder: Path,
    settings: Json | None = None,
    *,
    run: str = "run",
    env: Env | None = None,
    fork: bool = False,
    drop: Sequence[str] = (),
    optimizer: str = "optimizer",
    **tables: Any,
) -> Trained:
    """Train `folder`/SKILL.md on `folder`/samples.jsonl at an endpoint; `settings` are "section.key" → value over
    DEFAULTS, `tables` are top-level keys of the config (preset, seed, budget)."""
    given = {"target.workers": 16, **DEFAULTS, **(settings or {})}
    tree: Json = {"skill": "SKILL.md", **tables}
    for key, value in given.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    tree.setdefault("env", {}).setdefault("samples", "" if env else "samples.jsonl")
    tree["target"].setdefault("model", f"openai@{url}/target")
    tree.setdefault("optimizer", {}).setdefault("model", f"openai@{url}/{optimizer}")
    used: list[Path] = []
    result = await run_training(
        make_config(tree),
        folder,
        folder / run,
        env=env,
        fork=fork,
        drop=drop,
        ready=lambda s: used.append(s.run.folder),
    )
    return Trained(result, used[0])


async def streamed(rollouts: Iterable[Rollout]) -> AsyncIterator[Rollout]:
    """Rollouts by hand in the form in which an optimizer is given them."""
    for rollout in rollouts:
        yield rollout


@contextmanager
def quick_retries(attempts: int = 5) -> Iterator[None]:
    """Back off for milliseconds instead of seconds."""
    policy = RetryPolicy(attempts, base_s=0.002)
    with (
        patch("skilltune.metering.clients.Endpoint", lambda workers, **given: Endpoint(workers, policy, **given)),
        patch("skilltune.rollouts.roller.WAITS_S", (0.01, 0.01, 0.01)),
        patch("skilltune.optimizer.stage.WAITS_S", (0.01, 0.01, 0.01)),
    ):
        yield


def main() -> None:
    """Train as the JSON object on the command line says: url, folder and the other arguments of `train_at`."""
    given = json.loads(sys.argv[1])
    asyncio.run(train_at(given.pop("url"), Path(given.pop("folder")), **given))


if __name__ == "__main__":
    main()
