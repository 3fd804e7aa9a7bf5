"""`skilltune controls`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skilltune.cli.boundary import boundary, interrupts
from skilltune.cli.options import AsJson, Overrides, RunFolder, app, json_stream
from skilltune.cli.train import RESUME

if TYPE_CHECKING:
    from skilltune.finish.controls import Controls
    from skilltune.finish.reserve import Planned


@app.command()
def controls(run: RunFolder, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Compare the trained skill of a finished run with cheaper ways to a skill.

    The control arms are: no skill, the input, one rewrite by the optimizer, the best of as many rewrites as the
    training would have paid for, and the trained skill with its words shuffled. All are scored on the same test samples
    as the certificate. They decide nothing: no version and no certificate changes. The table also goes to card.md and
    to `skilltune show`.

    The command first prints the most that it may cost, which is about the cost of the training. The same command again
    resumes and pays nothing twice. The limits of [budget] hold for the whole run, its training included; KEY=VALUE
    raises one, e.g. budget.usd=10.

    \b
    Examples:
      skilltune controls runs/invoice-totals
      skilltune controls runs/invoice-totals budget.calls=5000 --json

    \b
    Exit codes:
      0  measured
      2  usage error, such as a run without a certificate; nothing spent
      3  stopped by a provider or the network (resumable)
      4  stopped by the budget or an interrupt (resumable)
      70  a bug in skilltune: the traceback is in the run folder (resumable)
    """
    from skilltune.api import finished_run, run_controls
    from skilltune.report.terminal import Events, Lines, describe_planned, print_controls, stdout

    out = json_stream(as_json)
    view = Events(out) if out else Lines(stdout())
    begun: list[Planned] = []

    def ready(plan: Planned) -> None:
        begun.append(plan)
        if out:
            calls = {"target": plan.target, "optimizer": plan.optimizer}
            view("plan", {"run": str(run), "most_calls": calls, "tokens": plan.cost.tokens, "usd": plan.cost.usd})
        else:
            stdout().print(f"cost      {describe_planned(plan)}\n")

    async def work() -> Controls:
        async with finished_run(run, overrides=overrides or (), listeners=[view]) as (session, result):
            return await run_controls(session, result, ready)

    with boundary(lambda: bool(begun), view.failed, RESUME, folder=lambda: run if begun else None):
        found = interrupts.run(work())
        if not out:
            print_controls(found.to_json(), stdout())
