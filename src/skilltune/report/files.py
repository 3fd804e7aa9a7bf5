"""The derived files of a run: everything here can be deleted and is written again by the same command."""

from __future__ import annotations

import difflib
import json
from typing import Any

from skilltune.finish.records import Finish
from skilltune.journal.run import Run
from skilltune.parts import Parts
from skilltune.report.card import card
from skilltune.report.html import report
from skilltune.result import Result
from skilltune.skill import Skill


def write_results(session: Parts, result: Result) -> None:
    """The best skill, versions/*/diff.md, rollouts.jsonl and card.md; the run's last event; report.html, which is made
    from the journal with it. (metrics.jsonl is written as the run goes: `skilltune.sinks`.)"""
    run = session.run
    save_best(run, result.best)
    for number, (before, after) in enumerate(zip(result.versions, result.versions[1:], strict=False), start=1):
        run.write(f"versions/{number:04d}/diff.md", f"```diff\n{text_diff(before.text, after.text)}```\n")
    run.write("rollouts.jsonl", (_line(value) for _, value, _ in run.each_memo("rollout")))
    run.write("card.md", card(session, result))
    end = Finish(
        name=result.best.name,
        start=result.start.hash,
        best=result.best.hash,
        exit_code=result.exit_code,
        certificate=result.certificate,
        stopped=str(result.stopped) if result.stopped else "",
        larger=result.stopped.larger if result.stopped else "",
        versions=tuple(version.hash for version in result.versions),
    )
    run.record("finish", **end.to_json())
    run.write("report.html", report(run))


def save_best(run: Run, best: Skill) -> None:
    if best.folder:
        best.save(run.place / "best" / best.name)
    else:
        run.write("best_skill.md", best.text.encode("utf-8", "surrogatepass"))


def text_diff(before: str, after: str, names: tuple[str, str] = ("before", "after")) -> str:
    """A unified diff of two texts, line by line; "" if they are equal."""
    rows = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="", n=3)
    return "".join(f"{row}\n" for row in rows)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
