"""The same world for the peers, SkillOpt and GEPA: score, calls, and time on the machine that ours is taken on.

Each is the released package, with its defaults, and asks the world of `tests/world.py` over HTTP. Their optimizers
speak other forms than ours: a world here reads what the peer shows, lets the world's optimizer think, and answers in
the peer's form. The skill starts empty, as in `bench/learning.py` and `bench/span.py`.

skillopt  0.2.0, the values of its configs/_base_/default.yaml, its SearchQA environment. Its wheel lacks its prompts,
          so each of them is the name of its stage here; what its prompts ask for (to leave the slow update's section
          alone, and to keep what is good in it) the world does. The order in which its threads end decides what a
          minibatch holds: runs of a seed differ.
gepa      0.1.4, `optimize` with its default adapter, 1,400 metric calls, and then start and best on the test split.
          Its adapter asks for one answer after the other unless litellm does it; here threads do.

*true test score*: the share of the test split that the best skill solves, without noise. *span* and *target calls* are
of everything, the peer's own evaluation on the test split included; *training s* and *before test* of what came before
it. Times are the server's. *accepted*: steps (SkillOpt; not its slow updates, which are never refused) or candidates
(GEPA) that were accepted.

Run it with an interpreter that has the peer and needs nothing of ours:

    python -m venv peers && peers/bin/pip install skillopt==0.2.0 gepa==0.1.4
    peers/bin/python bench/peers.py skillopt --seeds 10 --workers 16,64 --latency 0.2
    peers/bin/python bench/peers.py skillopt --options '{"failure_only": true}'
    peers/bin/python bench/peers.py gepa --options '{"reflection_minibatch_size": 8}'
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import re
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from world import HARMS, Call, Json, Prompt, Shown, World, uniform

SKILLOPT = {  # the defaults of its configs, as its loader flattens them
    **{"num_epochs": 4, "train_size": 0, "batch_size": 40, "accumulation": 1},
    **{"minibatch_size": 8, "merge_batch_size": 8, "analyst_workers": 16, "max_analyst_rounds": 3},
    **{"failure_only": False, "edit_budget": 4, "min_edit_budget": 2, "lr_scheduler": "cosine"},
    **{"lr_control_mode": "fixed", "skill_update_mode": "patch", "use_slow_update": True, "slow_update_samples": 20},
    **{"longitudinal_pair_policy": "mixed", "use_meta_skill": True, "use_gate": True, "sel_env_num": 0},
    **{"test_env_num": 0, "eval_test": True, "env": "searchqa", "split_mode": "split_dir", "max_turns": 1},
}
SPLITS = {"train": "train", "select": "val", "test": "test"}


class PeerWorld(World):
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


def serve(peer: str, options: dict[str, Any], folder: Path, pipe: Connection) -> None:
    """A world in a process of its own, until the skill to be judged comes; its figures go back."""
    with PEERS[peer][0](12, 120, 60, 120, **options) as world:
        for ours, theirs in SPLITS.items():
            items = [
                {"id": ticket.id, "question": ticket.input, "context": "", "answers": [ticket.target]}
                for ticket in world.tickets.values()
                if ticket.split == ours
            ]
            (folder / "data" / theirs).mkdir(parents=True)
            (folder / "data" / theirs / "items.json").write_text(json.dumps(items))
        pipe.send(world.url)
        skill = pipe.recv()
        calls = sorted(world.requests, key=lambda call: call.began)
        if broken := [call for call in calls if not call.whole]:
            raise SystemExit(f"{len(broken)} calls were not answered, the first: {broken[0]}")
        tested = [call.sample is not None and world.tickets[call.sample].split == "test" for call in calls]
        training = calls[: tested.index(True)] if True in tested else calls
        began = calls[0].began
        pipe.send(
            {
                "score": world.true_score(skill),
                "span": max(call.ended for call in calls) - began,
                "before": max(call.ended for call in training) - began,
                "calls": sum(call.role == "target" for call in calls),
                "calls before": sum(call.role == "target" for call in training),
                "optimizer": sum(call.role == "optimizer" for call in calls),
            }
        )


def one(peer: str, workers: int, seed: int, world: dict[str, Any], options: dict[str, Any]) -> dict[str, float]:
    """One run of a peer; its figures. `options` change its defaults."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as d:
        arguments = peer, {**world, "seed": seed}, Path(d), there
        process = multiprocessing.Process(target=serve, args=arguments, daemon=True)
        process.start()
        url = here.recv()
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            best, accepted = PEERS[peer][1](Path(d), url, workers, seed, options)
        cpu = time.process_time() - began
        here.send(best)
        there.close()
        figures = here.recv()
        process.join()
    return {**figures, "cpu": cpu, "accepted": accepted}


def skillopt(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int]:
    """SkillOpt's own entry, its prompts being the names of their stages, and its clients made anew for each run. The
    best skill, and how many steps were accepted."""
    prompts: Any = importlib.import_module("skillopt.prompts")
    prompts.load_prompt = lambda name, env=None: "{skill_section}" if name == "rollout_system" else name
    models: Any = importlib.import_module("skillopt.model.azure_openai")
    models._optimizer_client = models._target_client = None
    cfg = {
        **SKILLOPT,
        **{"seed": seed, "workers": workers, "split_dir": str(folder / "data"), "out_root": str(folder / "out")},
        **{"skill_init": str(folder / "none.md"), "optimizer_model": "optimizer", "target_model": "target"},
        **{"azure_openai_endpoint": url, "azure_openai_api_key": "none"},
        "azure_openai_auth_mode": "openai_compatible",
        **options,
    }
    adapter = importlib.import_module("scripts.train").get_adapter(cfg)
    importlib.import_module("skillopt.engine.trainer").ReflACTTrainer(cfg, adapter).train()
    steps = json.loads((folder / "out" / "history.json").read_text())
    return (folder / "out" / "best_skill.md").read_text(), sum("accept" in step["action"] for step in steps)


def gepa(folder: Path, url: str, workers: int, seed: int, options: dict[str, Any]) -> tuple[str, int]:
    """GEPA's own entry. The best text, and how many candidates were accepted."""
    default: Any = importlib.import_module("gepa.adapters.default_adapter.default_adapter")
    threads = ThreadPoolExecutor(workers)

    def ask(model: str, messages: list[dict[str, str]]) -> str:
        body = json.dumps({"model": model, "messages": messages}).encode()
        request = Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
        with urlopen(request) as response:
            return json.load(response)["choices"][0]["message"]["content"]

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
        items = json.loads((folder / "data" / name / "items.json").read_text())
        return [{"input": i["question"], "additional_context": {}, "answer": i["answers"][0]} for i in items]

    adapter = Adapter(model=lambda messages: ask("target", messages))
    start = {"skill": ""}
    result = importlib.import_module("gepa").optimize(
        seed_candidate=start,
        trainset=split("train"),
        valset=split("val"),
        adapter=adapter,
        reflection_lm=lambda prompt: ask("optimizer", [{"role": "user", "content": prompt}]),
        seed=seed,
        **{"max_metric_calls": 1400, **options},
    )
    for candidate in (start, result.best_candidate):
        adapter.evaluate(split("test"), candidate)
    threads.shutdown()
    return result.best_candidate["skill"], len(result.candidates) - 1


PEERS: dict[str, tuple[type[PeerWorld], Callable[[Path, str, int, int, dict[str, Any]], tuple[str, int]]]] = {
    "skillopt": (SkillOptWorld, skillopt),
    "gepa": (GepaWorld, gepa),
}
HEADERS = (
    *("peer", "optimizer", "p", "workers", "true test score", "sd", "worst", "target calls"),
    *("before test", "optimizer calls", "accepted", "in runs", "span s", "training s", "client CPU s"),
)


def rows(options: argparse.Namespace) -> Iterator[str]:
    world = {"p": options.p, "q": options.q, "optimizer_mode": options.mode, "latency": options.latency}
    for workers in map(int, options.workers.split(",")):
        runs = []
        for seed in range(options.first, options.first + options.seeds):
            runs.append(one(options.peer, workers, seed, world, options.options))
            print(f"{workers} workers, seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
        m = {name: fmean(run[name] for run in runs) for name in runs[0]}
        scores = [run["score"] for run in runs]
        cells = (
            *(options.peer, options.mode, f"{options.p:g}", str(workers), f"{m['score']:.3f}"),
            *(f"{pstdev(scores):.3f}", f"{min(scores):.3f}", f"{m['calls']:.0f}"),
            *(f"{m['calls before']:.0f}", f"{m['optimizer']:.0f}", f"{m['accepted']:.1f}"),
            f"{sum(run['accepted'] > 0 for run in runs)} of {len(runs)}",
            *(f"{m['span']:.1f}", f"{m['before']:.1f}", f"{m['cpu']:.1f}"),
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", default="16")
    parser.add_argument("--p", type=float, default=0.1, help="odds that the target's answer flips")
    parser.add_argument("--q", type=float, default=0.6, help="odds that an edit is right")
    parser.add_argument("--mode", choices=["normal", "useless", "harmful"], default="normal", help="of the optimizer")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of each call")
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the peer, as JSON")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|")
    for row in rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
