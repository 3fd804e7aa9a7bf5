"""A plug-in's optimizer, and all that it is given."""

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
    """All that a plug-in's optimizer may use.

    `env` and `samples` (by id) hold the train samples and no others. `client` is the model that follows the plug-in's
    name, as in "plugin:mine/openai/gpt-5.5": called with a `Request`, within the budget, retried, priced; None where
    no model follows. What it answers goes through `run.once`, so that it is paid once. `root` is the config's folder,
    from which relative paths count.
    """

    cfg: Config
    env: Env
    samples: Mapping[str, Sample]
    run: Run
    client: Client | None = None
    root: Path = Path()


def train_only(env: Env, samples: Mapping[str, Sample]) -> Env:
    """The environment as an optimizer may know it: its prompt and scorer, and train samples alone."""
    shown = copy.copy(env)
    shown.samples = tuple(samples.values())
    return shown


def load_optimizer(name: Name, material: Material) -> tuple[Optimizer, str]:
    """The optimizer plug-in that `name` ("plugin:NAME/REST") means, made as `make(REST, material)`, and its package.

    Raises `UsageError` where there is none, and for what it makes if that is no `Optimizer`.
    """
    plugin = plugins.require("optimizer", name.plugin)
    optimizer = plugin.make(name.model, material)
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f'the optimizer plug-in "{plugin.name}" of {plugin.package} made a {type(optimizer).__name__}, which lacks '
            "a member of `skilltune.optimizer.Optimizer`: looks_back, propose, learning_rate, slow_update, notes"
        )
    return optimizer, plugin.package
