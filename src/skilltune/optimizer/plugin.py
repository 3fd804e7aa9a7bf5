"""Load an optimizer from a plug-in, and the material that it gets."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skilltune import plugins
from skilltune.config import Config
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.metering.client import Client
from skilltune.names import Name
from skilltune.optimizer import Optimizer
from skilltune.samples import Sample


@dataclass(frozen=True, slots=True)
class Material:
    """The material of a plug-in's optimizer.

    `env` and `samples` (by id) hold the train samples and no others. `client` is the model after the plug-in's name, as
    in "plugin:mine/openai/gpt-5.5", or None without one. Call it with a `Request`: it is retried, priced and counted
    against the budget. Wrap such calls in `run.memo`, so that an answer is paid for once. Relative paths start at
    `root`, the config's folder.
    """

    cfg: Config
    env: Env
    samples: Mapping[str, Sample]
    run: Run
    client: Client | None = None
    root: Path = Path()


def train_only(env: Env, samples: Mapping[str, Sample]) -> Env:
    """The environment that an optimizer may know: the same prompt and scorer, and the train samples alone."""
    shown = copy.copy(env)
    shown.samples = tuple(samples.values())
    return shown


def load_optimizer(name: Name, material: Material) -> tuple[Optimizer, str]:
    """The optimizer of the plug-in "plugin:NAME/REST", made by `make(REST, material)`, and the plug-in's package.

    Raises `UsageError` if there is no such plug-in, or if it does not make an `Optimizer`.
    """
    plugin = plugins.require("optimizer", name.plugin)
    optimizer = plugin.make(name.model, material)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f'the optimizer plug-in "{plugin.name}" of {plugin.package} made a {type(optimizer).__name__}, which lacks '
            "a member of `skilltune.optimizer.Optimizer`: looks_back, propose, learning_rate, slow_update, notes"
        )
    return optimizer, plugin.package
