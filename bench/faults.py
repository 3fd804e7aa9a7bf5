"""What faults on the wire do to a run of real size: no failed call may count as a wrong answer.

K = 12, 120/60/120 samples, world latency 50 ms, 16 workers; the world and the run are processes of their own, retries
are those of real life. One row per fault: exit code (of each life: a run that stopped is started again), failed calls
that the server saw, how many of them were scored as an answer, how many were shown to the optimizer, the true test
score, whether versions and certificate are those of the undisturbed run, seconds. Then what can never succeed, and how
soon it ends. Two rows at a time; about ten minutes in all. Run: python bench/faults.py
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from skilltune.journal.run import Run
from skilltune.rollout import rollout_from_json
from world import Faults, World

KEY = "the-right-key"
KINDS = {
    "5xx": ("error",),
    "429": ("limit",),  # with Retry-After
    "dropped": ("drop",),
    "broken body": ("truncate", "malformed", "no_choices", "empty"),  # a quarter each
    "hanging": ("hang",),
}
LIVES = 3  # a run that stopped by infrastructure is started so many times at most
HANG = {"hang_s": 5.0}
TIMEOUT_S = 1.0  # of a call, twenty times what one takes
OUTAGE = {"outage": (6.0, 66.0)}
COLUMNS = (
    "fault | preset | exit | failed calls | counted as wrong | shown to the optimizer | true score | same end | seconds"
)


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
        'key_env = "OPENAI_API_KEY"\n'
        for role in ("target", "optimizer")
    )
    head = f'preset = "{preset}"\nseed = {seed}\n[env]\nsamples = "data.jsonl"\n'
    (folder / "desk.toml").write_text(head + tables)
    (folder / "SKILL.md").write_text("# Desk\n\nAnswer the ticket.\n")
    command = [sys.executable, "-m", "skilltune.cli.main", "train", "desk.toml", "--run", "run"]
    environment = {**os.environ, "OPENAI_API_KEY": models.get("key", KEY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def row(name: str, faults: dict[str, Any], preset: str, seed: int) -> tuple[list[object], float, dict[str, Any]]:
    """The cells of a row but the last two, the seconds, and what the run ended with."""
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
        end = next((data for _, _, data in run.events("finish")), {})
        run.close()
    given = set(seen["given"])
    wrong = sum(rollout.scored and f"{rollout.sample} {rollout.answer}" not in given for rollout in rollouts)
    lives = " → ".join(map(str, codes))
    return [name, preset, lives, seen["failed"], wrong, seen["shown"], f"{seen['true']:.3f}"], seconds, end


def table(presets: list[str], kinds: list[str], rates: list[float], outage: bool, seed: int, jobs: int) -> None:
    faults: dict[str, dict[str, Any]] = {"none": {}}
    for kind in kinds:
        for rate in rates:
            parts = KINDS[kind]
            faults[f"{kind} {100 * rate:.0f} %"] = dict.fromkeys(parts, rate / len(parts)) | HANG
    if outage:
        faults["60 s outage"] = OUTAGE
    cases = [(name, preset) for name in faults for preset in presets]
    undisturbed: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        rows = pool.map(lambda case: row(case[0], faults[case[0]], case[1], seed), cases)
        for (_, preset), (cells, seconds, end) in zip(cases, rows, strict=True):
            expected = undisturbed.setdefault(preset, end)
            same = all(end.get(key) == expected[key] for key in ("versions", "best", "certificate"))
            print(f"| {' | '.join(map(str, cells))} | {'yes' if same else 'NO'} | {seconds:.0f} |", flush=True)


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
            ("wrong URL", {role: f"{{root}}/nowhere/v1/{role}"}),
        ):
            if name == "wrong key" and role == "optimizer":
                continue  # one server, one key: it was both roles'
            with tempfile.TemporaryDirectory() as place, world(Path(place), {}, 0) as (url, _):
                began = time.monotonic()
                places = {"{url}": f"openai@{url}", "{root}": f"openai@{url.removesuffix('/v1')}"}
                told = {part: filled(text, places) for part, text in models.items()}
                code, said = train(Path(place), url, preset, 0, **told)
                seconds = time.monotonic() - began
            yield f"| {name} ({role}) | {code} | {seconds:.1f} | {said.splitlines()[0][:110]} |"


def filled(text: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="default,paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default=",".join((*KINDS, "outage", "hopeless")), help="which, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--rates", default="0.05,0.3")
    parser.add_argument("--world", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.world:
        serve(options.world)
        return
    wanted, presets = options.faults.split(","), options.presets.split(",")
    if unknown := set(wanted) - {*KINDS, "outage", "hopeless"}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    print(f"K = 12, 120/60/120, 50 ms, 16 workers, seed {options.seed}\n\n| {COLUMNS} |")
    print("|" + " --- |" * (COLUMNS.count("|") + 1))
    kinds, rates = [kind for kind in KINDS if kind in wanted], [float(rate) for rate in options.rates.split(",")]
    table(presets, kinds, rates, "outage" in wanted, options.seed, options.jobs)
    if "hopeless" in wanted:
        print("\n| hopeless | exit | seconds | it says |\n| --- | --- | --- | --- |")
        for line in hopeless(presets[0]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
