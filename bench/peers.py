"""The same worlds for the peers: score, calls, anytime curve, and time on the machine of our figures.

Each peer is the released package, with its defaults, and asks a world of `tests/worlds` over HTTP: the family desk,
which is that of `tests/world.py`, or others by `--families`. Their optimizers speak other forms than ours: a world here
reads what the peer shows, lets the world's optimizer think, and answers in the peer's form. The family sets the input
skill. Every adapter uses public interfaces of its package only.

skillopt  0.2.0, the values of its configs/_base_/default.yaml, its SearchQA environment. Its wheel lacks its prompts,
          so each of them is the name of its stage here; what its prompts ask for (to leave the slow update's section
          alone, and to keep what is good in it) the world does. The order in which its threads end decides what a
          minibatch holds: runs of a seed differ.
gepa      0.1.4, `optimize` with its default adapter, 1,400 metric calls, and then start and best on the test split.
          Its adapter asks for one answer after the other unless litellm does it; here threads do.
capevolve cap-evolve-core 0.1.0, `hill_climb_loop` with its defaults (one trial, all tasks, the paired gate at one
          standard error) and as many iterations as 1,400 target calls allow. It is not on the package index:
          clone github.com/skillberry-ai/cap-evolve and `pip install ./core` in it (measured: commit d94fb336207c).
          Its proposer reads the trajectories of the select split, and never asks the target by itself.
agentdescent
          0.7.0, `evolve` with its defaults on the train and select splits (the last third is held out), ended after
          1,400 target calls. Its strategy appends rules and deletes none.
agentdescent-skillopt
          The same `evolve` with the parts of its port of SkillOpt. The edits of a round are merged before its gate.
agentdescent-skill-dir
          The same `evolve` with what its specification `skill_dir` puts together: a folder with one SKILL.md,
          proposals that are whole files, and a merge of the proposals of a round. It does not stop early.
rewrites  The baseline: 20 rewrites of the input skill, each from the failures of 40 tasks; the best on select ships.

*true test score*: the share of the test split that the best skill solves, without noise, divided by the share that the
best possible skill of the family solves. *after N*: that of the skill which the peer holds for its best after N target
calls, as it says itself (GEPA's and cap-evolve's results), writes down (SkillOpt's best_skill.md), or gives its workers
(AgentDescent). *changed*: runs whose best skill is not the input. *span* and *target calls* are of everything, the
peer's own evaluation on the test split included; *training s* and *before test* of what came before it. Times are the
server's. *accepted*: steps (SkillOpt; not its slow updates, which are never refused), candidates (GEPA, cap-evolve) or
commits (AgentDescent) that were accepted.

Run it with an interpreter that has the peer and needs nothing of ours:

    python -m venv peers && peers/bin/pip install skillopt==0.2.0 gepa==0.1.4 agentdescent==0.7.0
    peers/bin/python bench/peers.py skillopt --seeds 10 --workers 16,64 --latency 0.2
    peers/bin/python bench/peers.py skillopt --options '{"failure_only": true}'
    peers/bin/python bench/peers.py gepa --options '{"reflection_minibatch_size": 8}'
    peers/bin/python bench/peers.py gepa --families tuning --seeds 6 --vary p=0.2 --keep gepa.jsonl

With `--keep FILE` all figures are written down, and the same command goes on where it was ended. Every family runs with
the first seed, then with the next. `bench/curves.py` puts kept runs side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import multiprocessing
import re
import sys
import tempfile
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from world import HARMS, Call, Json, Prompt, Shown, digest, uniform
from worlds import FAMILIES, LOCKED, TUNING, Family, FamilyWorld, unlock
from worlds.anytime import BUDGETS

SKILLOPT = {  # the defaults of its configs, as its loader flattens them
    **{"num_epochs": 4, "train_size": 0, "batch_size": 40, "accumulation": 1},
    **{"minibatch_size": 8, "merge_batch_size": 8, "analyst_workers": 16, "max_analyst_rounds": 3},
    **{"failure_only": False, "edit_budget": 4, "min_edit_budget": 2, "lr_scheduler": "cosine"},
    **{"lr_control_mode": "fixed", "skill_update_mode": "patch", "use_slow_update": True, "slow_update_samples": 20},
    **{"longitudinal_pair_policy": "mixed", "use_meta_skill": True, "use_gate": True, "sel_env_num": 0},
    **{"test_env_num": 0, "eval_test": True, "env": "searchqa", "split_mode": "split_dir", "max_turns": 1},
}
SPLITS = {"train": "train", "select": "val", "test": "test"}


POLL_S = 0.01  # between two looks at what a peer writes
Curve = list[tuple[int, str]]  # (target calls, the skill that is the best from then on)


class PeerWorld(FamilyWorld):
    """A world whose optimizer understands a peer's requests."""

    def _dice(self, call: Call, draw: str) -> Any:
        return lambda *what: uniform(self.seed, "idea", call.digest, draw, *what)


class SkillOptWorld(PeerWorld):
    """Reads and answers as SkillOpt does."""

    def _think(self, call: Call, draw: str) -> Json | str:
        stage = call.stage = call.system.strip()
        answers = {
            "analyst_error": lambda: self._patch(call, draw),
            "analyst_success": lambda: self._patch(call, draw),
            **dict.fromkeys(("merge_failure", "merge_success", "merge_final"), lambda: self._merged(call)),
            "ranking": lambda: self._ranking(call, draw),
            "slow_update": lambda: self._guidance(call, draw),
            "meta_skill": lambda: {"reasoning": "", "meta_skill_content": "Rules for one class each help most."},
        }
        return json.dumps(answers[stage]())

    def _patch(self, call: Call, draw: str) -> Json:
        """`reflect` of the trajectories of a minibatch."""
        budget = re.search(r"at most L=(\d+)", call.user)
        parts = re.split(r"^### Trajectory \d+ \(id=([^)]*)\)$", call.user, flags=re.MULTILINE)
        shown = [
            Shown(sample, 0.0 if "\nFailure reason:" in body else 1.0, body)
            for sample, body in zip(parts[1::2], parts[2::2], strict=True)
        ]
        before = section(call.user, STEPS, "Optimizer Meta Skill|Failed|Successful") if STEPS in call.user else ""
        skill = unlocked(section(call.user, "Current Skill", "Edits? Budget"))
        prompt = Prompt(call.user, skill, int(budget[1]) if budget else None, before, shown, [], [], [])
        edits = [as_theirs(edit) for edit in self.optimizer.reflect(prompt, self._dice(call, draw))["edits"]]
        return {"batch_size": len(shown), "failure_summary": [], "patch": {"reasoning": "", "edits": edits}}

    def _merged(self, call: Call) -> Json:
        """All edits of the patches, each once: what `merge` of the world does where there is no budget."""
        patches = json.loads(call.user[call.user.index("\n[") :])
        edits = [edit for patch in patches for edit in patch["edits"]]
        unique = {(edit["op"], edit.get("target"), edit["content"]): edit for edit in reversed(edits)}
        return {"reasoning": "", "edits": list(reversed(unique.values()))}

    def _ranking(self, call: Call, draw: str) -> Json:
        pool = re.findall(r"^\[(\d+)\] op=(\w+)(.*)$", call.user, flags=re.MULTILINE)
        edits = []
        for index, op, rest in pool:
            fields = {name: literal_eval(value) for name, value in re.findall(QUOTED, rest)}
            edits.append((int(index), as_ours({"op": op, **fields})))
        skill = section(call.user, "Current Skill", "Edits? Pool")
        prompt = Prompt(call.user, skill, None, "", [], [], [], edits)
        return {"reasoning": "", "selected_indices": self.optimizer.rank(prompt, self._dice(call, draw))["order"]}

    def _guidance(self, call: Call, draw: str) -> Json:
        parts = re.split(r"^#### Task ([^:\n]*): ", call.user, flags=re.MULTILINE)
        pairs = [
            Shown(sample, float("- Curr epoch: PASS" in body), body)
            for sample, body in zip(parts[1::2], parts[2::2], strict=True)
        ]
        skill = section(call.user, "Current Epoch's Skill", "Previous Slow Update Guidance")
        before = section(call.user, "Previous Slow Update Guidance", "Longitudinal Comparison .*")
        good = [line for line in before.splitlines() if self.held(line)]
        prompt = Prompt(call.user, skill, None, "", [], pairs, [], [])
        guidance = self.optimizer.slow_update(prompt, self._dice(call, draw))["guidance"]
        return {"reasoning": "", "slow_update_content": "\n".join([*good, guidance]).strip()}


class GepaWorld(PeerWorld):
    """Reads and answers as GEPA does: a whole new text, with the edits that reflection would make."""

    def _think(self, call: Call, draw: str) -> Json | str:
        call.stage = "rewrite"
        _, skill, rest = call.user.split("\n```\n", 2)
        examples = re.split(r"^# Example \d+$", rest, flags=re.MULTILINE)[1:]
        shown = [Shown("", float("response is correct" in body), body) for body in examples]
        prompt = Prompt(call.user, skill.strip(), None, "", shown, [], [], [])
        return f"```\n{self.optimizer.rewrite(prompt, self._dice(call, draw))['skill'].strip()}\n```"


class DescentWorld(PeerWorld):
    """Reads and answers as AgentDescent does: a patch in its SkillOpt port, a whole file in `skill_dir`, or a merge."""

    def _think(self, call: Call, draw: str) -> Json | str:
        if "PROPOSAL 1\n---\n" in call.user:
            call.stage = "merge"
            return self._union(call.user)
        if '"""\n\nFailed cases:\n' in call.user:
            call.stage = "analyst"
            return json.dumps(self._patch(call, draw))
        if "TASK THE AGENT WAS GIVEN:\n" in call.user:
            call.stage = "files"
            return self._files(call, draw)
        return super()._think(call, draw)

    def _patch(self, call: Call, draw: str) -> Json:
        skill, rest = call.user.split('"""\n', 1)[1].split('\n"""\n\nFailed cases:\n', 1)
        failed, rest = rest.split("\nReturn ONLY a JSON object", 1)
        failed, _, rejected = failed.partition("\nPrevious edits this epoch")
        shown = [Shown("", 0.0, body) for body in re.split(r"^\[\d+\] Q: ", failed, flags=re.MULTILINE)[1:]]
        budget = re.search(r"AT MOST (\d+) edits", rest)
        prompt = Prompt(call.user, skill, int(budget[1]) if budget else None, rejected, shown, [], [], [])
        edits = self.optimizer.reflect(prompt, self._dice(call, draw))["edits"]
        return {"reasoning": "", "edits": [as_theirs(edit) for edit in edits]}

    def _files(self, call: Call, draw: str) -> str:
        listing, task = call.user.split("\n\nTASK THE AGENT WAS GIVEN:\n", 1)
        _, skill = listing.split("--- SKILL.md ---\n", 1)
        shown = [Shown("", 0.0, task.partition("\n\nWHAT THE AGENT PRODUCED:")[0])]  # it asks about failures only
        prompt = Prompt(call.user, skill.strip(), None, "", shown, [], [], [])
        content = self.optimizer.rewrite(prompt, self._dice(call, draw))["skill"]
        answer = {"rationale": "", "edits": [{"path": "SKILL.md", "content": content}]}
        return f"<EDITS>\n{json.dumps(answer)}\n</EDITS>"

    def _union(self, request: str) -> str:
        """The current text without the lines that a proposal deletes, and with all those that one adds."""
        current, rest = request.split("CURRENT\n---\n", 1)[1].split("\n---\n\nPROPOSAL 1\n", 1)
        bodies = re.split(r"^PROPOSAL \d+$", rest.partition("\nDo this:\n1. ")[0], flags=re.MULTILINE)
        proposals = [body.strip().removeprefix("---").removesuffix("---").strip().splitlines() for body in bodies]
        kept = [line for line in current.splitlines() if all(line in proposal for proposal in proposals)]
        added = (line for proposal in proposals for line in proposal if line not in current.splitlines())
        return "\n".join([*kept, *dict.fromkeys(added)])


STEPS = "Previous Steps in This Epoch"  # not in the first request of an epoch
QUOTED = r"""(target|content)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""


def section(text: str, title: str, following: str) -> str:
    """What stands under a heading, up to the next one of theirs: a skill may hold headings of its own. A request that
    holds no such part is not answered, which ends the run: what was misread must not look like a score."""
    found = re.search(rf"^## {title}\n(.*?)^## (?:{following})", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"no part called {title!r} in: {text}")
    return found[1].strip("\n")


def unlocked(skill: str) -> str:
    """A skill as an optimizer should see it that must leave the slow update's section alone: its rules are known, but
    there is no line of it to hang an edit on, and nothing harmful to delete."""
    before, start, rest = skill.partition("<!-- SLOW_UPDATE_START -->")
    locked, _, after = rest.partition("<!-- SLOW_UPDATE_END -->")
    rules = [line for line in locked.splitlines() if not any(harm in line for harm in HARMS)]
    return f"{before}<!-- {' '.join(rules)} -->{after}" if start else skill


def as_theirs(edit: Json) -> Json:
    if edit["op"] == "add":
        place = {"op": "insert_after", "target": edit["after"]} if edit["after"] else {"op": "append"}
        return {**place, "content": edit["text"]}
    return {"op": edit["op"], "target": edit["target"], "content": edit["text"] or ""}


def as_ours(edit: Json) -> Json:
    anchor = "after" if edit["op"] == "insert_after" else "target"
    return {"op": edit["op"], "text": edit.get("content"), anchor: edit.get("target")}


def serve(peer: str, family: Family, seed: int, latency: float, folder: Path, pipe: Connection) -> None:
    """A world in a process of its own, until the skill to be judged comes; its figures go back."""
    with PEERS[peer][0](family, seed, latency=latency) as world:
        (folder / "start.md").write_text(world.start)
        for ours, theirs in SPLITS.items():
            items = [
                {"id": ticket.id, "question": ticket.input, "context": "", "answers": [ticket.target]}
                for ticket in world.tickets.values()
                if ticket.split == ours
            ]
            (folder / "data" / theirs).mkdir(parents=True)
            (folder / "data" / theirs / "items.json").write_text(json.dumps(items))
        pipe.send(world.url)
        skill, curve = pipe.recv()
        calls = sorted(world.requests, key=lambda call: call.began)
        if broken := [call for call in calls if not call.whole]:
            raise SystemExit(f"{len(broken)} calls were not answered, the first: {broken[0]}")
        tested = [call.sample is not None and world.tickets[call.sample].split == "test" for call in calls]
        training = calls[: tested.index(True)] if True in tested else calls
        began = calls[0].began
        pipe.send(
            {
                "score": world.true_score(skill) / world.attainable,
                "changed": skill.strip() != world.start.strip(),
                **{f"after {n}": world.true_score(shipped(curve, n)) / world.attainable for n in BUDGETS},
                "span": max(call.ended for call in calls) - began,
                "before": max(call.ended for call in training) - began,
                "calls": sum(call.role == "target" for call in calls),
                "calls before": sum(call.role == "target" for call in training),
                "optimizer": sum(call.role == "optimizer" for call in calls),
            }
        )


def shipped(curve: Curve, calls: int) -> str:
    """The best skill after so many target calls."""
    return [skill for made, skill in curve if made <= calls][-1]


def one(
    peer: str, workers: int, family: Family, seed: int, latency: float, options: dict[str, Any]
) -> dict[str, float]:
    """One run of a peer; its figures. `options` change its defaults."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as d:
        arguments = peer, family, seed, latency, Path(d), there
        process = multiprocessing.Process(target=serve, args=arguments, daemon=True)
        process.start()
        url = here.recv()
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            best, accepted, curve = PEERS[peer][1](Path(d), url, workers, seed, options)
        cpu = time.process_time() - began
        start = (Path(d) / "start.md").read_text()
        here.send((best, [(0, start), *curve]))
        there.close()
        figures = here.recv()
        process.join()
    return {**figures, "cpu": cpu, "accepted": accepted}


class Watch(threading.Thread):
    """Notes each new content of a file, with the target calls that the world has counted by then."""

    def __init__(self, file: Path, url: str) -> None:
        super().__init__(daemon=True)
        self.file, self.url, self.curve = file, url, Curve()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(POLL_S):
            self.look()

    def look(self) -> None:
        text = self.file.read_text() if self.file.exists() else ""
        if text and (not self.curve or text != self.curve[-1][1]):
            with urlopen(f"{self.url}/stats") as response:
                self.curve.append((json.load(response)["calls"].get("target", 0), text))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def skillopt(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int, Curve]:
    """SkillOpt's own entry, its prompts being the names of their stages, and its clients made anew for each run. The
    best skill, the number of steps that were accepted, and the curve of the best skill."""
    prompts: Any = importlib.import_module("skillopt.prompts")
    prompts.load_prompt = lambda name, env=None: "{skill_section}" if name == "rollout_system" else name
    models: Any = importlib.import_module("skillopt.model.azure_openai")
    models._optimizer_client = models._target_client = None
    cfg = {
        **SKILLOPT,
        **{"seed": seed, "workers": workers, "split_dir": str(folder / "data"), "out_root": str(folder / "out")},
        **{"skill_init": str(folder / "start.md"), "optimizer_model": "optimizer", "target_model": "target"},
        **{"azure_openai_endpoint": url, "azure_openai_api_key": "none"},
        "azure_openai_auth_mode": "openai_compatible",
        **options,
    }
    adapter = importlib.import_module("scripts.train").get_adapter(cfg)
    with Watch(folder / "out" / "best_skill.md", url) as watch:
        importlib.import_module("skillopt.engine.trainer").ReflACTTrainer(cfg, adapter).train()
    steps = json.loads((folder / "out" / "history.json").read_text())
    best = (folder / "out" / "best_skill.md").read_text()
    return best, sum("accept" in step["action"] for step in steps), watch.curve


def ask(url: str, model: str, messages: list[dict[str, str]], key: str = "") -> str:
    body = json.dumps({"model": model, "messages": messages}).encode()
    headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
    with urlopen(Request(f"{url}/chat/completions", body, headers)) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def items(folder: Path, name: str) -> list[Json]:
    return json.loads((folder / "data" / name / "items.json").read_text())


def gepa(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int, Curve]:
    """GEPA's own entry. The best text, the number of candidates that were accepted, and the curve of the best one: a
    candidate counts from the end of its evaluation on the select split on."""
    default: Any = importlib.import_module("gepa.adapters.default_adapter.default_adapter")
    threads = ThreadPoolExecutor(workers)

    class Adapter(default.DefaultAdapter):
        def evaluate(self, batch: list[Any], candidate: dict[str, str], capture_traces: bool = False) -> Any:
            one_by_one = super().evaluate
            parts = list(threads.map(lambda item: one_by_one([item], candidate, capture_traces), batch))
            whole = parts[0]
            for part in parts[1:]:
                for name in ("outputs", "scores", "trajectories", "objective_scores"):
                    if (values := getattr(whole, name)) is not None:
                        values += getattr(part, name)
            return whole

    def split(name: str) -> list[Json]:
        return [
            {"input": i["question"], "additional_context": {}, "answer": i["answers"][0]} for i in items(folder, name)
        ]

    adapter = Adapter(model=lambda messages: ask(url, "target", messages))
    start = {"skill": (folder / "start.md").read_text()}
    result = importlib.import_module("gepa").optimize(
        seed_candidate=start,
        trainset=split("train"),
        valset=split("val"),
        adapter=adapter,
        reflection_lm=lambda prompt: ask(url, "optimizer", [{"role": "user", "content": prompt}]),
        seed=seed,
        **{"max_metric_calls": 1400, **options},
    )
    for candidate in (start, result.best_candidate):
        adapter.evaluate(split("test"), candidate)
    threads.shutdown()
    curve, best, selecting = Curve(), -1.0, len(split("val"))
    for index, score in enumerate(result.val_aggregate_scores):
        if score > best:
            best = score
            made = result.discovery_eval_counts[index] + selecting  # it counts before it evaluates
            curve.append((made, result.candidates[index]["skill"]))
    return result.best_candidate["skill"], len(result.candidates) - 1, curve


def descend(
    folder: Path,
    url: str,
    seed: int,
    run: Callable[[str, Any], str],
    read: Callable[[str], str],
    settings: dict[str, Any],
) -> tuple[str, int, Curve]:
    """AgentDescent's `evolve`. The last artifact, the number of commits, and the curve of the artifact.

    `read` makes the skill of a rendered artifact. Workers begin a round with the artifact of the round before, which is
    how the curve is read.
    """
    package: Any = importlib.import_module("agentdescent")
    parts = {name: items(folder, name) for name in ("train", "val", "test")}
    tasks = [
        package.Task(id=item["id"], prompt=item["question"], meta={"answer": item["answers"][0]})
        for item in (*parts["train"], *parts["val"])
    ]
    calls, curve, begins, one_at_a_time = [0], Curve(), [False], threading.Lock()

    def counted(rendered: str, task: Any) -> str:
        with one_at_a_time:
            if begins[0]:
                begins[0] = False
                curve.append((calls[0], read(rendered)))
            calls[0] += 1
        return run(rendered, task)

    def ended(_: Any) -> bool:
        begins[0] = True
        return calls[0] >= 1400

    with tempfile.TemporaryDirectory() as repository:
        result = package.evolve(
            tasks,
            lambda task, answer: float(answer == task.meta["answer"]),
            run=counted,
            **{
                "held_out_frac": len(parts["val"]) / len(tasks),
                "rounds": 1400,
                "seed": seed,
                "stop_when": ended,
                "repo_path": repository,
                **settings,
            },
        )
    if result.error:
        raise SystemExit(f"agentdescent: {result.error}")
    start, commits = (folder / "start.md").read_text(), sum(info.committed for info in result.history)
    best = read(result.rendered) if commits else start  # a strategy may render the input otherwise than it was written
    curve.append((calls[0], best))
    for skill in (start, best):
        for item in parts["test"]:
            ask(url, "target", [{"role": "system", "content": skill}, {"role": "user", "content": item["question"]}])
    return best, commits, curve


def answer_to(url: str, skill: str, task: Any) -> str:
    return ask(url, "target", [{"role": "system", "content": skill}, {"role": "user", "content": task.prompt}])


def completion(url: str) -> Callable[[str], str]:
    return lambda prompt: ask(url, "optimizer", [{"role": "user", "content": prompt}])


def agentdescent(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int, Curve]:
    """Its `evolve` with the default strategy: rules that are appended one by one."""
    asked = [0]

    def propose(skill: str, task: Any, answer: str, reward: float) -> str | None:
        asked[0] += 1
        shown = f'<trajectory sample="{task.id}" score="{reward:.2f}">\n{task.prompt}\n{answer}\n</trajectory>'
        prompt = f"<skill>\n{skill}\n</skill>\n<edit_budget>1</edit_budget>\n{shown}"
        said = [{"role": "system", "content": REFLECT}, {"role": "user", "content": prompt}]
        edits = answer_of(ask(url, "optimizer", said, key=f"{seed} {asked[0]}"))["edits"]
        text = edits[0]["text"] if edits else None
        return text and text.removeprefix(edits[0]["target"] or "").strip()

    start = (folder / "start.md").read_text()
    lines = [line.removeprefix("- ") for line in start.splitlines() if line.startswith("- ")]
    state = {f"rule {number:03d}": line for number, line in enumerate(lines)} or None
    settings = {"propose": propose, "initial_state": state, **options}
    return descend(folder, url, seed, lambda skill, task: answer_to(url, skill, task), str, settings)


def agentdescent_skillopt(
    folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]
) -> tuple[str, int, Curve]:
    """Its port of SkillOpt. The edits of a round are merged to one candidate by the model."""
    port: Any = importlib.import_module("agentdescent.algorithms.skillopt")
    fusion: Any = importlib.import_module("agentdescent.fusion")
    start = (folder / "start.md").read_text()
    scheduler = port.LRScheduler(total_steps=20)  # about as many rounds as 1,400 calls are
    context = port.SkillOptContext(scheduler=scheduler, budget=scheduler.max_lr)
    complete = completion(url)

    def gate(ledger: Any, verifier: Any, *_: Any) -> Any:
        return port.StrictGateAggregator(ledger, verifier, context, merge_round=fusion.ReflectiveFusion(complete))

    settings = {
        "strategy": port.SkillDocStrategy(context, seed=start),
        "initial_state": {"skill": start},
        "artifact_id": "skill_document",
        "aggregator_factory": gate,
        "propose": port.make_propose(context, complete),
        **options,
    }
    return descend(folder, url, seed, lambda skill, task: answer_to(url, skill, task), str, settings)


class Reader:
    """An agent of AgentDescent. It reads the SKILL.md of its workspace before it answers."""

    def __init__(self, url: str, workspace: Path | None = None) -> None:
        self.url, self.workspace = url, workspace

    def in_workspace(self, path: str) -> Reader:
        return Reader(self.url, Path(path))

    def __call__(self, prompt: str) -> str:
        found = sorted(self.workspace.rglob("SKILL.md")) if self.workspace else []
        skill = "\n".join(file.read_text() for file in found)
        return ask(self.url, "target", [{"role": "system", "content": skill}, {"role": "user", "content": prompt}])


def agentdescent_skill_dir(
    folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]
) -> tuple[str, int, Curve]:
    """A directory with one SKILL.md, with the parts and settings that its specification `skill_dir` puts together."""
    package: Any = importlib.import_module("agentdescent")
    trees: Any = importlib.import_module("agentdescent.treestrategy")
    governance: Any = importlib.import_module("agentdescent.governance")
    policies: Any = importlib.import_module("agentdescent.policies")
    runners: Any = importlib.import_module("agentdescent.runners")
    strategy = trees.FileTree({"SKILL.md": (folder / "start.md").read_text()})
    complete = completion(url)

    def read(rendered: str) -> str:
        return importlib.import_module("agentdescent.filetree").parse_tree(rendered)["SKILL.md"]

    settings = {
        "strategy": strategy,
        "propose": trees.tree_reflector(complete, strategy=strategy),
        "policies": policies.Policies(**package.reflective_merge(complete)),
        "agg_config": package.AggregatorConfig(batch_trigger=2, max_wait_rounds=1),
        "blast_radius": governance.SKILL_BLAST_RADIUS,
        **{"self_verify": False, "cheap_eval_tasks": 4, "max_concurrency": 4},
        **options,
    }
    return descend(folder, url, seed, runners.tree_runner(Reader(url)), read, settings)


def capevolve(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int, Curve]:
    """The best candidate of `hill_climb_loop`, the number of accepted ones, and the curve of the best one.

    The proposer is a callable that edits a working folder. It reads the trajectories that the loop puts there: those of
    the parent on the select split. No text is forbidden after a rejection, because the loop's journal says to propose
    again what broke nothing in a rejected batch.
    """
    package: Any = importlib.import_module("cap_evolve")
    harness: Any = importlib.import_module("cap_evolve.harness")
    harness.DEFAULT_WORKERS = workers  # as its own script sets it
    parts = {name: items(folder, name) for name in ("train", "val", "test")}
    seed_folder = folder / "seed"
    seed_folder.mkdir()
    (seed_folder / "SKILL.md").write_text((folder / "start.md").read_text())

    class Adapter(package.CapabilityAdapter):
        def tasks(self, split: str) -> list[Any]:
            chosen = [i for name in parts if split in ("all", name) for i in parts[name]]
            return [package.Task(id=i["id"], input=i["question"], target=i["answers"][0]) for i in chosen]

        def run_target(self, task: Any, ctx: Path, *, seed: int = 0) -> Any:
            skill = (Path(ctx) / "SKILL.md").read_text()
            said = [{"role": "system", "content": skill}, {"role": "user", "content": task.input}]
            return package.Rollout(task_id=task.id, output=ask(url, "target", said))

        def score(self, task: Any, rollout: Any) -> Any:
            right = rollout.output == task.target
            return package.Score(
                task_id=task.id,
                reward=float(right),
                trial_rewards=[float(right)],
                feedback="right" if right else "wrong code",
            )

    asked = [0]

    def propose(workdir: Path, instructions: str) -> None:
        rollouts = [json.loads(file.read_text()) for file in sorted((workdir / "trajectories").glob("*.json"))]
        shown = "\n".join(
            f'<trajectory sample="{r["rollout"]["task_id"]}" score="{r["score"]["reward"]:.2f}">\n'
            f"{r['input']}\n{r['rollout']['output']}\n</trajectory>"
            for r in rollouts
        )
        skill = workdir / "SKILL.md"
        prompt = f"<skill>\n{skill.read_text()}\n</skill>\n{shown}"
        said = [{"role": "system", "content": REWRITE}, {"role": "user", "content": prompt}]
        asked[0] += 1
        skill.write_text(answer_of(ask(url, "optimizer", said, key=f"{seed} {asked[0]}"))["skill"])

    steps = (1400 - len(parts["val"])) // len(parts["val"])
    run = package.RunDir.create(folder / "runs", budget=package.Budget(max_iterations=steps))
    adapter, ids = Adapter(), {name: [item["id"] for item in part] for name, part in parts.items()}
    harness.ensure_splits(adapter, run, seed=seed, split_ids=ids)
    first = harness.baseline(adapter, seed_folder, run_dir=run)
    result = harness.hill_climb_loop(
        adapter,
        run_dir=run,
        optimizer=propose,
        current_val=first,
        **{"max_iterations": steps, "algorithm": "hill-climb:all", **options},
    )
    if failed := [step["optimizer_error"] for step in result["steps"] if step["optimizer_error"]]:
        raise SystemExit(f"cap-evolve: the proposer failed: {failed[0]}")
    curve = [
        ((number + 2) * len(parts["val"]), (run.candidate_dir(step["candidate_id"]) / "SKILL.md").read_text())
        for number, step in enumerate(result["steps"])
        if step["accepted"]
    ]
    best = run.candidate_dir(run.best_id)
    harness.finalize(adapter, run_dir=run, best_dir=best, baseline_dir=run.candidate_dir("seed"))
    return (best / "SKILL.md").read_text(), result["accepts"], curve


def answer_of(text: str) -> Json:
    """The JSON object in an answer."""
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def rewrites(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int, Curve]:
    """The best of `number` rewrites of the input skill, by its score on the select split."""
    start = (folder / "start.md").read_text()
    number, calls, best, curve = options.get("number", 20), 0, (-1.0, start), Curve()

    def solved(skill: str, item: Json) -> bool:
        messages = [{"role": "system", "content": skill}] if skill.strip() else []
        answer = ask(url, "target", [*messages, {"role": "user", "content": item["question"]}])
        return answer == item["answers"][0]

    with ThreadPoolExecutor(workers) as threads:
        train = items(folder, "train")[:40]
        right = threads.map(lambda item: solved(start, item), train)
        failed = [item for item, solves in zip(train, right, strict=True) if not solves]
        select = items(folder, "val")
        for index in range(number + 1):
            skill = start
            if index:
                body = "\n".join(
                    f'<trajectory sample="{i["id"]}" score="0.00">\n{i["question"]}\n</trajectory>' for i in failed
                )
                prompt = f"<skill>\n{start}\n</skill>\n<edit_budget>12</edit_budget>\n{body}"
                asked = [{"role": "system", "content": REWRITE}, {"role": "user", "content": prompt}]
                skill = answer_of(ask(url, "optimizer", asked, key=f"{seed} {index}"))["skill"]
            score = fmean(threads.map(lambda item, skill=skill: solved(skill, item), select))
            calls = len(train) + (index + 1) * len(select)
            if score > best[0]:
                best = (score, skill)
                curve.append((calls, skill))
        for skill in (start, best[1]):
            list(threads.map(lambda item, skill=skill: solved(skill, item), items(folder, "test")))
    return best[1], len(curve) - 1, curve


REWRITE = 'Write the whole skill anew, so that these tasks are solved. Answer as {"skill": "…", "summary": "…"}.'
REFLECT = 'Say what would have solved this task. Answer as {"diagnosis": […], "edits": […]}.'
Peer = Callable[[Path, str, int, int, dict[str, Any]], tuple[str, int, Curve]]
PEERS: dict[str, tuple[type[PeerWorld], Peer]] = {
    "skillopt": (SkillOptWorld, skillopt),
    "gepa": (GepaWorld, gepa),
    "capevolve": (PeerWorld, capevolve),
    "agentdescent": (PeerWorld, agentdescent),
    "agentdescent-skillopt": (DescentWorld, agentdescent_skillopt),
    "agentdescent-skill-dir": (DescentWorld, agentdescent_skill_dir),
    "rewrites": (PeerWorld, rewrites),
}
HEADERS = (
    *("peer", "family", "workers", "true test score", "sd", "worst", "target calls"),
    *("before test", "optimizer calls", "accepted", "changed", *(f"after {calls:,}" for calls in BUDGETS)),
    *("span s", "training s", "client CPU s"),
)


def measured(options: argparse.Namespace) -> Iterator[tuple[Family, int, dict[str, float]]]:
    """The figures of every run: all families with the first seed, then with the next. Those kept are not made again."""
    file: Path | None = options.keep
    known = kept(file) if file is not None and file.exists() else {}
    families = chosen(options)
    for seed in range(options.first, options.first + options.seeds):
        for family, workers in ((f, int(w)) for f in families for w in options.workers.split(",")):
            settings = options.options, workers, options.latency, asdict(family), source(options.peer)
            run = {"peer": options.peer, "family": family.name, "seed": seed, "settings": digest(settings)}
            key = tuple(run.values())
            if key not in known:
                known[key] = one(options.peer, workers, family, seed, options.latency, options.options)
                print(f"{family.name}, {workers} workers, seed {seed}: {known[key]}", file=sys.stderr, flush=True)
                if file is not None:
                    with file.open("a") as lines:
                        lines.write(json.dumps({**run, "figures": known[key]}) + "\n")
            yield family, workers, known[key]


def kept(file: Path) -> dict[tuple[Any, ...], dict[str, float]]:
    """Figures of earlier runs by peer, family, seed and a digest of the settings."""
    known = {}
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a killed process may leave half a line
            *key, figures = json.loads(line).values()
            known[tuple(key)] = figures
    return known


def source(peer: str) -> str:
    """The code that decides the outcome of a run, but that of the peer's package."""
    parts = (*PEERS[peer], *((descend,) if "agentdescent" in peer else ()), PeerWorld, serve, shipped, one)
    tests = Path(__file__).parents[1] / "tests"
    worlds = (tests / "world.py", *sorted((tests / "worlds").glob("*.py")))
    return "".join((*map(inspect.getsource, parts), *(path.read_text() for path in worlds)))


def rows(options: argparse.Namespace) -> Iterator[str]:
    cells: dict[tuple[Family, int], list[dict[str, float]]] = {}
    for family, workers, figures in measured(options):
        cells.setdefault((family, workers), []).append(figures)
    for (family, workers), runs in cells.items():
        m = {name: fmean(run[name] for run in runs) for name in runs[0]}
        scores = [run["score"] for run in runs]
        row = (
            *(options.peer, family.name, str(workers), f"{m['score']:.3f}"),
            *(f"{pstdev(scores):.3f}", f"{min(scores):.3f}", f"{m['calls']:.0f}"),
            *(f"{m['calls before']:.0f}", f"{m['optimizer']:.0f}", f"{m['accepted']:.1f}"),
            f"{sum(run['changed'] for run in runs)} of {len(runs)}",
            *(f"{m[f'after {calls}']:.3f}" for calls in BUDGETS),
            *(f"{m['span']:.1f}", f"{m['before']:.1f}", f"{m['cpu']:.1f}"),
        )
        yield f"| {' | '.join(row)} |"


def chosen(options: argparse.Namespace) -> list[Family]:
    """The families by name; "tuning" and "locked" are the halves. Partial scores are left out: a peer here reads an
    answer as right or wrong."""
    groups = {"tuning": [*TUNING], "locked": [*LOCKED]}
    every = [name for part in options.families.split(",") for name in groups.get(part, [part])]
    names = [name for name in every if not FAMILIES[name].partial]
    if left_out := sorted(set(every) - set(names)):
        print(f"left out, because their scores are partial: {', '.join(left_out)}", file=sys.stderr)
    unlock(names, options.why, Path(__file__).with_name("worlds.md"))
    pairs = [text.partition("=") for text in options.vary]
    return [replace(FAMILIES[name], **{key: json.loads(value) for key, _, value in pairs}) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", default="16")
    parser.add_argument("--families", default="desk", help="names, or tuning, or locked (needs --why)")
    parser.add_argument("--why", default="", help="the reason for a look at locked families")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=JSON", help="a family parameter: q=0")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of each call")
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the peer, as JSON")
    parser.add_argument("--keep", type=Path, help="a file of known figures (JSON lines); new ones are added")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|")
    for row in rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
