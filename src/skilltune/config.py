"""The configuration: one frozen tree, read from TOML, keyword arguments and `key=value` overrides.

A preset is a set of defaults: `default` is skilltune's method, `paper` is SkillOpt's published one. The run stores the
resolved tree. Keys that cannot change a result (`MAY_DIFFER`) may change on resume.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from skilltune.api_keys import declared
from skilltune.errors import RunError, UsageError
from skilltune.limits import MAX_WAIT_S, Limits, parse_budget
from skilltune.names import AGENT_SCHEMES, parse_name

ROLES = ("target", "optimizer", "judge")
ROLE_KEYS = ("workers", "timeout_s", "price", "key_env", "max_wait_s")
MAY_DIFFER = (
    "budget.",
    "log.",
    "workers.",
    *(f"{role}.{key}" for role in ROLES for key in ROLE_KEYS),
    "env.score_timeout_s",
    "env.data",
    "target.hedge",
    "target.lookahead",
    "optimizer.wait",
)
MOVED = {"train.compact": "compact", "certify.controls": "controls"}  # former keys: commands on a finished run
FILE_NAME = "skilltune.toml"
EVALS = "evals/evals.json"
SKILL_TOKENS = 2000


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class EnvConfig(_Section):
    """The tasks: the sample file, the scorer of answers, and the prompt of a sample."""

    samples: str = Field(
        default="",
        description="a sample file or folder, file.py:factory, bench:NAME, inspect:FILE.py@TASK or harbor:DIR; "
        "default: evals/evals.json beside the config",
    )
    data: str = Field(
        default="",
        description="bench:NAME: folder or file of its data; default: NAME in $SKILLTUNE_DATA or in the cache folder",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="most samples, chosen by seed and id; None: all, or the released number of a benchmark",
    )
    score: str | dict[str, Any] = Field(
        default="exact",
        description='exact, number, f1, …, python:file.py:fn, {judge = "MODEL"}; of an Inspect task: its SCORER or '
        "SCORER/KEY, by default the first",
    )
    prompt: str | None = Field(
        default=None, description="template of the user message: {input} is the sample's input, {NAME} its column NAME"
    )
    split: tuple[float, float, float] = Field(default=(4, 3, 3), description="ratio train : select : test")
    fields: dict[str, str] = Field(
        default={},
        description="skilltune's field name → the name in your file; a dot, as in inputs.question, enters an object",
    )
    visible: tuple[str, ...] = Field(
        default=(),
        description="columns of the samples that the target receives with a task, besides the prompt and the files",
    )
    score_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="most seconds for one call of your own scorer; after that the sample has no score",
    )


class CallConfig(_Section):
    """Options of every model call."""

    workers: int = Field(default=8, ge=1, description="most calls at the same time")
    timeout_s: float = Field(default=120.0, gt=0, description="seconds after which one call is abandoned")
    temperature: float | None = Field(default=None, ge=0, description="None: the provider's default")
    max_tokens: int | None = Field(default=None, ge=1, description="most tokens of one answer")
    api: Literal["chat", "responses"] = Field(default="chat", description="OpenAI's chat completions or responses API")
    price: tuple[float, float] | None = Field(default=None, description="dollars per million input and output tokens")
    key_env: str | None = Field(
        default=None,
        description="name of the environment variable with the endpoint's key; None: OPENAI_API_KEY or "
        "ANTHROPIC_API_KEY at the provider's own host, no key at other hosts",
    )
    max_wait_s: float = Field(
        default=MAX_WAIT_S,
        gt=0,
        description="longest wait in seconds for a quota or a busy server; after that the run stops (exit 3)",
    )
    same_as: str | None = Field(
        default=None, description="earlier name of the same model at another address; its paid answers are reused"
    )

    context: int | None = Field(
        default=None, ge=256, description="local/… models: tokens of skill, input and answer together; None: 4,096"
    )
    threads: int | None = Field(default=None, ge=1, description="local/… models: threads of one instance; None: 1")

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
    """A model with the options of its calls; the base of target and optimizer."""

    model: str = Field(default="", description="openai/gpt-…, openai@http://127.0.0.1:8000/v1/qwen3, local/…")

    @field_validator("model")
    @classmethod
    def _known_form(cls, value: str) -> str:
        if value:
            parse_name(value)
        return value


class TargetConfig(ModelConfig):
    """The frozen agent that does the tasks."""

    attempts: int = Field(default=1, ge=1, description="rollouts per sample of a training batch")
    activation: Literal["inline", "forced", "native"] | None = Field(
        default=None,
        description="inline: the skill's body is part of the instructions; forced: the agent loads the skill at once; "
        "native: it is listed, and the agent decides. None: forced for an agent, inline for a chat model",
    )
    tools: tuple[Literal["bash", "python", "read", "write", "glob", "grep"], ...] = Field(
        default=(), description="tools of a chat model, which it uses in a workspace with the sample's files"
    )
    tool_calls: Literal["native", "text"] | None = Field(
        default=None,
        description="a chat model with tools of its own or of the environment. native: by function calling; text: by "
        "<action>…</action> in the answer, for a model without it. None: text for local models, else native",
    )
    max_turns: int | None = Field(
        default=None, ge=1, description="agent or tools: most requests with tools per rollout; then its work is scored"
    )
    max_usd: float | None = Field(
        default=None, gt=0, description="agent: most dollars per rollout; then its work is scored as it is"
    )
    upstream: str = Field(
        default="",
        description="acp and command: the model that the agent gets through the gateway. Empty: the agent's own login, "
        "with no proof that it saw the skill and no known cost",
    )
    gateway: bool = Field(
        default=True,
        description="claude-code and codex: false lets the command line use its own login, passed by target.env; then "
        "nothing proves that it saw the skill, and its cost is a list price",
    )
    env: tuple[str, ...] = Field(
        default=(), description="agent: names of environment variables that it gets; by default it sees no key"
    )
    sandbox: str = Field(
        default="auto", description="agent or tools: auto (the level that keeps most), bwrap, landlock or none"
    )
    hedge: bool = Field(default=False, description="send a slow request a second time; costs some calls, saves time")
    lookahead: bool | None = Field(
        default=None,
        description="use idle workers for calls that are likely to be needed next; some are wasted. "
        "None: yes if the calls of target and judge are free and the budget does not limit them",
    )

    @field_validator("env")
    @classmethod
    def _only_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(declared, value))

    @field_validator("upstream")
    @classmethod
    def _known_upstream(cls, value: str) -> str:
        if value and parse_name(value).scheme not in ("openai", "anthropic"):
            raise ValueError("name an openai or anthropic model; the gateway calls no other")
        return value

    @model_validator(mode="after")
    def _fits(self) -> TargetConfig:
        """Refuse options that the kind of target would ignore."""
        for _, problem in self._misfits():
            raise ValueError(problem)
        return self

    def _misfits(self) -> list[tuple[str, str]]:
        """The options that the kind of target would ignore, each with an error message."""
        if not self.model:
            return []
        scheme = parse_name(self.model).scheme
        agent, tools = scheme in AGENT_SCHEMES, bool(self.tools)
        found = [
            (key, f"target.{key} is an option of {who}; leave it out")
            for key, fits, who in (
                ("tools", not agent and scheme != "plugin", "a chat model: an agent has tools of its own"),
                ("tool_calls", not agent and scheme != "plugin", "a chat model"),
                ("max_turns", scheme != "plugin", "an agent, or of a chat model with tools"),
                ("max_usd", agent, "an agent"),
                ("upstream", scheme in ("acp", "command"), "acp: and command: targets"),
                ("gateway", scheme in ("claude-code", "codex"), "claude-code and codex"),
                ("env", agent, "an agent"),
                ("sandbox", agent or tools, "an agent, or of a chat model with target.tools"),
                (
                    "hedge",
                    not (agent or tools),
                    "a chat model without tools, because a rollout has one workspace",
                ),
                ("temperature", not agent, "a chat model; an agent sets its own"),
                ("max_tokens", not agent, "a chat model; an agent sets its own"),
            )
            if getattr(self, key) != type(self).model_fields[key].default and not fits
        ]
        if self.activation not in (None, "inline") and not agent:
            why = f'target.activation="{self.activation}" needs an agent; a chat model has the skill inline'
            found.append(("activation", why))
        if scheme in ("acp", "command") and not self.upstream:
            why = "max_turns and max_usd are held by the gateway: name the agent's model in target.upstream"
            found += [(key, why) for key in ("max_turns", "max_usd") if getattr(self, key)]
        if not self.gateway:
            why = "max_turns and max_usd are held by the gateway: leave them out, or leave gateway out"
            found += [(key, why) for key in ("max_turns", "max_usd") if getattr(self, key)]
            if (inner := parse_name(self.model).inner) and (inner.url or self.key_env):
                why = "gateway=false: the agent asks its own provider, so its model has no URL and no key_env here"
                found.append(("gateway", why))
        if self.tool_calls == "native" and scheme == "local":
            found.append(("tool_calls", "target.tool_calls=native needs an endpoint: leave it out"))
        if self.hedge and scheme == "local":
            found.append(("hedge", "a second copy of a call only slows the embedded model down: leave hedge out"))
        return found

    def like(self, other: str | Mapping[str, Any]) -> TargetConfig:
        """The section of another target: a name, or a table with options of its own.

        It takes over the options of this section that its kind has, but not those of one model or endpoint
        (`OF_ONE_MODEL`) unless it is the same model. Raises `ValueError` for a wrong name or option.
        """
        own: dict[str, Any] = {"model": other} if isinstance(other, str) else dict(other)
        if not own.get("model"):
            raise ValueError(f'a further target needs a name: {{model = "NAME", …}} (got {own!r:.80})')
        if own == {"model": self.model}:
            return self
        kept = self.model_fields_set - {"model", *(() if own["model"] == self.model else OF_ONE_MODEL)}
        given = {key: getattr(self, key) for key in kept} | own
        try:
            parse_name(str(own["model"]))
            known = {key: value for key, value in given.items() if key in TargetConfig.model_fields}
            misfits = {key for key, _ in TargetConfig.model_construct(**known)._misfits()}
            fitting = {key: value for key, value in given.items() if key in own or key not in misfits}
            return TargetConfig.model_validate(fitting)
        except ValidationError as error:
            raise ValueError(
                "; ".join(_explain(item, str(own["model"]), TargetConfig) for item in error.errors())
            ) from None


OF_ONE_MODEL = ("price", "key_env", "api", "same_as", "upstream", "env", "context")
"""Options of a target that belong to one model or endpoint: another target does not take them over."""


class OptimizerConfig(ModelConfig):
    """The model that turns scored trajectories into edits. If `model` is empty, it is the target's model."""

    model: str = Field(
        default="",
        description="a model as for the target, an agent (claude-code/NAME, codex/NAME, opencode/NAME), examples, "
        "plugin:NAME, or handoff:DIR (a relative DIR starts at the config's folder); default: the target's model, or "
        "the model behind a target that is an agent",
    )
    max_turns: int | None = Field(
        default=None, ge=1, description="agent: most requests with tools per question; then its work counts as it is"
    )
    max_usd: float | None = Field(
        default=None, gt=0, description="agent: most dollars per question; then its work counts as it is"
    )
    sandbox: str = Field(default="auto", description="agent: auto (the level that keeps most), bwrap, landlock or none")
    show_expected: bool = Field(default=True, description="show it the expected answers of train samples")
    show_rubric: bool = Field(default=False, description="show it which of a judge's checks failed on train samples")
    wait: bool = Field(default=True, description="handoff: wait for the answers; false: stop (exit 4) and resume later")
    form: Literal["auto", "edits", "rules"] = Field(
        default="auto",
        description="form of a model's proposals: edits (JSON with citations), rules (plain rules, one a line, for a "
        "small model), or auto: edits, and rules once too few edits can be used",
    )
    checks: Literal["enforce", "record"] = Field(
        default="enforce",
        description="refuse an edit whose citations are wrong or that copies a sample, or only record the fault",
    )
    patterns: bool = Field(
        default=True,
        description="remember across epochs: unfixed failure patterns, rejected edits, judged texts",
    )
    trajectory_chars: int = Field(default=6000, ge=200, description="longer trajectories are cut in the middle")

    @model_validator(mode="after")
    def _fits(self) -> OptimizerConfig:
        """Refuse options that the kind of optimizer would ignore."""
        if not self.model:
            return self
        scheme = parse_name(self.model).scheme
        agent = scheme in AGENT_SCHEMES
        if self.form == "rules" and (agent or scheme in ("handoff", "examples", "plugin")):
            raise ValueError("optimizer.form=rules is a form for chat models; leave it out")
        for key, fits, who in (
            ("max_turns", agent, "an agent"),
            ("max_usd", agent, "an agent"),
            ("sandbox", agent, "an agent"),
            ("temperature", not agent, "a chat model; an agent sets its own"),
            ("max_tokens", not agent, "a chat model; an agent sets its own"),
        ):
            if getattr(self, key) != type(self).model_fields[key].default and not fits:
                raise ValueError(f"optimizer.{key} is an option of {who}; leave it out")
        return self

    def as_agent(self) -> TargetConfig:
        """The settings of the agent that proposes, as those of an agent that does tasks."""
        shared = self.model_fields_set & TargetConfig.model_fields.keys()
        return TargetConfig(**{key: getattr(self, key) for key in shared})


class JudgeConfig(CallConfig):
    """Options of the judge's calls; `env.score = {judge = "MODEL"}` names it. Temperature 0: verdicts should repeat."""

    temperature: float | None = Field(default=0.0, ge=0, description="temperature of its verdicts")
    same_as_optimizer: bool = Field(
        default=False, description="allow the optimizer's model as judge, although it then grades its own edits"
    )


class TrainConfig(_Section):
    """The training loop."""

    epochs: int = Field(default=4, ge=0, description="passes over the train samples; 0 only scores the input")
    batch_size: int = Field(default=30, ge=1, description="train samples rolled out per step")
    minibatch_size: int = Field(default=8, ge=1, description="trajectories per reflection")
    merge: Literal["pool", "rank"] = Field(
        default="pool", description="pool: the gate measures the edits; rank: a model merges and ranks them"
    )
    merge_batch_size: int = Field(default=8, ge=2, description="patches per merge call")
    lr: int = Field(default=4, ge=1, description="most edits applied per step")
    lr_min: int = Field(default=2, ge=1, description="last value of lr under the linear and cosine schedules")
    schedule: Literal["constant", "linear", "cosine", "autonomous"] = Field(
        default="cosine", description="curve of lr down to lr_min; autonomous: the optimizer's model chooses lr"
    )
    update: Literal["patch", "rewrite"] = Field(
        default="patch", description="patch: apply the edits; rewrite: a model rewrites the whole skill by them"
    )
    confirm: bool = Field(
        default=True,
        description="once half of a batch is solved, repeat its failures and show the optimizer those that fail twice",
    )
    call_price: float = Field(
        default=0.003,
        ge=0,
        description="stop if the next step is expected to gain less than this score per 100 of its target calls; "
        "0: no price",
    )
    patience: int | None = Field(
        default=None,
        ge=0,
        description="stop after this number of steps without an accept; None: no such limit; "
        "0: never stop early, whatever the price of calls",
    )
    target_score: float | None = Field(
        default=None, ge=0, le=1, description="stop when the estimated score on select reaches this"
    )
    ablation: bool = Field(
        default=False,
        description="at the end, if a tenth of the train tasks still fails, leave out edits of the best skill that "
        "harm or carry nothing (at most 96 rollouts on train, and a race on select)",
    )
    max_skill_tokens: int | None = Field(
        default=None,
        ge=1,
        description="an edit that makes the skill longer than this is refused. "
        "None: 2,000, or a fifth more than the input if that is larger",
    )

    @model_validator(mode="after")
    def _rates(self) -> TrainConfig:
        if self.lr_min > self.lr:
            raise ValueError(f"train.lr_min ({self.lr_min}) is larger than train.lr ({self.lr})")
        return self

    @property
    def by_value(self) -> bool:
        """True if the training may end because a further step is not worth its calls."""
        return self.patience != 0 and self.call_price > 0

    def skill_limit(self, tokens: int) -> int:
        """The most tokens that the skill may have, for an input of `tokens` tokens."""
        return self.max_skill_tokens or room_for(tokens)


def room_for(tokens: int) -> int:
    """The default limit for an input of `tokens` tokens: a fifth more, and at least SKILL_TOKENS."""
    return max(SKILL_TOKENS, -(-tokens * 6 // 5))


class GateConfig(_Section):
    """The gate: the evidence that a change needs before it is accepted."""

    policy: str = Field(default="race", description="race, strict, eprocess, or the name of an installed plug-in")
    metric: Literal["score", "hard", "soft", "mixed"] = Field(
        default="score", description="the number that the gate compares: the score, its hard or soft part, or a mix"
    )
    weight: float = Field(default=0.5, ge=0, le=1, description="mixed = weight·hard + (1 − weight)·soft")
    confidence: float = Field(default=0.90, gt=0.5, lt=1, description="race: accept if P(better) reaches this")
    last_confidence: float = Field(
        default=0.88, gt=0.5, lt=1, description="race: the bar at the last interim analysis (all passes used up)"
    )
    proven_confidence: float = Field(
        default=0.55,
        gt=0.5,
        lt=1,
        description="race: the last bar while an accepted version stands: the optimizer has proved itself",
    )
    futility: float = Field(default=0.25, ge=0, lt=0.5, description="race: reject if P(better) falls below this")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="eprocess: P(any accept without a gain), per run")
    block: int = Field(default=8, ge=1, description="race, eprocess: samples before the first interim analysis")
    passes: int = Field(default=1, ge=1, description="race, eprocess: most attempts of each `select` sample")
    regression_bound: float = Field(
        default=0.02, ge=0, le=1, description="race: no accept if `select` alone makes a loss above this likely"
    )
    length_price: float = Field(default=0.01, ge=0, description="race: gain required per 1,000 additional tokens")
    pool: int = Field(
        default=12,
        ge=1,
        description="most edits screened per step; three times as many if their claims turn out to predict nothing",
    )
    screen: int = Field(default=80, ge=0, description="train rollouts of the factorial screen")
    texts: int = Field(default=20, ge=2, description="distinct subsets of the edits in the screen")
    calibrate: bool = Field(
        default=False, description="score the start skill twice, and simulate the gate with the measured noise"
    )
    also: tuple[str | dict[str, Any], ...] = Field(
        default=(),
        description="further targets that no accepted edit may harm: names, or tables with the options of [target]. "
        "A name takes over those options of [target] that its kind has, but no key and no price",
    )
    also_margin: float = Field(
        default=0.05, gt=0, lt=1, description="gate.also: loss of mean score that is tolerated on a further target"
    )

    @field_validator("also", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return names_of(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _bars(self) -> GateConfig:
        for lower, upper in (("last_confidence", "confidence"), ("proven_confidence", "last_confidence")):
            low, high = getattr(self, lower), getattr(self, upper)
            if low > high and lower in self.model_fields_set:
                raise ValueError(f"gate.{lower} ({low}) is above {upper} ({high})")
            object.__setattr__(self, lower, min(low, high))  # a default is lowered with the bar above it
        return self


class SlowConfig(_Section):
    """The epoch's slow update and the optimizer's notes, from the second epoch on."""

    enabled: bool = Field(default=True, description="propose guidance from the changes of an epoch")
    samples: int = Field(default=20, ge=1, description="train samples that compare an epoch's first and last skill")
    notes: bool = Field(default=True, description="let the optimizer write notes for its own later steps")


class BudgetConfig(_Section):
    """Hard limits of the whole run. The cost of the certificate is reserved from the start."""

    usd: float | None = Field(default=None, gt=0, description="dollars for all models; needs the price of each model")
    tokens: int | None = Field(default=None, gt=0, description="input and output tokens of all models")
    calls: int | None = Field(default=None, gt=0, description="calls to all models; a retry counts as a call")
    minutes: float | None = Field(default=None, gt=0, description="wall-clock minutes, summed over resumes")

    @property
    def limits(self) -> Limits:
        return Limits(self.usd, self.tokens, self.calls, self.minutes)


class WorkersConfig(_Section):
    """The machines that run rollouts of agents and the scorer `tests`. Models are always called from this one."""

    on: str = Field(
        default="local", description="local; ray: this machine's Ray cluster; ray://HOST:10001: a remote one"
    )
    slots: int | None = Field(default=None, ge=1, description="ray: most jobs at the same time; None: target.workers")
    cpus: float = Field(default=1.0, gt=0, description="ray: processors that are reserved for a job")
    memory: int | None = Field(default=None, ge=1, description="ray: MB of memory that are reserved for a job")
    host: str = Field(
        default="",
        description="ray: address at which workers reach this machine; empty: its address in the cluster",
    )
    tls_cert: str = Field(
        default="",
        description="ray: PEM file of a certificate for that address, so that the connection to the gateway is "
        "encrypted; empty: it is not. Agents trust it",
    )
    tls_key: str = Field(default="", description="ray: PEM file of the certificate's private key, without a password")

    @field_validator("on")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if value not in ("local", "ray") and not re.fullmatch(r"ray://[^\s/:]+:\d+", value):
            raise ValueError(f'"{value}" is no engine; use local, ray or ray://HOST:10001')
        return value

    @model_validator(mode="after")
    def _fits(self) -> WorkersConfig:
        fields = type(self).model_fields
        extra = [key for key in fields if key != "on" and getattr(self, key) != fields[key].default]
        if self.on == "local" and extra:
            raise ValueError(f'workers.{extra[0]} is an option of Ray: set workers.on="ray", or leave it out')
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("workers.tls_cert and workers.tls_key belong together: set both, or neither")
        return self


class CertifyConfig(_Section):
    """The certificate on the untouched test split."""

    attempts: int = Field(default=1, ge=1, description="attempts of each test sample")
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="one-sided error rate of the verdict 'better'")


class LogConfig(_Section):
    """Sinks that get the run's metrics in addition to metrics.jsonl."""

    sinks: tuple[str, ...] = Field(default=(), description="wandb, mlflow, or the names of installed plug-ins")
    project: str = Field(default="skilltune", min_length=1, description="name of the sink's project or experiment")

    @field_validator("sinks", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class Config(_Section):
    """Everything that defines a run."""

    preset: Literal["default", "paper"] = Field(
        default="default", description="set of defaults: skilltune's own, or those of SkillOpt as published"
    )
    skill: str = Field(
        default="SKILL.md",
        description="a folder with SKILL.md, or a .md file; if it is missing, training starts from nothing",
    )
    seed: int = Field(default=42, description="seed of the split, the sample order and every random choice")
    env: EnvConfig = EnvConfig()
    target: TargetConfig = TargetConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    judge: JudgeConfig = JudgeConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    slow: SlowConfig = SlowConfig()
    budget: BudgetConfig = BudgetConfig()
    certify: CertifyConfig = CertifyConfig()
    workers: WorkersConfig = WorkersConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _further_targets(self) -> Config:
        try:
            self.also  # noqa: B018 - raises for a wrong name or option
        except ValueError as error:
            raise ValueError(f"gate.also: {error}") from None
        return self

    @property
    def also(self) -> tuple[TargetConfig, ...]:
        """The sections of the further targets of `gate.also`."""
        return self.targets(self.gate.also, beside=(self.target.model,))

    def targets(
        self, others: Iterable[str | Mapping[str, Any]], beside: Iterable[str] = ()
    ) -> tuple[TargetConfig, ...]:
        """The sections of other targets, see `TargetConfig.like`. Raises `ValueError`, also for a target that is named
        twice or that stands in `beside`."""
        known, found = set(filter(None, beside)), list[TargetConfig]()
        for other in others:
            section = self.target.like(other)
            if section.model in known:
                raise ValueError(f"{section.model} is named twice; name each target once")
            known.add(section.model)
            found.append(section)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "env": {"split": [2, 1, 7]},
        "optimizer": {"form": "edits", "checks": "record", "patterns": False},
        "train": {"batch_size": 40, "merge": "rank", "patience": 0, "confirm": False},
        "gate": {"policy": "strict", "metric": "hard"},
    },
}


def is_configured(folder: Path) -> bool:
    """True if `load_config` can read the folder."""
    return (folder / FILE_NAME).is_file() or (folder / EVALS).is_file()


def load_config(path: Path, overrides: Iterable[str] = ()) -> tuple[Config, Path]:
    """Read a TOML file, or a skill folder with skilltune.toml or evals/evals.json, or whose samples an override names.

    A config without samples uses evals/evals.json beside it. `overrides` are "dotted.key=value" with TOML values; bare
    words are strings. Returns the config and the folder at which its relative paths start. Raises `UsageError`.
    """
    path, overrides = Path(path), list(overrides)
    root = path if path.is_dir() else path.parent
    known = {"env": {"samples": EVALS}} if (root / EVALS).is_file() else {}
    if path.is_dir() and not (path / FILE_NAME).is_file():
        named = any(override.startswith(("env.samples=", "env=")) for override in overrides)
        if not is_configured(path) and not named:
            raise UsageError(f"{path} holds neither {FILE_NAME} nor {EVALS}: name a config file, or add one")
        return make_config({"skill": ".", **known}, overrides), root
    path = path / FILE_NAME if path.is_dir() else path
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        begin = f"`skilltune init {path}` starts a skill there" if not path.suffix else "`skilltune init` writes one"
        raise UsageError(f"cannot read the config {path}: there is no such file or folder; {begin}") from error
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
    """A Config from the preset's defaults, a nested mapping and the overrides; later ones win. Raises `UsageError`."""
    given = _merge({}, tree)
    _read_budget(given)  # before and after the overrides: one may change a limit of a budget, or set a whole budget
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
    """The stored Config of the run in `folder`. Raises `RunError` if this version cannot read it."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(item, "its configuration") for item in error.errors())
        raise RunError(
            f"the run in {folder} was made by another version of skilltune and can be used only with it: {problems}"
        ) from error
    except UnicodeEncodeError as error:
        raise RunError(f"the run in {folder} has a damaged configuration: it is not valid Unicode ({error})") from error


def names_of(text: str) -> list[str]:
    """The names in a comma-separated list. A name with a comma stands in double quotes."""
    row = next(csv.reader([text], skipinitialspace=True), [])
    return [name.strip() for name in row if name.strip()]


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


EXAMPLES = {
    "env": 'samples="data.jsonl"',
    "target": 'model="openai/gpt-5.5"',
    "optimizer": 'model="openai/gpt-5.5"',
    "judge": "temperature=0.0",
    "train": "epochs=2",
    "gate": "confidence=0.9",
    "slow": "enabled=true",
    "budget": "calls=3000",
    "certify": "attempts=2",
    "workers": 'on="ray"',
    "log": 'sinks=["wandb"]',
}
"""A key of each section, for the message about a value in place of the section."""


def _explain(item: Any, source: str, top: type[BaseModel] | None = None) -> str:
    """One validation error as a message: the source, the key, the fault and a suggestion. `top` is the model that was
    validated, by default the whole configuration."""
    where = [str(part) for part in item["loc"]]
    key = ".".join(where)
    if item["type"] == "value_error":  # our own message; the value is not repeated, because it may hold a password
        place = f"{source}: {key}" if key else source
        return f"{place}: {item['msg'].removeprefix('Value error, ')}"
    if item["type"] == "model_type":  # a value in place of a whole section
        example = f"{key}.{EXAMPLES[key]}" if key in EXAMPLES else f"{key}.KEY=VALUE"
        return f"{source}: {key} is a section, not a value: set its keys, e.g. {example} (got {item['input']!r:.80})"
    if item["type"] == "tuple_type":
        return f"{source}: {key} is a list: write its values in square brackets (got {item['input']!r:.80})"
    if item["type"] != "extra_forbidden":
        return f"{source}: {key}: {item['msg']} (got {item['input']!r:.80})"
    if key in MOVED:
        command = f"skilltune {MOVED[key]} RUN"
        return f"{source}: {key} is a command now: leave the key out, and run `{command}` when the training has ended"
    section: Any = top or Config
    for part in where[:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(where[-1], section.model_fields, n=1, cutoff=0.5)
    known = f'did you mean "{near[0]}"?' if near else "known keys: " + ", ".join(section.model_fields)
    return f"{source}: unknown key {key}; {known}"


def to_toml(cfg: Config) -> str:
    """The resolved config as TOML; `load_config` reads it back to an equal Config. Unset values are left out."""
    tree = cfg.to_json()
    lines = [f"{key} = {toml_value(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict) and (values := {k: v for k, v in section.items() if v is not None}):
            lines += ["", f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A TOML value. JSON's scalars and arrays are valid TOML; objects become inline tables; null is left out."""
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items() if item is not None)
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
