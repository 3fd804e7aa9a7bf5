"""One line for each event that a reader follows: the same words in the terminal, a log and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from skilltune.config import GateConfig
from skilltune.gate.priors import VETO
from skilltune.history.left_out import describe, summed
from skilltune.history.usable import NAMES, Share
from skilltune.usage import counted
from skilltune.verdict import GIVEN_UP, RaceFigures, VerdictRecord, percent

Tone = Literal["", "quiet", "good", "warning"]


@dataclass(frozen=True, slots=True)
class Line:
    """The text of an event, and its tone."""

    text: str
    tone: Tone = ""


INSTEAD = {  # what an optimizer's stage goes on with where no answer could be read
    "merge": "; the patches are joined as they are, equal edits once",
    "rank": "; the edits with the most samples behind them come first",
    "learning_rate": "; the last number of edits stays",
    "slow_update": "; no guidance is proposed",
    "notes": "; the notes stay as they were",
    "rewrite": "; it goes on without that rewrite",
}


def describe_event(type: str, data: Mapping[str, Any], steps: int, slow: bool = False) -> Line | None:
    """The one line that an event is worth, or None. `slow`: the verdict is of the epoch's slow update."""
    match type:
        case "start":
            return Line(f"start · the input scores {percent(data['score'])} on {data['select']} select tasks")
        case "verdict":
            return _verdict(data, steps, slow)
        case "refused":
            more = f" (and {len(data['edits']) - 1} more)" if len(data["edits"]) > 1 else ""
            return Line(f"step {data['step']} · proposed edit refused: {short(data['edits'][0])}{more}", "quiet")
        case "proposals" if data["usable"] < data["made"]:
            share = Share(data["made"], data["usable"])
            return Line(f"step {data['step']} · proposals usable: {share}, {NAMES[data['form']]}", "quiet")
        case "form":
            asked = f"the optimizer is asked for {NAMES[data['form']]} from now on"
            return Line(f"step {data['step']} · {asked}: {data['reason']}", "warning")
        case "fallback":
            instead = INSTEAD.get(data["stage"], "")
            return Line(f"step {data['step']} · {data['stage']}: {short(data['reason'])}{instead}", "warning")
        case "learned":
            return Line(f"{data['model']}: {data['what']}", "warning")
        case "left out" if data["samples"]:
            return Line(f"left out of '{data['purpose']}': {describe(summed(data['samples']))}", "warning")
        case "dropped":
            return Line(f"the sample {data['sample']} is dropped: no new answer is asked for it")
        case "waiting":
            until = f", until {data['until']}," if "until" in data else ""
            why = short(data["why"])
            return Line(f"waiting {data['seconds']:g} s{until} for the {data['purpose']}: {why}", "warning")
        case "handoff" if data["refused"]:
            return Line(f"the answer to {data['name']} cannot be used: {short(data['refused'])}", "warning")
        case "handoff":
            return Line(f"waiting for an answer to {data['name']}: skilltune answer {data['folder']}", "warning")
        case "forked":
            return Line(
                f"forked from {data['source']} to {data['folder']}; {_reusable(data)}. --fork again would begin "
                "another fork; to resume this one:"
            )
        case "stopping":
            return Line(f"stopping: {data['reason']}")
        case "warning":
            return Line(f"warning: {data['about']}: {short(data['why'])}", "warning")
        case "calibration":
            return Line(f"calibration · {data['reason']}")
        case "reselection":
            return Line(f"chosen · {data['reason']}")
        case "arm":
            return Line(f"measuring · {data['name']}", "quiet")
        case "workers" if data["machines"]:
            machines = f"{counted(len(data['machines']), 'machine')} on {data['on']}"
            return Line(f"workers · {machines}, {data['slots']} jobs at once", "quiet")
        case "workers" if data["sent"]:
            logs = "; Ray's logs are in /tmp/ray/session_latest/logs of each machine" if data["lost"] else ""
            return Line(
                f"workers · {data['sent']:,} jobs sent; {data['lost']:,} lost with a worker and sent again; "
                f"{data['late']:,} late requests of ended agents refused{logs}",
                "warning" if data["lost"] else "quiet",
            )
        case "slow":
            return Line(f"epoch {data['epoch']} · no slow update: {data['skipped']}", "quiet")
    return None


def _reusable(data: Mapping[str, Any]) -> str:
    """The share of the paid answers that a fork can reuse, and the changes that make the others useless."""
    lost = data["rollouts"] - data["answers"]
    text = f"{data['answers']:,} of {data['rollouts']:,} rollouts can be reused"
    if lost and data["changed"]:
        text += f", the others rest on what has changed: {'; '.join(data['changed'])}"
    if data["others"]:
        text += f"; of {data['others']:,} other answers those are reused whose question is asked again"
    return text


def _verdict(data: Mapping[str, Any], steps: int, slow: bool) -> Line:
    verdict = VerdictRecord.from_json(data)
    where = f"step {verdict.step} of {steps}" + (", slow update" if slow else "")
    if verdict.shortens:
        where = verdict.figures.rule
    judged = "accepted" if verdict.accepted else "rejected"
    versions = counted_versions(verdict.version)
    return Line(f"{where} · {judged}: {_outcome(verdict)} · {versions}", "good" if verdict.accepted else "quiet")


def _outcome(verdict: VerdictRecord) -> str:
    """A verdict in a few words; `explained` has its details."""
    if not isinstance(verdict.figures, RaceFigures):
        return verdict.reason
    last = verdict.figures.interims[-1]
    estimate = f"{100 * last.gain:+.1f} ± {100 * last.sd:.1f} points estimated"
    return f"{estimate}, {len(verdict.differences)} tasks looked at"


def counted_versions(n: int) -> str:
    return f"{n} version{'s' * (n != 1)}"


def explained(verdict: VerdictRecord, gate: GateConfig | None) -> str:
    """The reason of a verdict, in words. For a race: the measured scores, the estimated gain and the bar.

    The estimate is nearer to 0 than the measured gain: most edits do nothing, so a part of any gain is luck.
    """
    figures = verdict.figures
    if not isinstance(figures, RaceFigures) or gate is None:
        return verdict.reason  # it names the further targets
    last, needed = figures.interims[-1], figures.needed
    measured = (
        f"measured {percent(verdict.before)} → {percent(verdict.after)} on {len(verdict.differences)} select samples"
    )
    estimated = f"estimated gain {100 * last.gain:+.1f} ± {100 * last.sd:.1f} points"
    bar = f"P(better) {last.better:.2f} {'≥' if last.better >= needed else '<'} {needed:.2f}"
    if figures.decision == GIVEN_UP:
        bar += f", given up because it is below {gate.futility:.2f}"
    elif not verdict.accepted and not verdict.elsewhere and last.better >= needed and last.harm < VETO:
        bar += f", but {figures.unscored} samples could not be scored on both sides"
    elif not verdict.accepted and not verdict.elsewhere and last.better >= needed:
        bar += f", but P(worse by {100 * gate.regression_bound:g} points) = {last.harm:.2f}"
    elif not verdict.accepted and not verdict.elsewhere:
        bar += ": undecided when the samples were used up"
    return " · ".join((measured, estimated, bar, *map(str, verdict.elsewhere)))


def short(text: str, most: int = 200) -> str:
    """One line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
