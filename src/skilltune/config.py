"""The configuration: one frozen tree, read from TOML, keyword arguments and `key=value` overrides alike.

A preset is nothing but other defaults: `default` is skilltune's method, `paper` SkillOpt's published one. The
resolved tree is stored in the run; keys that cannot change a result (`MAY_DIFFER`) may change on resume.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from skilltune.errors import RunError, UsageError
from skilltune.keys import declared
from skilltune.limits import MAX_WAIT_S, Limits, parse_budget
from skilltune.names import parse_name

ROLES = ("target", "optimizer", "judge")
PLAYED = ("workers", "timeout_s", "price", "key_env", "max_wait_s")
MAY_DIFFER = (
    "budget.",
    "log.",
    *(f"{role}.{key}" for role in ROLES for key in PLAYED),
    "env.score_timeout_s",
    "target.hedge",
    "target.lookahead",
    "certify.controls",
    "optimizer.wait",
)
FILE_NAME = "skilltune.toml"
EVALS = "evals/evals.json"
SKILL_TOKENS = 2000


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class EnvConfig(_Section):
    """The tasks: where the samples are, how an answer is scored, how a sample becomes a prompt."""

    samples: str = Field(
        default="", description="a sample file or folder, or file.py:factory; left out: the config's evals/evals.json"
    )
    score: str | dict[str, Any] = Field(
        default="exact", description='exact, number, f1, …, python:file.py:fn, {judge = "MODEL"}'
    )
    prompt: str | None = Field(
        default=None, description="the user message; {input} is the sample's input, {column} its column of that name"
    )
    split: tuple[float, float, float] = Field(default=(4, 3, 3), description="train : select : test")
    fields: dict[str, str] = Field(
        default={}, description="our field name → the name in your file; inputs.question leads into an object"
    )
    score_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds that one call of your own scorer may take; then the sample has no score",
    )


class CallConfig(_Section):
    """How a model is called."""

    workers: int = Field(default=8, ge=1, description="calls under way at once")
    timeout_s: float = Field(default=120.0, gt=0, description="seconds until one call is given up")
    temperature: float | None = Field(default=None, ge=0, description="None: the provider's default")
    max_tokens: int | None = Field(default=None, ge=1, description="bound of one answer")
    api: Literal["chat", "responses"] = Field(default="chat", description="which of OpenAI's two APIs is asked")
    price: tuple[float, float] | None = Field(default=None, description="dollars per million input and output tokens")
    key_env: str | None = Field(
        default=None,
        description="the environment variable that holds the endpoint's key; None: OPENAI_API_KEY or "
        "ANTHROPIC_API_KEY at the provider's own host, no key elsewhere",
    )
    max_wait_s: float = Field(
        default=MAX_WAIT_S,
        gt=0,
        description="longest wait for a quota or a busy server; beyond it the run stops (exit 3)",
    )
    same_as: str | None = Field(
        default=None, description="the model's earlier name, if only its address has changed: its answers are reused"
    )

    @field_validator("key_env")
    @classmethod
    def _no_key(cls, value: str | None) -> str | None:
        return value if value is None else declared(value)

    @field_validator("same_as")
    @classmethod
    def _known_model(cls, value: str | None) -> str | None:
        if value:
            parse_name(value)
        return value


class ModelConfig(CallConfig):
    """What a target and an optimizer have in common."""

    model: str = Field(default="", description="openai/gpt-…, openai@http://127.0.0.1:8000/v1/qwen3, local/…")

    @field_validator("model")
    @classmethod
    def _known_form(cls, value: str) -> str:
        if value:
            parse_name(value)
        return value


class TargetConfig(ModelConfig):
    """The frozen agent that does the tasks."""

    attempts: int = Field(default=1, ge=1, description="rollouts of each sample of a training batch")
    activation: Literal["inline"] = Field(default="inline", description="the skill is the system message")
    hedge: bool = Field(default=False, description="send a straggler's request once more; costs some calls, saves time")
    lookahead: bool | None = Field(
        default=None,
        description="use idle workers for calls that will probably be needed next; some are wasted. "
        "None: where calls, the judge's included, are free and not limited",
    )

    @model_validator(mode="after")
    def _hedge_elsewhere(self) -> TargetConfig:
        if self.hedge and self.model and parse_name(self.model).scheme == "local":
            raise ValueError("the embedded model has no stragglers, two copies of a call only slow it: leave hedge out")
        return self


class OptimizerConfig(ModelConfig):
    """The model that turns scored trajectories into edits; empty: the target's model where that can be one."""

    model: str = Field(
        default="",
        description="a model as for the target, examples, plugin:NAME, or handoff:DIR "
        "(a relative DIR counts from the config's folder)",
    )
    show_expected: bool = Field(default=True, description="show the expected answers of train samples")
    show_rubric: bool = Field(default=False, description="show which of a judge's checks failed on train samples")
    wait: bool = Field(default=True, description="handoff: wait for the answers; false: stop (exit 4), to be resumed")
    checks: Literal["enforce", "record"] = Field(
        default="enforce", description="of an edit whose evidence does not hold"
    )
    patterns: bool = Field(
        default=True,
        description="remember beyond an epoch: failure patterns that nothing has fixed, rejected edits, judged texts",
    )
    trajectory_chars: int = Field(default=6000, ge=200, description="a longer trajectory is elided in its middle")


class JudgeConfig(CallConfig):
    """How the judge of `env.score = {judge = "MODEL"}` is called. Verdicts should repeat, hence temperature 0."""

    temperature: float | None = Field(default=0.0, ge=0, description="of its verdicts")
    same_as_optimizer: bool = Field(
        default=False, description="let the optimizer's own model judge; it then grades edits of its own"
    )


class TrainConfig(_Section):
    """The loop."""

    epochs: int = Field(default=4, ge=0, description="passes over the train samples; 0: only score the input")
    batch_size: int = Field(default=30, ge=1, description="train samples rolled out per step")
    minibatch_size: int = Field(default=8, ge=1, description="trajectories per reflection")
    merge: Literal["pool", "rank"] = Field(default="pool", description="measure the edits, or let a model rank")
    merge_batch_size: int = Field(default=8, ge=2, description="patches per merge call")
    lr: int = Field(default=4, ge=1, description="edits applied per step at most")
    lr_min: int = Field(default=2, ge=1, description="where linear and cosine schedules of lr end")
    schedule: Literal["constant", "linear", "cosine", "autonomous"] = Field(
        default="cosine", description="how lr falls to lr_min over the run; autonomous: the optimizer's model chooses"
    )
    update: Literal["patch", "rewrite"] = Field(default="patch", description="apply edits, or let a model rewrite all")
    confirm: bool = Field(
        default=True,
        description="once half is solved, roll failures again and show the optimizer only what fails twice",
    )
    patience: int = Field(
        default=3,
        ge=0,
        description="stop after so many steps without an accept, or when nearly all is solved; 0: never",
    )
    target_score: float | None = Field(
        default=None, ge=0, le=1, description="stop when the estimated score on select reaches this"
    )
    max_skill_tokens: int | None = Field(
        default=None,
        ge=1,
        description="an edit that grows the skill past this is refused. "
        "None: 2,000, or a fifth more than the input where that is larger",
    )
    compact: bool = Field(default=False, description="at the end, drop each rule that carries less than a point")

    @model_validator(mode="after")
    def _rates(self) -> TrainConfig:
        if self.lr_min > self.lr:
            raise ValueError(f"train.lr_min ({self.lr_min}) is larger than train.lr ({self.lr})")
        return self

    def skill_limit(self, tokens: int) -> int:
        """Tokens that the skill may grow to, given those of the input."""
        return self.max_skill_tokens or room_for(tokens)


def room_for(tokens: int) -> int:
    """The limit of a skill whose input has that many tokens: a fifth more, and never less than SKILL_TOKENS."""
    return max(SKILL_TOKENS, -(-tokens * 6 // 5))


class GateConfig(_Section):
    """What a change must show before it is kept."""

    policy: str = Field(default="race", description="race, strict, eprocess, or the name of an installed plug-in")
    metric: Literal["score", "hard", "soft", "mixed"] = Field(default="score", description="what of a score counts")
    weight: float = Field(default=0.5, ge=0, le=1, description="mixed = weight·hard + (1 − weight)·soft")
    confidence: float = Field(default=0.90, gt=0.5, lt=1, description="race: accept when P(better) passes this")
    last_confidence: float = Field(default=0.88, gt=0.5, lt=1, description="race: the bar when all passes are used up")
    proven_confidence: float = Field(
        default=0.55,
        gt=0.5,
        lt=1,
        description="race: the same, while an accepted version stands: the optimizer has proved itself",
    )
    futility: float = Field(default=0.25, ge=0, lt=0.5, description="race: reject when P(gain > 0) falls below this")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="eprocess: P(any accept without a gain), per run")
    block: int = Field(default=8, ge=1, description="race, eprocess: samples before the first look")
    passes: int = Field(default=1, ge=1, description="race, eprocess: draws of each `select` sample at most")
    regression_bound: float = Field(
        default=0.02, ge=0, le=1, description="race: vetoed if select alone says that it harms by more"
    )
    length_price: float = Field(default=0.01, ge=0, description="race: gain that 1,000 more tokens must bring")
    pool: int = Field(
        default=12,
        ge=1,
        description="edits screened per step at most; three times as many where their claims mean nothing",
    )
    screen: int = Field(default=80, ge=0, description="train rollouts of the factorial screen")
    texts: int = Field(default=20, ge=2, description="distinct subsets in the screen")
    calibrate: bool = Field(default=False, description="score the start skill twice, and test the gate by it")

    @model_validator(mode="after")
    def _bars(self) -> GateConfig:
        for lower, upper in (("last_confidence", "confidence"), ("proven_confidence", "last_confidence")):
            low, high = getattr(self, lower), getattr(self, upper)
            if low > high and lower in self.model_fields_set:
                raise ValueError(f"gate.{lower} ({low}) is above {upper} ({high})")
            object.__setattr__(self, lower, min(low, high))  # a default follows the bar above it
        return self


class SlowConfig(_Section):
    """The epoch's slow update and the optimizer's notes, from the second epoch on."""

    enabled: bool = Field(default=True, description="propose guidance from what the epoch changed")
    samples: int = Field(default=20, ge=1, description="train samples on which the epoch's two ends are compared")
    notes: bool = Field(default=True, description="let the optimizer write notes that only it reads later")


class BudgetConfig(_Section):
    """Hard limits; the certificate's cost is kept back from the start."""

    usd: float | None = Field(default=None, gt=0, description="dollars, of all models; needs the price of each")
    tokens: int | None = Field(default=None, gt=0, description="input and output tokens, of all models")
    calls: int | None = Field(default=None, gt=0, description="calls to all models; a retry of one is another")
    minutes: float | None = Field(default=None, gt=0, description="wall clock, of all lives of the run")

    @property
    def limits(self) -> Limits:
        return Limits(self.usd, self.tokens, self.calls, self.minutes)


class CertifyConfig(_Section):
    """The certificate on the untouched test split."""

    attempts: int = Field(default=1, ge=1, description="draws of each test sample")
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="one-sided error of 'better'")
    controls: bool = Field(default=False, description="then measure cheaper ways to a skill; doubles the cost")


class LogConfig(_Section):
    """Where the figures of the run go, beside metrics.jsonl."""

    sinks: tuple[str, ...] = Field(default=(), description="wandb, mlflow, or the names of installed plug-ins")
    project: str = Field(default="skilltune", min_length=1, description="the project or experiment there")

    @field_validator("sinks", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class Config(_Section):
    """Everything that defines a run."""

    preset: Literal["default", "paper"] = Field(
        default="default", description="whose defaults: skilltune's, or those of the published method"
    )
    skill: str = Field(default="SKILL.md", description="a folder with SKILL.md, or a .md file; created if missing")
    seed: int = Field(default=42, description="of the split, of the order of the samples and of every random choice")
    env: EnvConfig = EnvConfig()
    target: TargetConfig = TargetConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    judge: JudgeConfig = JudgeConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    slow: SlowConfig = SlowConfig()
    budget: BudgetConfig = BudgetConfig()
    certify: CertifyConfig = CertifyConfig()
    log: LogConfig = LogConfig()

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "env": {"split": [2, 1, 7]},
        "optimizer": {"checks": "record", "patterns": False},
        "train": {"batch_size": 40, "merge": "rank", "patience": 0, "confirm": False},
        "gate": {"policy": "strict", "metric": "hard"},
    },
}


def load_config(path: Path, overrides: Iterable[str] = ()) -> tuple[Config, Path]:
    """Read a TOML file, or a skill folder (its skilltune.toml, or its evals/evals.json alone). A config that names no
    samples has those of evals/evals.json beside it.

    `overrides` are "dotted.key=value" with TOML values (bare words are strings). Returns the config and the folder
    that its relative paths are relative to. Raises `UsageError`.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    known = {"env": {"samples": EVALS}} if (root / EVALS).is_file() else {}
    if path.is_dir() and not (path / FILE_NAME).is_file():
        if not known:
            raise UsageError(f"{path} holds neither {FILE_NAME} nor {EVALS}: name a config file, or add one")
        return make_config({"skill": ".", **known}, overrides), root
    path = path / FILE_NAME if path.is_dir() else path
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        if path.suffix == ".md":
            raise UsageError(f"{path} is a skill, not a config: give its folder, {path.parent}") from error
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply to be a config") from None
    return make_config(_merge(known, tree), overrides, source=str(path)), root


def make_config(tree: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str = "the configuration") -> Config:
    """A Config from a nested mapping, its preset's defaults beneath and the overrides on top."""
    given = _merge({}, tree)
    _read_budget(given)  # before and after: an override may change one limit of a written budget, or bring one
    overridden = list[str]()
    for override in overrides:
        key, equals, value = override.partition("=")
        overridden.append(key.strip())
        if not equals or not key.strip():
            raise UsageError(f'"{override}" is not an override: write section.key=value, e.g. train.epochs=2')
        _put(given, key.strip(), _toml_value(value.strip()), override)
    _read_budget(given)
    preset = given.get("preset", "default")
    try:
        return Config.model_validate(_merge(PRESETS.get(str(preset), {}), given))
    except ValidationError as error:

        def where(item: Any) -> str:
            key = ".".join(map(str, item["loc"]))
            return "override" if any(f"{key}.".startswith(f"{name}.") for name in overridden) else source

        raise UsageError("\n".join(_explain(item, where(item)) for item in error.errors())) from error


def stored_config(tree: Mapping[str, Any], folder: Path) -> Config:
    """The Config that the run in a folder was made with. Raises `RunError` where this version cannot read it."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(item, "its configuration") for item in error.errors())
        raise RunError(
            f"the run in {folder} was made by another version of skilltune, and only that one can use it: {problems}"
        ) from error
    except UnicodeEncodeError as error:
        raise RunError(f"the run in {folder} has a damaged configuration: it is not valid Unicode ({error})") from error


def _read_budget(tree: dict[str, Any]) -> None:
    if isinstance(tree.get("budget"), str):
        tree["budget"] = parse_budget(tree["budget"])


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _put(tree: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    *parents, last = dotted.split(".")
    for depth, name in enumerate(parents, 1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            whole, key = ".".join(parents[:depth]), ".".join([*parents[depth:], last])
            raise UsageError(
                f"\"{override}\": {name} is not a section, it holds a value; replace it: '{whole}={{{key} = …}}'"
            )
    tree[last] = value


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: _merge({}, value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, Mapping) else value
    return merged


def _explain(item: Any, source: str) -> str:
    """One validation error as what, where and how to fix it."""
    where = [str(part) for part in item["loc"]]
    key = ".".join(where)
    if item["type"] == "value_error":  # our own message, which names the value unless it holds a password
        return f"{source}: {key}: {item['msg'].removeprefix('Value error, ')}"
    if item["type"] != "extra_forbidden":
        return f"{source}: {key}: {item['msg']} (got {item['input']!r:.80})"
    section: Any = Config
    for part in where[:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(where[-1], section.model_fields, n=1, cutoff=0.5)
    known = f'did you mean "{near[0]}"?' if near else "known keys: " + ", ".join(section.model_fields)
    return f"{source}: unknown key {key}; {known}"


def to_toml(cfg: Config) -> str:
    """The resolved config as TOML that `load_config` reads back to an equal Config; unset values are left out."""
    tree = cfg.to_json()
    lines = [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict) and (values := {k: v for k, v in section.items() if v is not None}):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A TOML value: JSON's scalars and arrays are TOML's too, objects become inline tables; TOML has no null."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
