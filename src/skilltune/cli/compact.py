"""`skilltune compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from skilltune.cli.boundary import boundary, interrupts
from skilltune.cli.options import AsJson, Overrides, RunFolder, app, json_stream
from skilltune.cli.train import RESUME

if TYPE_CHECKING:
    from skilltune.finish.reserve import Planned
    from skilltune.result import Result


@app.command()
def compact(run: RunFolder, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Remove the edits that harm or add nothing from the best skill of a finished run.

    The edits that are not known to help are left out in random sets, on train samples. Those that harm or add nothing
    go all at once, if P(the loss is smaller than a point) reaches the confidence of the gate on the select samples. The
    shorter skill becomes a version of the run with its own certificate. For it the test split is read a second time, so
    its p must be half as large as usual. If only the longer skill is certified, that one still ships. Lines of the
    input are never removed.

    The command first prints the most that it may cost. The same command again resumes and pays nothing twice. The
    limits of [budget] hold for the whole run, its training included; KEY=VALUE raises one, e.g. budget.usd=10.

    \b
    Examples:
      skilltune compact runs/invoice-totals
      skilltune compact runs/invoice-totals budget.calls=5000

    \b
    Exit codes:
      0  the skill that ships now is certified or, without a test split, accepted
      1  the run found nothing better than its input, so there is nothing to remove
      5  undecided: the skill that ships now is not certified
      2  usage error, such as a run that has not finished; nothing spent
      3  stopped by a provider or the network (resumable)
      4  stopped by the budget or an interrupt (resumable)
      70  a bug in skilltune: the traceback is in the run folder (resumable)
    """
    from skilltune.api import finished_run, run_compaction
    from skilltune.report.terminal import Events, Lines, changed_lines, describe_planned, print_proof, stdout

    out = json_stream(as_json)
    view = Events(out) if out else Lines(stdout())
    longer: list[Result] = []
    planned: list[Planned] = []

    def ready(plan: Planned) -> None:
        planned.append(plan)
        if out:
            calls = {"most_calls": plan.target, "further": dict(plan.further)}
            view("plan", {"run": str(run), **calls, "tokens": plan.cost.tokens, "usd": plan.cost.usd})
        elif plan.target:
            stdout().print(f"cost      {describe_planned(plan)}")
            stdout().print("test      if an edit is removed, the test split is read once more for the shorter skill\n")
        else:
            stdout().print("cost      nothing, because no edit is in doubt")

    async def work() -> Result:
        async with finished_run(run, overrides=overrides or (), listeners=[view]) as (session, result):
            longer.append(result)
            return await run_compaction(session, result, ready)

    with boundary(lambda: bool(longer), view.failed, RESUME, folder=lambda: run if longer else None):
        shorter = interrupts.run(work())
        if not out:
            console, before = stdout(), longer[0].best
            console.print()
            if not planned:
                console.print("the run is compacted already; nothing was spent")
            elif shorter.best.text == before.text:
                console.print("the skill is unchanged")
            else:
                console.print(f"the skill: {before.tokens:,} → {shorter.best.tokens:,} tokens")
                console.print(changed_lines(before.text, shorter.best.text, f"skilltune diff {run}"))
            print_proof(shorter, console)
    raise typer.Exit(shorter.exit_code)
