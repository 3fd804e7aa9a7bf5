"""`skilltune eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from skilltune.cli.boundary import boundary, folder_of, interrupts, say
from skilltune.cli.options import (
    AsJson,
    Data,
    Here,
    Overrides,
    Tasks,
    app,
    config_and_overrides,
    json_stream,
    with_tasks,
    write_json,
)
from skilltune.cli.train import RESUME

if TYPE_CHECKING:
    from skilltune.api import Evaluation
    from skilltune.finish.transfer import Transfers
    from skilltune.parts import Parts
    from skilltune.usage import Usage


class SplitChoice(StrEnum):
    train = "train"
    select = "select"
    test = "test"
    all = "all"


class Side(StrEnum):
    with_ = "with"
    without = "without"


@app.command("eval")
def evaluate(
    config: Here = None,
    overrides: Overrides = None,
    skill: Annotated[
        Path | None, typer.Option("--skill", metavar="PATH", help="The skill to score. [default: the config's]")
    ] = None,
    split: Annotated[SplitChoice, typer.Option("--split", help="The samples to score it on.")] = SplitChoice.test,
    only: Annotated[
        Side | None, typer.Option("--only", help="Score only with, or only without the skill. [default: both]")
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Attempts per sample.")] = 1,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="A,B,…",
            help="Compare these targets instead of the config's, each with and without the skill. A name with a comma "
            "stands in double quotes.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Keep the answers in this folder; answers of a training are reused."),
    ] = None,
    tasks: Tasks = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Score the target with and without a skill.

    Shows both mean scores with 95 % intervals, the paired difference and the cost of a task. The cost of a judge stands
    on its own line. With --run naming the folder of a training, answers that it holds are not paid again. The optimizer
    is never called, so its settings may differ from those of the training. With --skill, no config is needed: the
    samples are then named by env.samples, and relative paths start at the current folder.

    --targets prints one table: for each target the scores, the gain by the certificate's test, the share of rollouts in
    which an agent loaded the skill, and the cost of a task. A target that fails is a row with its reason; the command
    then ends with exit code 3 (infrastructure) or 4 (budget), and repeating it with the same --run pays only for the
    rest.

    \b
    Examples:
      skilltune eval skilltune.toml
      skilltune eval skilltune.toml --skill runs/desk/best_skill.md --run runs/desk
      skilltune eval skilltune.toml --split all --only without target.model=openai/gpt-5.5
      skilltune eval skills/desk --targets openai/gpt-5.5,codex/gpt-5.5 --run runs/transfer
      skilltune eval --skill desk/SKILL.md --targets openai/gpt-5.5 env.samples=data.jsonl
    """
    from skilltune.api import run_evaluation, run_transfer, transfer_config
    from skilltune.build import build_parts, load_skill
    from skilltune.config import MAY_DIFFER, OptimizerConfig, is_configured, load_config, make_config, names_of
    from skilltune.errors import UsageError
    from skilltune.journal.run import FAILED, Run, scratch_run
    from skilltune.skill import Skill
    from skilltune.usage import Usage, minus

    opened: list[Parts] = []
    out = json_stream(as_json)

    def judged(journal: Run) -> Usage:
        """The usage that the run has paid for the judge's verdicts."""
        failed = [usage for _, value, usage in journal.memos(FAILED) if value["role"] == "judge"]
        return sum(failed, journal.usage.get("judge", Usage()))

    async def compare() -> Transfers:
        may_differ = (*MAY_DIFFER, "optimizer.", "target.", "gate.")
        with Run.open(run, cfg.to_json(), may_differ=may_differ) if run else scratch_run(None) as journal:
            settings, sections = transfer_config(cfg, names_of(targets or ""))
            path = skill or root / cfg.skill
            if not path.exists():
                raise UsageError(f"the skill {path} does not exist; name another one with --skill")
            chosen = load_skill(cfg, root, path)
            session = build_parts(settings, journal, root, skill=chosen, others=sections)
            opened.append(session)
            try:
                return await run_transfer(
                    session, sections, chosen, None if split.value == "all" else split.value, attempts
                )
            finally:
                await session.aclose()

    async def score() -> tuple[dict[str, Evaluation], Usage | None]:
        may_differ = (*MAY_DIFFER, "optimizer.")  # never called here; the run keeps its own
        with Run.open(run, cfg.to_json(), may_differ=may_differ) if run else scratch_run(None) as journal:
            kept = journal.recall("config")
            with journal.reading():
                own = OptimizerConfig(**kept[0]["optimizer"]) if kept else cfg.optimizer
            before = judged(journal)
            session = build_parts(cfg.model_copy(update={"optimizer": own}), journal, root, others=())
            opened.append(session)
            path = skill or root / cfg.skill
            if not path.exists() and (only is None or only.value == "with"):
                raise UsageError(
                    f"the skill {path} does not exist; name another one with --skill, e.g. a run's best_skill.md"
                )
            chosen = load_skill(cfg, root, path)
            try:
                sides = {
                    side: await run_evaluation(session, text, None if split.value == "all" else split.value, attempts)
                    for side, text in (("without", Skill("")), ("with", chosen))
                    if only is None or only.value == side
                }
                return sides, minus(judged(journal), before) if session.judge else None
            finally:
                await session.aclose()

    with boundary(
        lambda: bool(opened and opened[0].run.spent),
        message=RESUME if run else "interrupted",
        folder=lambda: folder_of(opened) if run else None,
    ):
        if skill is not None and not skill.exists():
            raise UsageError(f"there is no skill at {skill}")
        if targets is not None and only is not None:
            raise UsageError("--only shows one side, but --targets compares both: leave one of the two out")
        named, given = config_and_overrides(config, overrides)
        given = with_tasks(given, tasks, data)
        if skill is not None and named.is_dir() and not is_configured(named):
            cfg, root = make_config({"skill": str(skill)}, given), named
        else:
            cfg, root = load_config(named, given)
        if targets is not None:
            _print_transfers(interrupts.run(compare()), run, out, opened[0].env.remarks if opened else [])
            return
        sides, verdicts = interrupts.run(score())
        _print_evaluation(sides, opened[0], verdicts, split.value, out)


def _print_transfers(found: Transfers, run: Path | None, out: TextIO | None, remarks: list[str]) -> None:
    """Print the table of targets and facts about the tasks, and end with its exit code."""
    from skilltune.report.terminal import stdout
    from skilltune.report.transfer import transfer_table

    if out:
        facts = {"remarks": remarks} if remarks else {}
        write_json(found.to_json() | facts | {"exit_code": found.exit_code}, out)
    else:
        stdout().print(transfer_table(found), soft_wrap=True)
        for remark in remarks:
            stdout().print(f"note: {remark}", markup=False, soft_wrap=True)
    if found.exit_code:
        kept = f"answers are kept in {run}; the same command" if run else "with --run DIR, answers are kept, and it"
        say(f"not every target could be measured: {kept} pays only for the rest", err=True)
        raise typer.Exit(found.exit_code)


def _print_evaluation(
    sides: dict[str, Evaluation], session: Parts, verdicts: Usage | None, split: str, out: TextIO | None
) -> None:
    """Print the scores of both sides. `verdicts` is the judge's usage in this command; None without a judge."""
    from dataclasses import asdict

    from skilltune.report.terminal import columns, per_task, stdout
    from skilltune.usage import describe_usage

    paired = _paired(session, sides["without"].scores, sides["with"].scores) if len(sides) == 2 else None
    if out:
        data = {name: asdict(side) | {"scores": dict(side.scores)} for name, side in sides.items()}
        judge = {} if verdicts is None else {"judge": asdict(verdicts)}
        facts = {"remarks": session.env.remarks} if session.env.remarks else {}
        write_json({"split": split, **data, **judge, "difference": paired, **facts}, out)
        return
    rows = [(f"{name} the skill", str(side), per_task(side.usage)) for name, side in sides.items()]
    widest = max(len(row[1]) for row in rows)
    console = stdout()
    console.print(columns((f"split {split}", "score".ljust(widest), "per task"), rows))
    for side in sides.values():
        if side.activation:
            console.print(f"the skill was {side.activation}")
    if verdicts is not None:
        console.print(f"the judge took {describe_usage(verdicts)}, not included in the cost of a task")
    if paired is not None:
        console.print(
            f"difference: {100 * paired['gain']:+.1f} points (95 % CI {100 * paired['low']:+.1f}…"
            f"{100 * paired['high']:+.1f}) on {paired['n']} samples scored on both sides, "
            f"fixed {paired['fixed']}, broke {paired['broken']}"
        )
    for remark in session.env.remarks:
        console.print(f"note: {remark}", markup=False, soft_wrap=True)


def _paired(session: Parts, before: Any, after: Any) -> dict[str, Any] | None:
    """The paired difference on samples scored on both sides, with its 95 % interval; None without such samples."""
    from skilltune.finish.certify import by_group
    from skilltune.stats import difference_interval

    pairs = [(before[sample], after[sample]) for sample in before if sample in after]
    if not pairs:
        return None
    differences = [b - a for a, b in pairs]
    fixed, broken = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    samples = (*session.splits.train, *session.splits.select, *session.splits.test)
    old, new = (by_group(samples, {id: of[id] for id in before if id in after}) for of in (before, after))
    low, high = difference_interval(old, new)
    gain = sum(differences) / len(differences)
    return {"gain": gain, "low": low, "high": high, "n": len(pairs), "fixed": fixed, "broken": broken}
