"""The cost of many samples before the first call: CPU seconds and peak memory of `check` and of the start of `train`.

One row per command and kind of sample: a line of JSONL with about 80 words, or a line and a text file of 9 kB. `train`
ends at its first call, because its target's port is closed. Run: python bench/scale.py --n 10000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """skill = "SKILL.md"
[env]
samples = "data.jsonl"
score = "number"
[target]
model = "openai@http://127.0.0.1:9/v1/none"
max_wait_s = 1
[optimizer]
model = "examples"
"""
WORDS = ("invoice", "total", "box", "number", "amount", "due", "date", "paid", "customer", "order")


def write(folder: Path, n: int, files: bool) -> None:
    rng = random.Random(1)
    (folder / "docs").mkdir()
    (folder / "SKILL.md").write_text("Answer with the number.\n")
    (folder / "skilltune.toml").write_text(CONFIG)
    with (folder / "data.jsonl").open("w") as lines:
        for i in range(n):
            text = f"Invoice {i}: {' '.join(rng.choices(WORDS, k=80))}. What is the total of item {i}?"
            row = {"id": f"s{i}", "input": text, "target": str(i)}
            if files:
                (folder / "docs" / f"{i}.txt").write_text(text * 20)
                row |= {"input": f"What is the total of item {i}?", "files": {"invoice.txt": f"docs/{i}.txt"}}
            lines.write(json.dumps(row) + "\n")


def measure(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of one command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    options = parser.parse_args()
    print("| command | samples | CPU s | peak MB |")
    print("| --- | --- | --- | --- |")
    for name in ("check", "train"):
        for kind, n in (("lines", 100), ("lines", options.n), ("files", options.n)):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "tasks"
                folder.mkdir()
                write(folder, n, kind == "files")
                run = ["--run", str(Path(place) / "run")] if name == "train" else []
                cpu, memory = measure([sys.executable, "-m", "skilltune", name, str(folder / "skilltune.toml"), *run])
                print(f"| `{name}` | {n:,} {kind} | {cpu:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
