"""Running again is resuming: killed, cancelled, out of money or finished, the call goes on and pays nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from killing import after_file, after_requests, killed, undisturbed
from skilltune.errors import InfraStopped, RunError, UsageError
from skilltune.export import best_of
from skilltune.journal.run import Run
from skilltune.usage import Usage
from training import START, Fated, events, prepare, quick_retries, small, train
from world import Call, Faults, World

pytestmark = pytest.mark.anyio
PRESETS = ("default", "paper")
WORKERS = 8
PAPER = {"train.epochs": 3, "train.lr": 1, "train.lr_min": 1, "target.workers": WORKERS}
SETTINGS = {"default": {"train.epochs": 1, "target.workers": WORKERS}, "paper": PAPER}


def noisy(**settings: float) -> World:
    return small(p=0.1, q=0.7, latency=0.004, **settings)


def answers(world: World) -> Counter[str | None]:
    """How often each call was answered in full, by its idempotency key."""
    return Counter(seen.key for seen in world.requests if seen.status == 200 and seen.fault is None)


def paid_twice(world: World) -> int:
    return sum(count - 1 for count in answers(world).values())


# -- pitfall 2: killed anywhere


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "seed"),
    [
        ("default", 0),
        pytest.param("default", 7, marks=pytest.mark.soak),
        ("paper", 7),
        *(pytest.param(preset, seed, marks=pytest.mark.soak) for preset in PRESETS for seed in range(10, 30)),
    ],
)
def test_pitfall_2_killed_at_random_moments_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, preset: str, seed: int
) -> None:
    """`make soak` does this with more seeds, bench/kills.py a hundred times."""
    settings = {**SETTINGS[preset], "target.lookahead": False}  # every call has its use, so that calls can be counted
    tables = {"preset": preset, "seed": seed}
    quiet, loud = tmp_path / "quiet" / "desk", tmp_path / "loud" / "desk"  # a skill is named after its folder
    for folder in (quiet, loud):
        folder.mkdir(parents=True)
    with noisy(seed=seed) as world:
        expected, _ = undisturbed(world, quiet, settings, **tables)
        total = len(answers(world))
    draw = random.Random(seed)
    moments = [after_requests(draw.randrange(1, total // 4)) for _ in range(3)]
    with noisy(seed=seed) as world:
        lives = killed(world, loud, [*moments, after_file("best_skill.md")], settings, **tables)
        assert len(answers(world)) == total
    assert lives.outcome == expected
    assert len(lives.kills) >= len(moments)
    assert not lives.asked_again
    assert lives.answered_twice <= min(lives.begun_twice, len(lives.kills) * WORKERS)
    assert len(expected.finish["versions"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_2_cancelled_at_random_awaits_it_ends_with_the_same_versions(tmp_path: Path, preset: str) -> None:
    settings = SETTINGS[preset]
    (tmp_path / "undisturbed").mkdir()
    with noisy() as world:
        undisturbed = await train(world, tmp_path / "undisturbed", settings, preset=preset)
        total = sum(world.calls.values())
    draw = random.Random(11)
    with noisy() as world:
        cancelled = 0
        for moment in sorted(draw.sample(range(1, total), 4)):
            task = asyncio.create_task(train(world, tmp_path, settings, preset=preset))
            while sum(world.answered.values()) < moment and not task.done():
                await asyncio.sleep(0)
            for _ in range(draw.randrange(20)):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled += 1
        resumed = await train(world, tmp_path, settings, preset=preset)
        assert paid_twice(world) <= cancelled * WORKERS
    assert resumed.outcome == undisturbed.outcome


# -- the same call again


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_a_finished_run_is_replayed_for_nothing(tmp_path: Path, preset: str) -> None:
    with small(p=0.1) as world:
        first = await train(world, tmp_path, preset=preset)
        calls = world.calls.copy()
        files = {
            path: path.read_bytes() for path in first.folder.rglob("*") if path.suffix in (".md", ".json", ".jsonl")
        }
        for path in files:
            path.unlink()
        second = await train(world, tmp_path, preset=preset)
        assert world.calls == calls
    assert second.outcome == first.outcome
    assert second.result == first.result
    assert {path: path.read_bytes() for path in files} == files  # derived files may be deleted
    assert len(events(second.folder, "finish")) == 1


@pytest.mark.slow
async def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    with small() as world:
        settings = {"train.epochs": 1}
        first = await train(world, tmp_path, settings)
        calls = world.calls.copy()
        with pytest.raises(RunError, match=r"train\.lr: 4 → 3") as refused:
            await train(world, tmp_path, {**settings, "train.lr": 3})
        assert "gate" not in str(refused.value)
        with pytest.raises(RunError, match="seed: 42 → 43"):
            await train(world, tmp_path, settings, seed=43)
        allowed = {**settings, "budget.calls": 5000, "target.workers": 3, "optimizer.timeout_s": 5.0}
        again = await train(world, tmp_path, allowed)
        assert world.calls == calls
    assert again.outcome == first.outcome


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["SKILL.md", "samples.jsonl", "lost", "scorer"])
async def test_another_skill_or_other_samples_are_refused(tmp_path: Path, changed: str) -> None:
    with small() as world:
        settings = {"train.epochs": 1}
        await train(world, tmp_path, settings)
        calls = world.calls.copy()
        samples = (tmp_path / "samples.jsonl").read_text()
        if changed == "SKILL.md":
            (tmp_path / "SKILL.md").write_text(START.replace("each", "every"))
        elif changed == "samples.jsonl":
            (tmp_path / "samples.jsonl").write_text(samples.replace("Marlow", "Barlow"))
        elif changed == "lost":
            (tmp_path / "samples.jsonl").write_text("".join(samples.splitlines(keepends=True)[1:]))
        else:
            settings = {**settings, "env.score": "contains"}
        with pytest.raises(UsageError, match=r"skill|samples|env\.score"):
            await train(world, tmp_path, settings)
        assert world.calls == calls


async def test_a_fork_reuses_what_was_paid(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        first = await train(world, tmp_path, {"train.epochs": 1}, preset="paper")
        calls = sum(world.calls.values())
        before = {path: path.read_bytes() for path in first.folder.iterdir() if path.is_file() and path.suffix != ".db"}
        fork = await train(world, tmp_path, {"train.epochs": 1, "slow.notes": False}, preset="paper", fork=True)
        assert sum(world.calls.values()) == calls  # nothing that the change touches is ever called in one epoch
        longer = await train(world, tmp_path, {"train.epochs": 2}, preset="paper", fork=True, run="run-2")
        assert sum(world.calls.values()) < 2 * calls
    assert (fork.folder.name, longer.folder.name) == ("run-2", "run-2-2")
    assert (fork.versions, fork.result.best.text) == (first.versions, first.result.best.text)
    cards = [run.result.certificate for run in (first, fork, longer)]
    assert [card.look for card in cards if card] == [1, 2, 3]  # the same test samples, three times
    assert [card.p for card in cards[:2] if card] == [cards[0] and cards[0].p] * 2
    assert {path: path.read_bytes() for path in before} == before


# -- pitfall 16: what failed is left out as a decision, and asked again later


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_pitfall_16_samples_that_always_fail_are_left_out_of_every_mean(tmp_path: Path, preset: str) -> None:
    bad: set[str] = set()
    with quick_retries(2), Fated(lambda call, sample: "error" if sample in bad else None, q=0.9) as world:
        by_split = {s: [t.id for t in world.tickets.values() if t.split == s] for s in ("train", "select", "test")}
        bad |= {ids[0] for ids in by_split.values()}
        trained = await train(world, tmp_path, preset=preset)
        calls = world.calls.copy()
        asked = Counter(seen.sample or "" for seen in world.requests if seen.role == "target")
        assert trained.result.certificate is not None
        assert trained.result.certificate.n == 23
        rollouts = trained.rows("rollouts.jsonl")
        assert not bad & {rollout["sample"] for rollout in rollouts}
        assert all("score" in rollout for rollout in rollouts)
        for verdict in trained.verdicts:
            assert not bad & verdict["differences"].keys()
        failed = [seen for seen in world.requests if seen.status == 500 and by_split["train"][0] in seen.user]
        assert len(failed) >= 2 * 2  # two attempts in each of two epochs: a later batch asks again
        assert asked

        bad.clear()  # had the resume asked again, it would now get an answer and see another world
        again = await train(world, tmp_path, preset=preset)
        assert world.calls == calls
    assert again.outcome == trained.outcome
    assert again.verdicts == trained.verdicts


@pytest.mark.slow
async def test_pitfall_16_a_batch_closes_the_same_way_after_a_kill(tmp_path: Path) -> None:
    """Interrupted after the batch was closed without a sample, with the endpoint well again at the resume."""
    bad: set[str] = set()
    late = False

    def fate(call: Call, sample: str | None) -> str | None:
        return "error" if sample in bad or (late and call.stage == "reflect") else None

    with quick_retries(2), Fated(fate, q=1.0) as world:
        bad.add(next(t.id for t in world.tickets.values() if t.split == "train"))
        undisturbed_folder = tmp_path / "undisturbed"
        undisturbed_folder.mkdir()
        undisturbed = await train(world, undisturbed_folder, {"train.epochs": 1, "train.batch_size": 32})
        late = True
        with pytest.raises(Exception, match="optimizer cannot be reached"):
            await train(world, tmp_path, {"train.epochs": 1, "train.batch_size": 32})
        late = False
        healed = bad.pop()
        resumed = await train(world, tmp_path, {"train.epochs": 1, "train.batch_size": 32})
    assert resumed.versions == undisturbed.versions
    start = [r for r in resumed.rows("rollouts.jsonl") if r["skill"] == resumed.versions[0]]
    assert healed not in {r["sample"] for r in start}


# -- money


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
async def test_a_budget_of_calls_stops_certifies_and_resumes(tmp_path: Path, preset: str) -> None:
    settings = {"train.epochs": 2, "train.lr": 1, "train.lr_min": 1}  # several accepts
    (tmp_path / "unlimited").mkdir()
    with noisy(seed=1) as world:
        unlimited = await train(world, tmp_path / "unlimited", settings, preset=preset, seed=1)
        total = len(answers(world))
    certified: list[str] = []
    with noisy(seed=1) as world:
        prepare(world, tmp_path)
        spent = []
        for limit in (total // 2, 3 * total // 4):
            trained = await train(world, tmp_path, {**settings, "budget.calls": limit}, preset=preset, seed=1)
            spent.append(sum(world.calls.values()))
            assert spent[-1] <= limit
            assert trained.result.exit_code == 4
            assert trained.result.stopped is not None
            assert f"{limit} calls" in str(trained.result.stopped)
            if len(trained.versions) > 1:
                certificate = trained.result.certificate
                assert certificate is not None
                assert certificate.n == 24
                certified += [] if trained.versions[-1] in certified else [trained.versions[-1]]
                assert certificate.look == len(certified)
            assert trained.read("best_skill.md") == trained.result.best.text
        assert spent == sorted(set(spent))  # each larger budget went on
        resumed = await train(world, tmp_path, settings, preset=preset, seed=1)
        assert paid_twice(world) == 0  # a stop by the budget lets what is under way finish
    assert resumed.versions == unlimited.versions
    assert resumed.result.best.text == unlimited.result.best.text
    certificate = resumed.result.certificate
    assert certificate is not None
    assert unlimited.result.certificate is not None
    assert certificate.look == len({*certified, resumed.versions[-1]}) > 1
    undisturbed = unlimited.result.certificate  # the same figures, but a later look is held to a stricter level
    assert certificate.level == 1 - 0.05 / certificate.look > undisturbed.level
    assert certificate.low < undisturbed.low < undisturbed.high < certificate.high
    stricter = ("look", "level", "low", "high", "certified", "reason")
    assert replace(certificate, **{name: getattr(undisturbed, name) for name in stricter}) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("limit", [43, 66, 112, 181])
async def test_a_stop_by_the_budget_wastes_no_call_wherever_it_comes(tmp_path: Path, limit: int) -> None:
    settings = {"train.epochs": 1, "target.attempts": 2, "train.minibatch_size": 2}
    with small(p=0.1, latency=lambda u: 0.02 * u, test=8) as world:
        await train(world, tmp_path, {**settings, "budget.calls": limit})
        assert sum(world.calls.values()) <= limit
        await train(world, tmp_path, {**settings, "budget.calls": limit + 40})
        assert paid_twice(world) == 0


async def test_a_budget_of_tokens_stops_before_it_is_passed(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, {"budget.tokens": 20_000}, preset="paper")
        assert trained.result.exit_code == 4
        rollouts = trained.rows("rollouts.jsonl")
        tokens = sum(r["usage"]["input_tokens"] + r["usage"]["output_tokens"] for r in rollouts)
        assert 0 < tokens < 20_000
        assert "tokens" in str(trained.result.stopped)
        more = await train(world, tmp_path, {"budget.tokens": 4_000_000}, preset="paper")
    assert more.result.exit_code != 4


async def test_a_budget_of_dollars_stops_before_it_is_passed(tmp_path: Path) -> None:
    prices = {"target.price": (1.0, 2.0), "target.max_tokens": 50, "optimizer.price": (5.0, 10.0)}
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, {"budget.usd": 0.03, **prices}, preset="paper")
    assert trained.result.exit_code == 4
    assert 0 < sum(r["usage"]["usd"] for r in trained.rows("rollouts.jsonl")) <= 0.03
    assert "usd" in str(trained.result.stopped)


async def test_what_is_kept_for_the_certificate_leaves_a_small_budget_to_train_with(tmp_path: Path) -> None:
    """48 calls are kept, each at a modest guess of its answer: no max_tokens is set, and none was seen yet."""
    with small(q=1.0) as world:
        trained = await train(world, tmp_path, {"budget.tokens": 50_000, "train.epochs": 1})
    assert trained.result.exit_code == 0
    assert trained.result.certificate is not None


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_failed_attempt_counts_as_a_call_in_every_life_of_the_run(tmp_path: Path, preset: str) -> None:
    with quick_retries(3), small(faults=Faults(error=0.3), q=1.0) as world:
        for life in range(4):
            with suppress(InfraStopped):
                trained = await train(world, tmp_path, {"budget.calls": 100}, preset=preset)
                assert trained.result.exit_code == 4
            assert 0 < sum(world.calls.values()) <= 100, f"life {life}"
        run = Run.read(tmp_path / "run")
        assert run.usage["failed attempt"].calls == sum(seen.status == 500 for seen in world.requests)
        assert sum(run.usage.values(), Usage()).calls == sum(world.calls.values())
        run.close()


@pytest.mark.slow
async def test_a_certificate_that_the_budget_ends_leaves_an_orderly_result(tmp_path: Path) -> None:
    """Its share was kept back, but every test sample needs two attempts: it is stopped, and a larger budget goes on."""
    failed: set[tuple[str, str]] = set()

    def once(call: Call, sample: str | None) -> str | None:
        first = sample in test and (call.system, sample) not in failed
        failed.update({(call.system, sample)} if first and sample else ())
        return "error" if first else None

    with quick_retries(), Fated(once, q=1.0) as world:
        test = {ticket.id for ticket in world.tickets.values() if ticket.split == "test"}
        (tmp_path / "sound").mkdir()
        sound = await train(world, tmp_path / "sound", {"train.epochs": 1})
        total = len(answers(world))
        failed.clear()
        stopped = await train(world, tmp_path, {"train.epochs": 1, "budget.calls": total})
        assert stopped.result.exit_code == 4
        assert stopped.result.certificate is None
        assert stopped.result.uncertified == "the run was stopped before it"
        assert stopped.versions == sound.versions
        assert stopped.read("best_skill.md") == stopped.result.best.text != START
        assert "not certified: the run was stopped before it" in stopped.read("card.md")
        resumed = await train(world, tmp_path, {"train.epochs": 1, "budget.calls": 2 * total})
    assert resumed.outcome == sound.outcome


@pytest.mark.slow
async def test_each_further_version_certified_on_the_same_samples_is_held_to_more(tmp_path: Path) -> None:
    """Stopping and going on is no way to shop for a lucky certificate."""
    settings = {"train.epochs": 2, "train.batch_size": 16, "train.lr": 1, "train.lr_min": 1}
    with small(q=1.0) as world:
        looks: dict[str, int] = {}
        for limit in range(110, 310, 40):
            trained = await train(world, tmp_path, {**settings, "budget.calls": limit}, preset="paper")
            if (certificate := trained.result.certificate) is not None:
                assert certificate.look == looks.setdefault(trained.versions[-1], len(looks) + 1)
                says = f"look {certificate.look} at these samples" if certificate.look > 1 else "read once"
                assert says in trained.read("card.md")
    assert len(looks) > 2


async def test_a_run_that_was_stopped_in_its_baseline_can_be_exported(tmp_path: Path) -> None:
    with small() as world:
        stopped = await train(world, tmp_path, {"budget.calls": 50})  # 48 are kept for the certificate
        assert sum(world.calls.values()) == 2
    assert stopped.result.exit_code == 4
    run = Run.read(stopped.folder)
    assert not run.events("start")
    exported = best_of(run)
    run.close()
    assert (exported.text, exported.name) == (START, stopped.result.best.name)


async def test_a_budget_too_small_for_a_certificate_spends_no_more_than_the_probe(tmp_path: Path) -> None:
    with small() as world:
        trained = await train(world, tmp_path, {"budget.calls": 40})
        assert world.calls == {"optimizer": 1}
    assert trained.result.exit_code == 4
    assert "kept for the certificate" in str(trained.result.stopped)
