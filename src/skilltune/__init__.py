"""skilltune: train an agent's skill document like model weights.

import skilltune as st

result = st.train(skill="SKILL.md", env="data.jsonl", target="openai@http://127.0.0.1:8000/v1/qwen3")
print(result.certificate)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from skilltune.version import __version__ as __version__

if TYPE_CHECKING:
    from skilltune.api import (
        Evaluation,
        acompact,
        acontrols,
        aevaluate,
        atrain,
        compact,
        controls,
        evaluate,
        train,
    )
    from skilltune.envs import Env, env
    from skilltune.errors import SkilltuneError, UsageError
    from skilltune.finish.transfer import Transfers
    from skilltune.result import Result
    from skilltune.rollout import Rollout, Score
    from skilltune.samples import Sample
    from skilltune.skill import Skill

_HOMES = {
    "Env": "envs", "env": "envs", "Evaluation": "api", "Result": "result", "Rollout": "rollout", "Sample": "samples",
    "Score": "rollout", "Skill": "skill", "SkilltuneError": "errors", "UsageError": "errors", "acompact": "api",
    "acontrols": "api", "aevaluate": "api", "atrain": "api", "compact": "api", "controls": "api", "evaluate": "api",
    "train": "api", "Transfers": "finish.transfer",
}  # fmt: skip

__all__ = [
    "Env", "Evaluation", "Result", "Rollout", "Sample", "Score", "Skill", "SkilltuneError", "Transfers", "UsageError",
    "acompact", "acontrols", "aevaluate", "atrain", "compact", "controls", "env", "evaluate", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use, so that `skilltune --help` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'skilltune' has no attribute {name!r}")
    return getattr(import_module(f"skilltune.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """Keeps `skilltune.train` the function: importing the module of that name (the loop) would hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
