"""An optimizer as a program: a question on stdin, its answer on stdout, with the mind of `world.Optimizer`.

`python tests/answering.py FOLDER [--bad]`: FOLDER remembers what was asked. With --bad the first answer to each
question is no JSON, and the second one cites what stands nowhere.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from world import Desk, Optimizer, Prompt, digest, uniform

DESK = Desk(4, 32, 16, 24)  # as in `training.small`
OPTIMIZER = Optimizer(DESK, q=0.5, harmful=0.5, sloppy=0.0, misquote=0.0)
STAGES = {
    "diagnosis": "reflect",
    "guidance": "slow_update",
    "notes": "notes",
    "order": "rank",
    "reason": "learning_rate",
    "summary": "rewrite",
    "edits": "merge",
}


def answer(question: str) -> Any:
    """The answer of an optimizer that knows nothing but the question."""
    head, _, request = question.partition("## The request")
    request = re.sub(r"\n## Answer \d+ could not be used\n.*", "", request, flags=re.DOTALL)
    fields = json.loads(re.findall(r"```json\n(.*?)\n```", head, re.DOTALL)[0])["properties"]
    stage = next(stage for field, stage in STAGES.items() if field in fields)
    return OPTIMIZER.stages[stage](Prompt.read(request), lambda *what: uniform(digest(request), *what))


def main() -> None:
    question, folder = sys.stdin.read(), Path(sys.argv[1])
    refused = question.count("could not be used")
    with (folder / "asked.jsonl").open("a") as log:
        log.write(json.dumps({"cwd": str(Path.cwd()), "refused": refused, "question": question}) + "\n")
    if "--bad" in sys.argv and not refused:
        print("I would rather talk about something else.")
        return
    said = answer(question)
    if "--bad" in sys.argv and refused == 1 and "edits" in said:
        said["edits"] = [{**edit, "evidence": [{"sample": "t-0000", "quote": "of thin air"}]} for edit in said["edits"]]
    print(f"Here you are:\n\n```json\n{json.dumps(said, indent=1)}\n```\nGood luck.")


if __name__ == "__main__":
    main()
