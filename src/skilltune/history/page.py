"""The data of the page: one run, one transcript, or one row of the list of runs, as JSON of bounded size.

The static report and the live page show the same data with the same front end. Every text passes through
`skilltune.text.visible` once, in `to_json`, so that no control or bidi character of a model reaches a reader. Each part
has a limit in bytes; `omitted` says what did not fit.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from skilltune.config import BudgetConfig, Config, stored_config
from skilltune.edits import Edit
from skilltune.errors import RunError, SkilltuneError
from skilltune.history.activation import is_agent, is_unproven
from skilltune.history.ledger import read_ledger
from skilltune.history.lines import describe_event, explained, short
from skilltune.history.record import SPLITS, Judged, Record, Rollouts, Version
from skilltune.history.shapes import (
    Activation,
    Column,
    Cost,
    Decision,
    EditRow,
    Entry,
    FileRow,
    Health,
    Kind,
    Look,
    Money,
    Omitted,
    Page,
    RuleRow,
    Samples,
    Summary,
    Transcript,
    TurnRow,
    VerdictRow,
    VersionRow,
    size_of,
    to_json,
)
from skilltune.history.usable import describe_proposals
from skilltune.journal.run import Run
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.rollout import Rollout, rollout_from_json
from skilltune.rollouts.further import kind_of, pinned_further
from skilltune.rollouts.roller import LEFT_OUT
from skilltune.scorers.reading import elided
from skilltune.usage import Usage
from skilltune.verdict import (
    AblationFigures,
    EProcessFigures,
    RaceFigures,
    Rejected,
    Screen,
    VerdictRecord,
)

T = TypeVar("T")

IDS, INPUTS, CELLS, TEXTS, VERDICTS = 300_000, 150_000, 300_000, 180_000, 220_000  # bytes of each part
ROWS, RULES, LOG, NOTES = 60_000, 40_000, 60_000, 40_000
MOST_VERSIONS, MOST_ARMS = 12, 12  # columns of the matrix
MOST_ID, MOST_INPUT, FEWEST_INPUT = 80, 160, 16  # characters of an id, and of the beginning of an input
MOST_MOVED, MOST_EDITS, MOST_QUOTES = 60, 60, 12  # samples that a verdict names, edits, quotes of an edit
MOST_EDIT, MOST_LINE = 4_000, 600  # characters
MOST_LOG, MOST_PAID, MOST_SHOWN = 300, 120, 60  # lines, points of a curve, versions
MOST_RULED = 20_000  # rollouts from which the effects of the rules are estimated; more take too long for a page
TRANSCRIPT = 900_000  # bytes of the texts of one transcript
MOST_FILES = 200
_KEY = re.compile(r"([0-9a-f]{1,64})-([0-9]{1,9})-([0-9]{1,9})")
LIVE_FILE, MOST_LIVE = "live.json", 256_000  # written by the running process; bytes that are read of it

RIGHT, LIMIT, BROKEN, UNSEEN = "A", "L", "X", "."
"""Cells of the matrix: right, ended by a limit, no score (infrastructure, judge or sample), not evaluated. "0" is
wrong; "1" to "9" are tenths of partial credit."""

# -- the three readers; each raises `RunError` if the journal holds values of an unexpected type


def page(run: Run, known: Rollouts | None = None) -> dict[str, Any]:
    """The page of a run, at most 1.4 MB of JSON. `known` are rollouts that the caller read before (`Record.of`)."""
    with run.reading():
        return page_of(Record.of(run, known)).to_json()


def page_of(record: Record) -> Page:
    """The page of a run that was read already."""
    run = record.run
    order = record.order
    events = run.events()
    omitted: list[Omitted] = []
    ids, inputs = _named(record, order, omitted)
    columns = _columns(record, order[: len(ids)], omitted)
    verdicts = _verdicts(record, {sample: place for place, sample in enumerate(order[: len(ids)])}, omitted)
    state, (step, steps) = health(record), _steps(record)
    split_of = {sample: name for name, samples in record.splits.items() for sample in samples}
    return Page(
        id=run.folder.resolve().name,
        name=record.name,
        state=state,
        pid=record.writer if state == "running" else None,
        program=record.program,
        started=run.began,
        updated=max(filter(None, [run.began, record.seen.until, events[-1][0] if events else None]), default=None),
        setup=_setup(record),
        step=step,
        steps=steps,
        stopped=record.stopped,
        ending=record.ending.reason if record.ending else "",
        resume=record.resume if state in ("stopped", "died") else "",
        decision=_decision(record, state),
        versions=_versions(record, omitted),
        samples=Samples(
            ids=ids,
            sizes=Counter(split_of[sample] for sample in order[: len(ids)]),
            all={name: len(record.splits[name]) for name in SPLITS},
            inputs=inputs,
            notes=_notes(record),
        ),
        columns=columns,
        verdicts=verdicts,
        rules=_rules(record),
        activation=_activation(record),
        money=_money(record, step, steps),
        controls=record.controls,
        log=_log(record, events, steps),
        files=tuple(str(path.relative_to(run.folder)) for path in record.files),
        omitted=tuple(omitted),
        live=_live(record),
    )


def summary(run: Run) -> dict[str, Any]:
    """One row of the list of runs. It reads no rollout."""
    with run.reading():
        return _summary(run, Record.of(run)).to_json()


def _summary(run: Run, record: Record) -> Summary:
    state, (step, steps) = health(record), _steps(record)
    decision = _decision(record, state)
    total = sum(run.usage.values(), Usage())
    events = run.events()
    return Summary(
        id=run.folder.resolve().name,
        name=record.name,
        state=state,
        kind=decision.kind,
        claim=decision.claim,
        source=decision.source,
        gain=decision.gain,
        low=decision.low,
        high=decision.high,
        calls=total.calls,
        tokens=total.tokens,
        usd=total.usd,
        spark=tuple(_levels(record)),
        versions=max(0, len(record.versions) - 1),
        step=step,
        steps=steps,
        samples=sum(map(len, record.splits.values())),
        started=run.began,
        updated=events[-1][0] if events else run.began,
        target=str(record.config.get("target", {}).get("model", "")),
        optimizer=_optimizer(record),
    )


def transcript(run: Run, key: str, known: Rollouts | None = None) -> dict[str, Any] | None:
    """The rollout with this key, at most 1 MB of JSON; None if there is none (see `key_of`)."""
    with run.reading():
        found = transcript_of(Record.of(run, known), key)
        return None if found is None else found.to_json()


def transcript_of(record: Record, key: str, room: int = TRANSCRIPT) -> Transcript | None:
    """The rollout with this key, with texts of at most `room` bytes; None if there is none."""
    order = record.order
    match = _KEY.fullmatch(key)
    if match is None or int(match[2]) >= len(order):
        return None
    draws = record.draws.get((match[1], order[int(match[2])]), ())
    draw = next((draw for draw in draws if draw.attempt == int(match[3])), None)
    stored = record.run.recall(draw.key) if draw else None
    if stored is None:
        return None
    with record.run.reading():
        rollout = rollout_from_json(stored[0])
    return _transcript(record, key, rollout, len(draws), room)


def key_of(skill: str, place: int, attempt: int) -> str:
    """The key of a transcript: the hash of the skill, the place of the sample in the matrix, and the attempt."""
    return f"{skill}-{place}-{attempt}"


def health(record: Record) -> Health:
    """The state of a run. A run has died if its last process ended without recording a reason. The process of a run
    may ask for itself when it writes the report: then the run is over."""
    if record.finish is not None and record.writer == os.getpid():
        return "stopped" if record.finish.stopped else "finished"
    if record.state != "stopped":
        return record.state
    ended, opened = max((t for t, _, _ in record.run.events("stopped")), default=None), record.run.opened
    silent = not record.stopped or (opened is not None and ended is not None and opened > ended)
    trained = bool(record.config)  # else the journal of an evaluation, which has no end
    return "died" if silent and trained else "stopped"


# -- decision, versions


_GOING: Mapping[Health, str] = {
    "running": "Training is under way. Nothing is proven before the certificate.",
    "stopped": "Stopped before the certificate, so nothing is proven yet.",
    "died": "The process ended before the certificate, so nothing is proven yet.",
    "finished": "Finished.",
}
_EXITS: Mapping[int, Kind] = {0: "yes", 1: "no", 5: "open"}


def _decision(record: Record, state: Health) -> Decision:
    end, c = record.finish, record.certificate
    going: Kind = "running" if state == "running" else "stopped"
    kind = _EXITS.get(end.exit_code, "stopped") if end else going
    if c is not None:
        notes = [c.unscored] if c.unscored else []
        return Decision(
            kind=kind,
            claim=record.claim,
            source="test",
            before=c.before,
            after=c.after,
            gain=c.gain,
            low=c.low,
            high=c.high,
            level=c.level,
            p=c.p,
            n=c.n,
            samples=c.samples,
            method=c.method,
            attempts=c.attempts,
            look=c.look,
            fixed=c.fixed,
            broken=c.broken,
            tokens=c.tokens,
            usd=c.usd,
            notes=tuple(notes),
            also=tuple(to_json(row) for row in c.also),
        )
    start, best = record.start, record.best
    claim = record.claim
    if end is None:
        claim = _GOING[state]
    if start is None or best is None or start.score is None or best.score is None or best.number == 0:
        return Decision(kind=kind, claim=claim, before=start.score if start else None)
    return Decision(
        kind=kind, claim=claim, source="select", before=start.score, after=best.score, gain=best.score - start.score
    )


def _levels(record: Record) -> list[float]:
    """The incumbent's estimated score after the input and each verdict."""
    scores = [row.score if isinstance(row, Version) else row.verdict.score for row in record.rows]
    found = [score for score in scores if score is not None]
    return found[:1] + found[1:][-(MOST_PAID - 1) :]


def _versions(record: Record, omitted: list[Omitted]) -> tuple[VersionRow, ...]:
    """The first and the newest versions; their texts as far as they fit, those of the input and of what ships first."""
    best = record.best
    texts, room = {}, TEXTS
    for version in dict.fromkeys(v for v in (record.start, best, *reversed(record.versions)) if v is not None):
        if version.text is not None:
            room -= size_of(version.text)
            if room >= 0:
                texts[version.number] = version.text
    if lost := sum(v.text is not None for v in record.versions) - len(texts):
        omitted.append(Omitted(lost, "texts of versions", "skilltune diff compares them"))
    shown = _ends(record.versions, MOST_SHOWN)
    if lost := len(record.versions) - len(shown):
        omitted.append(Omitted(lost, "versions in the middle", "skilltune show lists them"))
    rows = []
    for version in shown:
        bounds = version.interval
        measured = {name: record.measured(version, name) for name in SPLITS}
        rows.append(
            VersionRow(
                number=version.number,
                hash=version.hash,
                step=version.step,
                edits=version.edits,
                tokens=version.tokens,
                reason=short(version.reason, ROWS // MOST_SHOWN // 4),
                revived=version.revived,
                ships=best is not None and version.hash == best.hash,
                estimate=None if bounds is None or version.score is None else (version.score, *bounds),
                scores={name: found for name, found in measured.items() if found is not None},
                text=texts.get(version.number),
            )
        )
    return tuple(rows)


# -- samples and the matrix


def _named(
    record: Record, order: Sequence[str], omitted: list[Omitted]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    ids, room = [], IDS
    for sample in order:
        ids.append(short(sample, MOST_ID))
        room -= size_of(ids[-1])
        if room < 0:
            ids.pop()
            break
    if len(ids) < len(order):
        omitted.append(Omitted(len(order) - len(ids), "samples", "rollouts.jsonl of the run folder has all"))
    most = min(MOST_INPUT, INPUTS // max(1, len(ids)) - 3)
    if most < FEWEST_INPUT:
        return tuple(ids), None
    inputs, room = [], INPUTS
    for sample in order[: len(ids)]:
        text = _input(record.samples.get(sample, {}), most)
        room -= size_of(text)
        inputs.append(text if room >= 0 else "")
    return tuple(ids), tuple(inputs) if any(inputs) else None


def _input(sample: Mapping[str, Any], most: int) -> str:
    """The beginning of the input of a stored sample."""
    text = sample.get("input", "")
    if not isinstance(text, str):
        text = " ".join(str(turn.get("content", "")) for turn in text if isinstance(turn, dict))
    return short(text[: 4 * most], most)


def _columns(record: Record, order: Sequence[str], omitted: list[Omitted]) -> tuple[Column, ...]:
    """Versions first, then the rejected candidates, the newest first as far as there is room."""
    versions = _ends(record.versions, MOST_VERSIONS)
    if lost := len(record.versions) - len(versions):
        omitted.append(Omitted(lost, "versions without a column", "rollouts.jsonl of the run folder has all"))
    shipped = {version.hash for version in record.versions}
    arms: dict[str, int] = {}
    for place, verdict in enumerate(record.verdicts):
        if verdict.candidate and not verdict.accepted and verdict.candidate not in shipped:
            arms[verdict.candidate] = place
    unscored = _unscored(record.run)
    made, room = [], CELLS
    places = {verdict.skill: place for place, verdict in reversed([*enumerate(record.verdicts)]) if verdict.accepted}
    for version in versions:
        cells = _cells(record, version.hash, order, unscored, room // (len(versions) - len(made)))
        room -= sum(map(len, cells))
        label = "input" if version.number == 0 else f"v{version.number}"
        made.append(Column(label, "version", version.hash, version.number, places.get(version.hash), cells))
    shown = 0
    for hash, place in reversed(arms.items()):
        cells = _cells(record, hash, order, unscored, room)
        if not cells or shown == MOST_ARMS:
            continue
        shown, room = shown + 1, room - sum(map(len, cells))
        made.append(Column(f"step {record.verdicts[place].step}", "arm", hash, None, place, cells))
    if lost := len(arms) - shown:
        omitted.append(
            Omitted(lost, "rejected candidates without a column", "rollouts.jsonl of the run folder has all")
        )
    return tuple(made)


def _cells(
    record: Record, skill: str, order: Sequence[str], unscored: Mapping[tuple[str, str], set[int]], room: int
) -> tuple[str, ...]:
    """One string per attempt, as many attempts as fit into `room`; trailing unseen cells are cut off."""
    draws = [record.draws.get((skill, sample), ()) for sample in order]
    lost = [unscored.get((skill, sample), ()) for sample in order]
    last = max((draw.attempt for each in draws for draw in each), default=-1)
    last = max(last, max((attempt for each in lost for attempt in each), default=-1))
    rows = []
    for attempt in range(min(last + 1, room // max(1, len(order)))):
        row = [BROKEN if attempt in each else UNSEEN for each in lost]
        for place, each in enumerate(draws):
            for draw in each:
                if draw.attempt == attempt:
                    row[place] = _cell(draw.score, draw.outcome)
        rows.append("".join(row).rstrip(UNSEEN))
    return tuple(rows)


def _cell(score: float | None, outcome: str) -> str:
    if score is None:
        return BROKEN
    if outcome == "agent_limit" and score < 1:
        return LIMIT
    return RIGHT if score >= 1 else "0" if score <= 0 else str(min(9, max(1, round(10 * score))))


def _unscored(run: Run) -> dict[tuple[str, str], set[int]]:
    """The attempts that were left out of a batch, by skill and sample. A later one may have been scored after all."""
    found: dict[tuple[str, str], set[int]] = {}
    for _, _, event in run.events(LEFT_OUT):
        for sample in event["samples"]:
            found.setdefault((str(event.get("skill", "")), sample), set()).add(event.get("attempt", 0))
    return found


def _notes(record: Record) -> dict[str, str]:
    """The outcome and cause of the samples that were left out last, as far as they fit."""
    found = (
        (short(sample, MOST_ID), short(f"{failure['outcome']}: {failure['why']}", MOST_LINE))
        for sample, failure in reversed([*record.left_out.items()])
    )
    return dict(_last(found, NOTES))


# -- edits


def _verdicts(record: Record, places: Mapping[str, int], omitted: list[Omitted]) -> tuple[VerdictRow, ...]:
    judged = [row for row in record.rows if isinstance(row, Judged)]
    made = _last((_verdict_row(record, row, places) for row in reversed(judged)), VERDICTS)
    if lost := len(judged) - len(made):
        omitted.append(Omitted(lost, "earlier verdicts", "skilltune show lists them"))
    return made


def _verdict_row(record: Record, row: Judged, places: Mapping[str, int]) -> VerdictRow:
    verdict = row.verdict
    figures, estimate = verdict.figures, verdict.figures.estimate
    moved = {sign: [sample for sample, change in verdict.differences.items() if change * sign > 0] for sign in (1, -1)}
    named = {
        sign: tuple(places[sample] for sample in samples if sample in places)[:MOST_MOVED]
        for sign, samples in moved.items()
    }
    return VerdictRow(
        step=verdict.step,
        epoch=verdict.epoch,
        kind=row.kind,
        version=verdict.version,
        accepted=verdict.accepted,
        reason=short(explained(verdict, record.gate), MOST_LINE),
        rule=figures.rule,
        before=verdict.before,
        after=verdict.after,
        n=len(verdict.differences),
        gain=estimate.gain,
        sd=estimate.sd,
        better=estimate.better,
        needed=figures.needed if isinstance(figures, RaceFigures) else None,
        prior=figures.prior if isinstance(figures, RaceFigures) else None,
        looks=_looks(verdict),
        fixed=named[1],
        broke=named[-1],
        n_fixed=len(moved[1]),
        n_broke=len(moved[-1]),
        edits=_edits(verdict),
    )


def _looks(verdict: VerdictRecord) -> tuple[Look, ...]:
    match verdict.figures:
        case RaceFigures(interims=interims):
            return tuple(Look(each.n, each.gain, each.sd, each.better) for each in interims)
        case EProcessFigures(interims=interims, bar=bar):
            return tuple(Look(each.n, each.gain, None, min(1.0, each.wealth / bar)) for each in interims)
        case AblationFigures(interims=interims):
            return tuple(Look(each.n, each.gain, each.sd, each.safe) for each in interims)
    return ()


def _edits(verdict: VerdictRecord) -> tuple[EditRow, ...]:
    """The edits of the candidate with their fate, then the edits that were judged and did not get into it."""
    inside = {report.edit.key for report in verdict.reports}
    why_not = {entry.edit.key: _cause(verdict, entry) for entry in verdict.rejected}
    rows: list[EditRow] = []
    for report in verdict.reports:
        kept: Any = "not applied" if not report.applied else "kept" if verdict.accepted else "tried, not kept"
        reason = {"not applied": report.reason, "kept": ""}.get(kept, why_not.get(report.edit.key, ""))
        removed, inserted = (report.removed, report.inserted) if report.applied else (None, None)
        rows.append(_edit_row(report.edit, kept, reason, verdict.screen, removed, inserted))
    rows += [
        _edit_row(entry.edit, "measured, not tried", _cause(verdict, entry), verdict.screen)
        for entry in verdict.rejected
        if entry.edit.key not in inside
    ]
    return tuple(rows[:MOST_EDITS])


def _cause(verdict: VerdictRecord, entry: Rejected) -> str:
    """The reason why an edit was not kept, without its measured effect, which has a field of its own."""
    screen, key = verdict.screen, entry.edit.key
    return entry.reason if screen is None or screen.row(key) is None else screen.raced(key)


def _edit_row(
    edit: Edit, fate: Any, reason: str, screen: Screen | None, removed: str | None = None, inserted: str | None = None
) -> EditRow:
    measured = screen.row(edit.key) if screen is not None else None
    return EditRow(
        op=edit.op,
        after=None if edit.after is None else short(edit.after, MOST_LINE),
        removed=elided(edit.target or "" if removed is None else removed, MOST_EDIT),
        inserted=elided(edit.text or "" if inserted is None else inserted, MOST_EDIT),
        why=short(edit.why, MOST_LINE),
        quotes=tuple(
            (short(cited.sample, MOST_ID), short(cited.quote, MOST_LINE)) for cited in edit.evidence[:MOST_QUOTES]
        ),
        fate=fate,
        reason=short(reason, MOST_LINE),
        effect=measured.effect if measured else None,
        sd=measured.sd if measured else None,
    )


def _rules(record: Record) -> tuple[RuleRow, ...]:
    """The ledger of the best skill, of a run that is over and not too large."""
    if health(record) == "running" or record.seen.count > MOST_RULED or record.best_hash is None or not record.start:
        return ()
    with suppress(SkilltuneError):
        rules = read_ledger(record.run, record.best_hash)
        found = (
            RuleRow(
                text=short(rule.text, MOST_LINE),
                op=rule.op,
                step=rule.step,
                version=rule.version,
                effect=rule.together.effect if rule.together else rule.effect,
                low=(rule.together or rule).interval[0],
                high=(rule.together or rule).interval[1],
                fixed=rule.fixed,
                broken=rule.broken,
                known=rule.known,
                together=len(rule.together.keys) if rule.together else 1,
            )
            for rule in reversed(rules)
        )
        return _last(found, RULES)
    return ()


# -- setup, activation, money, log


def _setup(record: Record) -> dict[str, Any]:
    config = record.config
    gate, train = config.get("gate", {}), config.get("train", {})
    return {
        "target": str(config.get("target", {}).get("model", "")),
        "optimizer": _optimizer(record),
        "proposals": describe_proposals(record.proposals),
        "judge": str(config.get("env", {}).get("score", {}).get("judge", "") or "")
        if isinstance(config.get("env", {}).get("score"), dict)
        else "",
        "preset": str(config.get("preset", "")),
        "seed": config.get("seed"),
        "gate": str(gate.get("policy", "")),
        "metric": str(gate.get("metric", "")),
        "epochs": train.get("epochs"),
        "batch": train.get("batch_size"),
        "skill": str(config.get("skill", "")),
        "folder": str(record.folder),
    }


def _optimizer(record: Record) -> str:
    """The optimizer's name. Without one, the target's model is the optimizer."""
    named = record.config.get("optimizer", {}).get("model", "")
    return str(named or record.config.get("target", {}).get("model", ""))


def _activation(record: Record) -> tuple[Activation, ...]:
    """One row per agent: the run's target, then the further targets that are agents."""
    target = record.config.get("target", {})
    model, seen = str(target.get("model", "")), record.seen
    rows = []
    if is_agent(model) and seen.count:
        unproven = is_unproven(model, str(target.get("upstream") or ""), target.get("gateway") is not False)
        rows.append(Activation(model, seen.count, seen.offered, seen.loaded, unproven))
    for name in pinned_further(record.run):
        marks = [values for *_, values in record.run.parts(kind_of(name), "$.offered", "$.loaded")]
        if is_agent(name) and marks:
            offered, loaded = (sum(map(bool, column)) for column in zip(*marks, strict=True))
            rows.append(Activation(name, len(marks), offered, loaded, is_unproven(name, "", True)))
    return tuple(rows)


def _steps(record: Record) -> tuple[int, int]:
    """The last step that was judged, and the steps of the whole run (0: unknown)."""
    judged = [verdict.step for verdict in record.verdicts if not verdict.shortens]
    cfg = _config(record)
    steps = steps_per_epoch(cfg.train, len(record.splits["train"])) * cfg.train.epochs if cfg else 0
    return max(judged, default=0), steps


def _config(record: Record) -> Config | None:
    """None if another version of skilltune made the configuration."""
    if not record.config:
        return None
    with suppress(RunError):
        return stored_config(record.config, record.folder)
    return None


def _money(record: Record, step: int, steps: int) -> Money:
    total = sum((row.usage for row in record.spend), Usage())
    payments = record.run.payments()
    curve: list[tuple[float, int, int, float | None]] = []
    paid, every = Usage(), max(1, -(-len(payments) // MOST_PAID))
    for place, (t, usage) in enumerate(payments, start=1):
        paid = paid + usage
        if place % every == 0 or place == len(payments):
            curve.append((t, paid.calls, paid.tokens, paid.usd))
    limits = record.config.get("budget") or {}
    return Money(
        rows=tuple(Cost.of(row.role, row.phase, row.usage) for row in record.spend if row.usage != Usage()),
        total=Cost.of("all", "", total),
        budget={name: limits[name] for name in BudgetConfig.model_fields if isinstance(limits.get(name), int | float)},
        minutes=record.run.elapsed_s / 60,
        forecast=_forecast(record, payments, step, steps),
        curve=tuple(curve),
    )


def _forecast(
    record: Record, payments: Sequence[tuple[float, Usage]], step: int, steps: int
) -> dict[str, float] | None:
    """The total at the end: the cost of a step so far for each step that is left, and the certificate at the price of
    an average call. Steps that were replayed cost nothing and are not counted."""
    if not steps or (record.finish and not record.finish.stopped):
        return None
    began = next((t for t, _, _ in record.run.events("start")), None)
    judged = [t for t, _, _ in record.run.events("verdict")]
    cfg = _config(record)
    if began is None or not judged or cfg is None or step == 0:
        return None
    learning = sum((usage for t, usage in payments if began < t <= judged[-1]), Usage())
    total = sum((usage for _, usage in payments), Usage())
    if not learning.calls:
        return None
    certificate = 2 * cfg.certify.attempts * len(record.splits["test"])
    share = (steps - step) / step + certificate / learning.calls
    since = sum((usage for t, usage in payments if t > judged[-1]), Usage())
    before = {"calls": total.calls - since.calls, "tokens": total.tokens - since.tokens}
    found: dict[str, float] = {
        name: max(getattr(total, name), paid + share * getattr(learning, name)) for name, paid in before.items()
    }
    if total.usd is not None and learning.usd is not None and since.usd is not None:
        found["usd"] = max(total.usd, total.usd - since.usd + share * learning.usd)
    return found


def _log(record: Record, events: Sequence[tuple[float, str, dict[str, Any]]], steps: int) -> tuple[Entry, ...]:
    """The last lines of the log, by the recorded events."""
    entries: list[Entry] = []
    before = None
    for t, type, data in events:
        slow = type == "verdict" and data.get("step") == before
        if type == "verdict":
            before = data.get("step")
        with record.run.reading():
            line = describe_event(type, data, steps, slow)
        if line is not None:
            entries.append(Entry(t, short(line.text, MOST_LINE), line.tone))
        elif type == "stopped":
            entries.append(Entry(t, short(f"stopped: {data.get('reason', '')}", MOST_LINE), "warning"))
        elif type == "certify":
            entries.append(Entry(t, "certificate · the test split is read", ""))
        elif type == "finish":
            entries.append(Entry(t, "finished", "good" if data.get("exit_code") == 0 else ""))
    return _last(reversed(entries[-MOST_LOG:]), LOG)


def _live(record: Record) -> Mapping[str, Any] | None:
    """The file that the running process writes, None if the run is not running."""
    return _read_live(record) if health(record) == "running" else None


def _read_live(record: Record) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, RecursionError):
        # neither a link out of the folder nor a pipe, which would block
        number = os.open(record.folder / LIVE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(number, "rb") as file:
            data = json.loads(file.read(MOST_LIVE))
        return data if isinstance(data, dict) else None
    return None


# -- a transcript


def _transcript(record: Record, key: str, rollout: Rollout, attempts: int, room: int) -> Transcript:
    trajectory, score = rollout.trajectory, rollout.score
    version = next((version for version in record.versions if version.hash == rollout.skill), None)
    turns = [(turn.role, turn.text) for turn in trajectory.turns]
    texts = [*(text for _, text in turns), trajectory.answer, trajectory.diff, trajectory.error]
    most = _fair(texts, room)
    lost = sum(len(text) > most for text in texts)
    omitted = [Omitted(lost, "long texts are cut in their middle", "rollouts.jsonl has all of them")] if lost else []
    files = [_file(path, each.hash, each.size) for path, each in [*rollout.artifacts.items()][:MOST_FILES]]
    if more := len(rollout.artifacts) - len(files):
        omitted.append(Omitted(more, "files", "skilltune show --file prints a file by its hash"))
    target = record.samples.get(rollout.sample, {}).get("target")
    expected = "" if target is None else target
    expected = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    is_last = bool(turns) and turns[-1][1] == trajectory.answer
    return Transcript(
        key=key,
        sample=short(rollout.sample, MOST_LINE),
        split=next((name for name in SPLITS if rollout.sample in record.splits[name]), ""),
        column=f"version {version.number}" if version else "rejected candidate",
        hash=rollout.skill,
        attempt=rollout.attempt,
        attempts=attempts,
        outcome=rollout.outcome,
        error=elided(trajectory.error, min(most, MOST_EDIT)),
        score=score.value if score else None,
        soft=score.soft if score else None,
        why=elided(score.why, MOST_EDIT) if score else "",
        metrics={short(name, MOST_ID): value for name, value in [*score.metrics.items()][:MOST_FILES]} if score else {},
        expected=elided(expected, MOST_EDIT),
        turns=tuple(_turn(role, text, most) for role, text in turns),
        answer=None if is_last else _turn("answer", trajectory.answer, most),
        files=tuple(files),
        diff=_turn("diff", trajectory.diff, most) if trajectory.diff else None,
        stream=_file("output", trajectory.stream.hash, trajectory.stream.size) if trajectory.stream else None,
        offered=trajectory.skill_offered,
        loaded=trajectory.skill_loaded,
        calls=trajectory.usage.calls,
        tokens=trajectory.usage.tokens,
        usd=trajectory.usage.usd,
        seconds=trajectory.seconds,
        omitted=tuple(omitted),
    )


def _turn(role: str, text: str, most: int) -> TurnRow:
    if len(text) <= most:
        return TurnRow(short(role, MOST_ID), text, 0)
    half = most // 2
    return TurnRow(short(role, MOST_ID), f"{text[:half]}\n[…]\n{text[len(text) - half :]}", len(text) - 2 * half)


def _fair(texts: Sequence[str], room: int) -> int:
    """The largest number of characters per text with which all texts together take at most `room` bytes."""
    sizes = sorted((size_of(text), len(text)) for text in texts)
    for place, (size, length) in enumerate(sizes):
        share = room // (len(sizes) - place)
        if size > share:
            return max(1, share * length // size)
        room -= size
    return max((length for _, length in sizes), default=1)


IMAGES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}


def _file(path: str, hash: str, size: int) -> FileRow:
    return FileRow(short(path, MOST_LINE), size, hash, IMAGES.get(path.rpartition(".")[2].lower(), ""))


# -- parts of bounded size


def _last(newest_first: Iterable[T], room: int) -> tuple[T, ...]:
    """The newest values that take at most `room` bytes together, in order; the others are not even made."""
    kept: list[T] = []
    for value in newest_first:
        room -= size_of(value)
        if room < 0:
            break
        kept.append(value)
    return tuple(reversed(kept))


def _ends(values: Sequence[T], most: int) -> list[T]:
    """All values or, if there are more than `most`, the first one and the last ones."""
    return [*values] if len(values) <= most else [values[0], *values[len(values) - most + 1 :]]
