"""Loads and evaluates Inspect tasks, in a process of its own; `python -m skilltune.envs.inspect.worker FOLDER`.

Inspect keeps global state and allows one evaluation at a time in a process. So skilltune's own process never imports
it. A request is one line of JSON on stdin, and its answer is one line of JSON on stdout. The worker ends at the end of
stdin, also in the middle of an evaluation. `FOLDER` is a temporary folder for Inspect's logs.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import glob
import hashlib
import importlib.util
import inspect
import json
import math
import os
import queue
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skilltune.envs.docker import no_docker

Json = dict[str, Any]
SKILL = "skilltune-skill"  # id of the message that holds the skill
SERVICE = "openai-api/skilltune"  # Inspect's name for the gateway, followed by the model
WORK = ("model", "tool", "sandbox")  # events of Inspect's that show that a solver does not hang


class Unusable(Exception):
    """The task cannot be a training environment. The text says why, and what to change."""


# -- loading


def load_task(file: str, name: str) -> Any:
    """The task that a file defines, made anew. `name` may be "" if the file defines one only. Raises `Unusable`."""
    from inspect_ai import Task, list_tasks

    path = Path(file)
    if not path.is_file():
        raise Unusable(f"there is no file {file}")
    os.chdir(path.parent)  # as Inspect does, so that a task finds its data
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = _module(path)
    known = [info.name for info in list_tasks(glob.escape(path.name), root_dir=path.parent)]
    if not name:
        if len(known) != 1:
            raise Unusable(f"name one of its tasks, FILE.py@TASK; {_known(known)}")
        name = known[0]
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Unusable(f'it has no task "{name}"; {_known(known)}')
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise Unusable(f"{name}{inspect.signature(factory)}: {error}; give its arguments defaults") from None
    made: Any = factory()
    if not isinstance(made, Task):
        raise Unusable(f"{name}() returns a {type(made).__name__} and no Task")
    return made


_modules: dict[Path, Any] = {}


def _module(path: Path) -> Any:
    if path not in _modules:
        spec = importlib.util.spec_from_file_location("skilltune_tasks", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        _modules[path] = module
    return _modules[path]


def _known(names: Sequence[str]) -> str:
    return f"its tasks are: {', '.join(names)}" if names else "it defines no @task"


def samples_of(task: Any) -> dict[str, Any]:
    """The task's samples by their ids as text. A sample without an id is numbered, as Inspect does."""
    if getattr(task, "sample_source", None) is not None:
        raise Unusable("its samples are made while it runs, so they cannot be split: use a data set")
    found: dict[str, Any] = {}
    for number, sample in enumerate(task.dataset, 1):
        id = str(number if sample.id is None else sample.id)
        if id in found:
            raise Unusable(f'two of its samples have the id "{id}"')
        found[id] = sample
    return found


def scorers_of(task: Any) -> list[Json]:
    """The task's scorers in their order: name as in Inspect's log, and the keys of a score with several values."""
    from inspect_ai.util import registry_info

    found: list[Json] = []
    for scorer in task.scorer or ():
        info = registry_info(scorer)
        base = name = info.name.rpartition("/")[2]
        taken, count = [known["name"] for known in found], 0
        while name in taken:
            count += 1
            name = f"{base}{count}"
        metrics = info.metadata.get("metrics")
        groups = [metrics] if isinstance(metrics, Mapping) else [m for m in metrics or () if isinstance(m, Mapping)]
        found.append({"name": name, "keys": [str(key) for group in groups for key in group if "*" not in str(key)]})
    return found


def refuse(task: Any, samples: Mapping[str, Any]) -> None:
    """Raise `Unusable` for a task whose evaluations cannot be rollouts."""
    if not samples:
        raise Unusable("it has no samples")
    if not task.scorer:
        raise Unusable("it has no scorer, so nothing says which answers are right: give the Task a scorer")
    if (task.epochs or 1) != 1:
        raise Unusable(
            f"it has epochs={task.epochs}, but one rollout is one evaluation: set epochs=1; target.attempts and "
            "certify.attempts repeat samples"
        )
    if task.model is not None or task.model_roles:
        raise Unusable(
            "it names models of its own (model or model_roles), whose calls could not be metered: take them out; "
            "target.model is the model that is evaluated, and the one that get_model() returns"
        )
    kinds = {spec.type for spec in (task.sandbox, *(sample.sandbox for sample in samples.values())) if spec}
    if "local" in kinds:
        raise Unusable(
            'its sandbox "local" runs what the model writes on this machine, where it could read the expected answers: '
            'use sandbox="docker"'
        )
    if "docker" in kinds and (why := no_docker()):
        raise Unusable(f'its sandbox "docker" needs Docker, and {why}')


def digest(sample: Any) -> str:
    """Hash of everything in a sample that decides its evaluation, without random ids of messages."""
    asked = sample.input if isinstance(sample.input, str) else [m.model_dump(exclude={"id"}) for m in sample.input]
    parts = [asked, sample.choices, sample.target, sample.metadata, sample.files, sample.setup]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def load(request: Json) -> Json:
    """Describe a task: its samples, its scorers, and what its code depends on."""
    import inspect_ai

    task = load_task(request["file"], request["task"])
    samples = samples_of(task)
    refuse(task, samples)
    folder = Path(request["file"]).parent
    files = {str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())}
    own = sorted(path for path in map(Path, files) if path.is_relative_to(folder) and "site-packages" not in path.parts)
    return {
        "samples": [_described(id, sample) for id, sample in samples.items()],
        "scorers": scorers_of(task),
        "code": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in own},
        "version": inspect_ai.__version__,
    }


def _described(id: str, sample: Any) -> Json:
    asked = sample.input
    if not isinstance(asked, str):
        asked = [{"role": message.role, "content": message.text} for message in asked]
    metadata = json.loads(json.dumps(sample.metadata or {}, default=str))
    if sample.choices:
        metadata["choices"] = list(sample.choices)
    return {"id": id, "input": asked, "target": sample.target, "metadata": metadata, "digest": digest(sample)}


# -- evaluating


def evaluate(request: Json) -> Json:
    """Evaluate one sample with a skill, by a task that is made anew.

    The answer holds either `unusable`, or `error`, `scores`, `answer`, `messages`, `limit` (with
    `limit_s`, its size, in seconds for a limit of time, and `limit_name`, the option that sets it), `idle` (see
    `_idle`), `stop` and `others` (models that were called past the gateway).
    """
    from inspect_ai import eval
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.solver import chain

    task = load_task(request["file"], request["task"])
    sample = samples_of(task).get(request["id"])
    if sample is None or digest(sample) != request["digest"]:
        raise Unusable(
            f'its sample "{request["id"]}" is another one each time the task is made: give every sample an id, and '
            "every shuffle a seed"
        )
    sample.id = request["id"]
    task.dataset = MemoryDataset([sample])
    if request["skill"].strip():
        steps = list(task.solver) if isinstance(task.solver, Sequence) else [task.solver]
        task.solver = chain([part for step in steps for part in (with_skill(request["skill"]), step)])
    name = f"{SERVICE}/{request['model']}"
    model = get_model(
        name, base_url=request["url"], api_key=request["token"], memoize=False, config=GenerateConfig(max_retries=0)
    )
    options: Json = {
        "display": "none",
        "log_dir": request["logs"],
        "log_format": "json",
        "log_realtime": False,
        "fail_on_error": False,
        "retry_on_error": 0,
        "score_on_error": False,
        "epochs": 1,
        "ctl_server": False,
        "acp_server": False,
        "time_limit": min(task.time_limit or math.inf, request["time_limit"]),
        **{key: request[key] for key in ("temperature", "max_tokens") if request[key] is not None},
    }
    known = inspect.signature(eval).parameters
    generation = {"temperature", "max_tokens"}
    log = eval(task, model=model, **{k: v for k, v in options.items() if k in known or k in generation})[0]
    shutil.rmtree(request["logs"], ignore_errors=True)
    if not log.samples:
        return {"error": log.error.message if log.error else f"the evaluation ended as {log.status}"}
    done = log.samples[0]
    limit, size = (done.limit.type, done.limit.limit) if done.limit else ("", 0.0)
    ours = limit == "time" and size == request["time_limit"]
    return {
        "error": done.error.message if done.error else "",
        "scores": {name: _score(score) for name, score in (done.scores or {}).items()},
        "answer": done.output.completion,
        "messages": [_message(message) for message in done.messages if message.id != SKILL],
        "limit": limit,
        "limit_s": size,
        "limit_name": "target.timeout_s" if ours else f"the task's own {limit}_limit",
        "idle": _idle(done.events) if done.limit else 0.0,
        "stop": done.output.stop_reason if done.output.choices else "",
        "others": sorted(set(done.model_usage) - {name}),
    }


def _idle(events: Sequence[Any]) -> float:
    """The seconds before a limit in which a sample's own code neither asked a model nor used a tool or a sandbox."""
    ended = next((event.timestamp for event in events if event.event == "sample_limit"), None)
    if ended is None:
        return 0.0
    work = [event for event in events if event.event in WORK and event.timestamp <= ended]
    last = max((event.completed or ended for event in work), default=events[0].timestamp)
    return max(0.0, (ended - last).total_seconds())


def with_skill(skill: str) -> Any:
    """A solver that keeps the skill at the start of the first system message.

    It stands before every step, because a step may add a system message of its own, and some endpoints accept only one.
    """
    from inspect_ai.model import ChatMessageSystem
    from inspect_ai.solver import solver

    @solver(name="skilltune_skill")
    def place() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            own = [m.metadata["own"] for m in state.messages if m.id == SKILL]
            rest = [m for m in state.messages if m.id != SKILL]
            while rest and rest[0].role == "system":
                own.append(rest.pop(0).text)
            merged = "\n\n".join(filter(None, own))
            text = f"{skill.rstrip()}\n\n{merged}" if merged else skill
            state.messages = [ChatMessageSystem(id=SKILL, content=text, metadata={"own": merged}), *rest]
            return state

        return solve

    return place()


def _score(score: Any) -> Json:
    return {"value": _finite(score.value), "answer": score.answer, "explanation": score.explanation}


def _finite(value: Any) -> Any:
    """The value with None for NaN, Inspect's mark of a sample that was not scored."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _message(message: Any) -> Json:
    content = message.content if isinstance(message.content, list) else []
    return {
        "role": message.role,
        "text": message.text,
        "thinking": "\n\n".join(part.reasoning for part in content if part.type == "reasoning"),
        "calls": [[call.function, call.arguments] for call in getattr(message, "tool_calls", None) or ()],
        "error": getattr(getattr(message, "error", None), "message", ""),
    }


# -- the process


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Inspect and the task print is no answer
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            answer = load(request) if request["do"] == "load" else evaluate(request)
        except Unusable as error:
            answer = {"unusable": str(error)}
        except BaseException as error:  # a task is a user's code, which may raise anything
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


def _read(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
