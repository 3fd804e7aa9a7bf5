"""What faults on the wire do to a run of real size: no failed call may count as a wrong answer.

K = 12, 120/60/120 samples, world latency 50 ms, 16 workers; the world and the run are processes of their own, retries
are those of real life. One row per fault: exit code (of each life: a run that stopped is started again), failed calls
that the server saw, how many of them were scored as an answer, how many were shown to the optimizer, the true test
score beside that of the undisturbed run, seconds. Run: python bench/faults.py --preset default
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from skilltune.rollout import rollout_from_json
from skilltune.run import Run
from world import Faults, World

KEY = "the-right-key"
RATES = ("error", "limit", "drop", "truncate", "malformed", "no_choices", "empty", "hang")
LIVES = 3  # a run that stopped by infrastructure is started so many times at most
HANG = {"hang_s": 5.0}
TIMEOUT_S = 2.0
COLUMNS = "fault | exit | failed calls | counted as wrong | shown to the optimizer | true score | undisturbed | seconds"


def serve(options: dict[str, Any]) -> None:
    """Be the world until a line arrives on stdin; then print what the records say. One JSON line each."""
    faults = options["faults"]
    if "outage" in faults:
        faults["outage"] = tuple(faults["outage"])
    with World(12, 120, 60, 120, q=0.6, seed=options["seed"], latency=0.05, faults=Faults(**faults), key=KEY) as world:
        world.write(options["samples"])
        print(json.dumps({"url": world.url}), flush=True)
        sys.stdin.readline()
        given = sorted({f"{sample} {answer}" for sample, answer in world.given().values()})
        answers: dict[str, set[str]] = {}
        for sample, answer in world.given().values():
            answers.setdefault(str(sample), set()).add(f"Final answer: {answer}")
        shown = sum(not any(a in text for a in answers.get(sample, ())) for sample, text in world.shown())
        failed = sum(not seen.whole for seen in world.requests)
        best = Path(options["best"])
        true = world.true_score(best.read_text() if best.exists() else "")
        print(json.dumps({"given": given, "shown": shown, "failed": failed, "true": true}), flush=True)


@contextmanager
def world(folder: Path, faults: dict[str, Any], seed: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    options = {"faults": faults, "seed": seed, "samples": str(folder / "data.jsonl")}
    options["best"] = str(folder / "run" / "best_skill.md")
    command = [sys.executable, __file__, "--world", json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield json.loads(process.stdout.readline())["url"], process
    finally:
        process.kill()
        process.wait()


def train(folder: Path, url: str, preset: str, seed: int, **models: str) -> tuple[int, str]:
    """One life of the run: its exit code and what it said on stderr."""
    tables = "".join(
        f'[{role}]\nmodel = "{models.get(role, f"openai@{url}/{role}")}"\ntimeout_s = {TIMEOUT_S}\nworkers = 16\n'
        for role in ("target", "optimizer")
    )
    head = f'preset = "{preset}"\nseed = {seed}\n[env]\nsamples = "data.jsonl"\n'
    (folder / "desk.toml").write_text(head + tables)
    (folder / "SKILL.md").write_text("# Desk\n\nAnswer the ticket.\n")
    command = [sys.executable, "-m", "skilltune.cli", "train", "desk.toml", "--run", "run"]
    environment = {**os.environ, "OPENAI_API_KEY": models.get("key", KEY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def row(name: str, faults: dict[str, Any], preset: str, seed: int, undisturbed: float | None) -> tuple[str, float]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with world(folder, faults, seed) as (url, process):
            began, codes = time.monotonic(), []
            while len(codes) < LIVES and (not codes or codes[-1] == 3):
                codes.append(train(folder, url, preset, seed)[0])
            seconds = time.monotonic() - began
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            seen = json.loads(process.stdout.readline())
        run = Run.read(folder / "run")
        rollouts = [rollout_from_json(value) for _, value, _ in run.memos("rollout")]
        run.close()
    given = set(seen["given"])
    wrong = sum(rollout.scored and f"{rollout.sample} {rollout.answer}" not in given for rollout in rollouts)
    known = "" if undisturbed is None else f"{undisturbed:.3f}"
    cells = [name, " → ".join(map(str, codes)), seen["failed"], wrong, seen["shown"], f"{seen['true']:.3f}", known]
    return f"| {' | '.join(map(str, cells))} | {seconds:.0f} |", seen["true"]


def hopeless(preset: str) -> Iterator[str]:
    """Seconds until a run ends that can never succeed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"openai@http://127.0.0.1:{listener.getsockname()[1]}/v1"
    for role in ("target", "optimizer"):
        for name, models in (
            ("dead endpoint", {role: f"{dead}/{role}"}),
            ("wrong key", {"key": "not-this-one-at-all"}),
            ("unknown model", {role: "{url}/no-such-model"}),
        ):
            if name == "wrong key" and role == "optimizer":
                continue  # one server, one key: it was both roles'
            with tempfile.TemporaryDirectory() as place, world(Path(place), {}, 0) as (url, _):
                began = time.monotonic()
                told = {part: text.replace("{url}", f"openai@{url}") for part, text in models.items()}
                code, said = train(Path(place), url, preset, 0, **told)
                seconds = time.monotonic() - began
            yield f"| {name} ({role}) | {code} | {seconds:.1f} | {said.splitlines()[0][:110]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["default", "paper"], default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join((*RATES, "outage")), help="which, separated by commas")
    parser.add_argument("--rates", default="0.05,0.3")
    parser.add_argument("--world", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.world:
        serve(options.world)
        return
    print(f"preset {options.preset}, K = 12, 120/60/120, 50 ms, 16 workers, seed {options.seed}\n\n| {COLUMNS} |")
    print("|" + " --- |" * (COLUMNS.count("|") + 1))
    line, undisturbed = row("none", {}, options.preset, options.seed, None)
    print(line, flush=True)
    for fault in filter(None, options.faults.split(",")):
        if fault == "outage":
            print(row("60 s outage", {"outage": (8.0, 68.0)}, options.preset, options.seed, undisturbed)[0], flush=True)
            continue
        for rate in map(float, options.rates.split(",")):
            name = f"{fault} {100 * rate:.0f} %"
            print(row(name, {fault: rate, **HANG}, options.preset, options.seed, undisturbed)[0], flush=True)
    print("\n| hopeless | exit | seconds | it says |\n| --- | --- | --- | --- |")
    for line in hopeless(options.preset):
        print(line, flush=True)


if __name__ == "__main__":
    main()
