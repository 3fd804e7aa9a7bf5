"""Hard money: no call is made that could pass a limit, and what it overshoots is the error of the estimate only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.errors import BudgetExceeded, InfraError, UsageError
from skilltune.journal.run import Run
from skilltune.limits import Limits, parse_budget
from skilltune.metering.budget import FEW, Budget
from skilltune.metering.client import Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models import Reply, Request
from skilltune.models.retry import Refused, RetryPolicy, TimedOut
from skilltune.usage import Usage

CALL = Usage(1, 100, 50, usd=0.10)


def spend(budget: Budget, *costs: Usage, kind: str = "target", bound: Usage = CALL) -> None:
    for cost in costs:
        with budget.reserve(kind, bound) as spent:
            spent.append(cost)


# -- reading a budget


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("5 usd", {"usd": 5}),
        ("$5", {"usd": 5}),
        ("$ 0.50", {"usd": 0.5}),
        ("5USD", {"usd": 5}),
        ("2000 calls", {"calls": 2000}),
        ("2_000 calls", {"calls": 2000}),
        ("1 call", {"calls": 1}),
        ("2k calls", {"calls": 2000}),
        ("2M tokens", {"tokens": 2_000_000}),
        ("1.001k tokens", {"tokens": 1001}),
        ("4.03k tokens", {"tokens": 4030}),
        ("30 minutes", {"minutes": 30}),
        ("30minutes", {"minutes": 30}),
        ("1 minute", {"minutes": 1}),
        ("2.5 min", {"minutes": 2.5}),
        ("$5, 2M tokens,30 min", {"usd": 5, "tokens": 2_000_000, "minutes": 30}),
    ],
)
def test_a_budget_is_read(text, limits):
    assert parse_budget(text) == limits


@pytest.mark.parametrize(
    "text",
    ["", " , ", "5", "$", "usd", "5 eur", "$5 tokens", "5 usd 3 calls", "-5 usd", "1.2.3 usd", "... calls", "5 callsx"],
)
def test_what_cannot_be_read_says_how_to_write_it(text):
    with pytest.raises(UsageError, match="write"):
        parse_budget(text)


def test_a_limit_named_twice_is_refused():
    with pytest.raises(UsageError, match="limits usd twice"):
        parse_budget("5 usd, $6")


# -- reserving


@pytest.mark.parametrize(
    ("limits", "calls"),
    [(Limits(calls=3), 3), (Limits(tokens=450), 3), (Limits(tokens=449), 2), (Limits(usd=0.30), 3), (Limits(), 9)],
)
def test_pitfall_21_a_call_that_could_pass_a_limit_is_not_made(limits, calls):
    budget, made = Budget(limits, Usage()), 0
    for _ in range(9):
        with suppress(BudgetExceeded), budget.reserve("target", CALL) as spent:
            made += 1
            spent.append(CALL)
    assert made == calls
    assert budget.spent.calls == calls


def test_the_refusal_names_the_limit_and_how_to_raise_it():
    budget = Budget(Limits(calls=1), Usage())
    spend(budget, CALL)
    with pytest.raises(BudgetExceeded, match=r"budget of 1 calls; raise it with budget\.calls=") as caught:
        spend(budget, CALL)
    assert caught.value.exit_code == 4


def test_what_earlier_lives_spent_counts():
    budget = Budget(Limits(calls=10), Usage(calls=9))
    spend(budget, CALL)
    with pytest.raises(BudgetExceeded):
        spend(budget, CALL)


def test_calls_under_way_are_counted_before_they_return():
    budget = Budget(Limits(calls=5), Usage())
    with ExitStack() as under_way:
        for _ in range(5):
            under_way.enter_context(budget.reserve("target", CALL))
        with pytest.raises(BudgetExceeded):
            under_way.enter_context(budget.reserve("target", CALL))
    assert budget.spent == Usage()  # none of them reported a cost
    spend(budget, *[CALL] * 5)


def test_a_call_that_fails_gives_its_reservation_back():
    budget = Budget(Limits(calls=1), Usage())
    for _ in range(3):
        with pytest.raises(ConnectionError), budget.reserve("target", CALL):
            raise ConnectionError
    spend(budget, CALL)
    assert budget.spent == CALL


def test_a_failed_call_that_was_billed_is_counted():
    budget = Budget(Limits(usd=1), Usage())

    def billed_and_lost() -> None:
        with budget.reserve("target", CALL) as spent:
            spent.append(CALL)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        billed_and_lost()
    assert budget.spent == CALL


def test_estimates_follow_what_calls_of_a_kind_really_cost():
    """A bound of 1,000 tokens would allow 10 calls; calls of 100 tokens are allowed 100 times, but for the last."""
    budget = Budget(Limits(tokens=10_000), Usage())
    bound = Usage(1, 500, 500, usd=0.0)
    with pytest.raises(BudgetExceeded):
        spend(budget, *[Usage(1, 60, 40, usd=0.0)] * 1000, bound=bound)
    assert budget.spent.calls == 100
    other = Budget(Limits(tokens=10_000), Usage(0, 9_500))
    with pytest.raises(BudgetExceeded):  # another kind knows nothing yet and is judged by its bound
        spend(other, CALL, kind="optimizer", bound=bound)


def test_kinds_are_estimated_apart():
    budget = Budget(Limits(tokens=2_000), Usage())
    spend(budget, *[Usage(1, 5, 5)] * 10, kind="target", bound=Usage(1, 5, 5))
    with pytest.raises(BudgetExceeded):
        spend(budget, CALL, kind="optimizer", bound=Usage(1, 1_000, 1_000))
    spend(budget, Usage(1, 5, 5), kind="target", bound=Usage(1, 1_000, 1_000))


# -- the certificate's share


def test_what_is_held_for_the_certificate_cannot_be_spent_on_training():
    budget = Budget(Limits(calls=10), Usage())
    budget.hold("target", calls=4, guess=CALL)
    spend(budget, *[CALL] * 6)
    with pytest.raises(BudgetExceeded, match="kept for the certificate"):
        spend(budget, CALL, kind="optimizer")
    budget.release()
    spend(budget, *[CALL] * 4)
    with pytest.raises(BudgetExceeded) as caught:
        spend(budget, CALL)
    assert "certificate" not in str(caught.value)


def test_a_hold_counts_tokens_and_dollars_too():
    for limits in (Limits(tokens=650), Limits(usd=0.43)):  # a tenth more than the estimate is kept back
        budget = Budget(limits, Usage())
        budget.hold("target", calls=2, guess=CALL)
        spend(budget, *[CALL] * 2)
        with pytest.raises(BudgetExceeded):
            spend(budget, CALL)


def test_a_hold_follows_what_the_calls_really_cost():
    budget = Budget(Limits(tokens=10_000), Usage())
    budget.hold("target", calls=10, guess=Usage(1, 400, 400))
    assert budget.held == Usage(10, 4_400, 4_400)
    spend(budget, *[Usage(1, 40, 60)] * 5)
    assert budget.held == Usage(10, 440, 660)


def test_what_was_spent_beside_the_reserved_calls_counts():
    """A failed attempt is spent at once, while its call still holds the reservation for the next one."""
    budget = Budget(Limits(calls=3), Usage())
    with budget.reserve("target", CALL) as spent:
        for _ in range(2):
            budget.spend(Usage(calls=1))
            budget.check(Usage())
        with pytest.raises(BudgetExceeded):
            budget.check(Usage(calls=1))
        spent.append(CALL)
    assert budget.spent.calls == 3


# -- failed attempts


class Flaky:
    """A model of which the first `failures` attempts fail."""

    def __init__(self, failures: int, failure: type[InfraError] = Refused) -> None:
        self.failure = failure
        self.name, self.fingerprint = "openai@http://127.0.0.1:9/v1/m", "flaky"
        self.failures, self.asked = failures, 0

    async def complete(self, request: Request) -> Reply:
        self.asked += 1
        if self.asked <= self.failures:
            raise self.failure("503")
        return Reply("yes", Usage(1, 5, 5), "stop")

    async def aclose(self) -> None:
        """There is nothing to close."""


def client(model: Flaky, run: Run, calls: int | None = None) -> Client:
    endpoint = Endpoint(4, RetryPolicy(attempts=4, base_s=0.0))
    budget = Budget(Limits(calls=calls), sum(run.usage.values(), Usage()))
    return Client(model, Meter(endpoint, budget, run, "target"))


@pytest.mark.anyio
async def test_a_failed_attempt_is_counted_and_remembered_by_the_run(tmp_path):
    with Run.open(tmp_path) as run:
        flaky = client(Flaky(2), run)
        assert (await flaky(Request(()))).text == "yes"
        assert flaky.meter.budget.spent.calls == 3
        dead = client(Flaky(99), run)
        with pytest.raises(InfraError):
            await dead(Request(()))
        assert dead.meter.budget.spent.calls == 2 + 4
    with Run.open(tmp_path) as run, Run.open(tmp_path / "fork") as fork:
        assert run.usage == {"failed attempt": Usage(calls=6)}
        assert fork.adopt(run) == 0  # they belong to this run's history


@pytest.mark.anyio
async def test_the_last_call_of_a_budget_may_be_a_retry_and_none_is_made_beyond(tmp_path):
    for failures, limit in ((2, 3), (3, 3)):
        model = Flaky(failures)
        with Run.open(tmp_path / str(failures)) as run:
            flaky = client(model, run, limit)
            if failures < limit:
                await flaky(Request(()))
            else:
                with pytest.raises(BudgetExceeded):
                    await flaky(Request(()))
        assert model.asked == flaky.meter.budget.spent.calls == limit


# -- many at once


class Dear:
    """A model whose answers cost far more than a request lets one guess; it counts who is under way."""

    def __init__(self, answer_tokens: Callable[[], int] = lambda: 29_800) -> None:
        self.name, self.fingerprint = "openai@http://127.0.0.1:9/v1/m", "dear"
        self.answer_tokens = answer_tokens
        self.under_way = self.most = self.asked = self.at_first = 0

    async def complete(self, request: Request) -> Reply:
        self.asked, self.under_way = self.asked + 1, self.under_way + 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.002)
        self.under_way -= 1
        self.at_first = self.at_first or self.most
        return Reply("yes", Usage(1, 200, self.answer_tokens(), usd=0.30))

    async def aclose(self) -> None:
        """There is nothing to close."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("limits", "spent"),
    [(Limits(usd=6.0), "usd"), (Limits(tokens=600_000), "tokens"), (Limits(calls=20), "calls")],
    ids=["usd", "tokens", "calls"],
)
async def test_pitfall_37_sixteen_workers_do_not_pass_a_budget_however_dear_the_calls_are(
    tmp_path: Path, limits: Limits, spent: str
) -> None:
    """300 calls wait for 16 slots; each costs 27 times its first estimate. 20 of them fit."""
    model = Dear()
    with Run.open(tmp_path) as run:
        budget = Budget(limits, Usage())
        call = Client(model, Meter(Endpoint(16), budget, run, "target"), (1.0, 10.0))
        ends = await asyncio.gather(*(call(Request(())) for _ in range(300)), return_exceptions=True)
        assert model.asked == sum(isinstance(end, Reply) for end in ends) == 20
        assert getattr(budget.spent, spent) <= getattr(limits, spent) + 1e-9
        assert model.most == 16
        assert model.at_first == (16 if spent == "calls" else 1)  # the price of the first was not known
        with pytest.raises(BudgetExceeded):
            await call(Request(()))
    assert model.asked == 20


@pytest.mark.anyio
async def test_what_fails_first_does_not_hold_up_the_others_one_by_one(tmp_path: Path) -> None:
    model = Dear()
    failing = iter([True])

    async def complete(request: Request, answer: Callable[[Request], Awaitable[Reply]] = model.complete) -> Reply:
        if next(failing, False):
            raise TimedOut("no answer")
        return await answer(request)

    model.complete = complete  # type: ignore[method-assign]
    with Run.open(tmp_path) as run:
        policy = RetryPolicy(attempts=1)
        meter = Meter(Endpoint(8, policy), Budget(Limits(usd=99), Usage()), run, "target")
        call = Client(model, meter, (1.0, 10.0))
        ends = await asyncio.gather(*(call(Request(())) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(end, TimedOut) for end in ends) == 1
    assert model.most == 8


def test_an_estimate_survives_the_end_of_a_process() -> None:
    known = {"target": (10, Usage(10, 100, 29_900, usd=3.0))}
    budget = Budget(Limits(tokens=40_000), Usage(10, 100, 29_900, usd=3.0), known=known)
    with ExitStack() as under_way:
        for _ in range(3):
            under_way.enter_context(budget.reserve("target", CALL))
        with pytest.raises(BudgetExceeded):
            under_way.enter_context(budget.reserve("target", CALL))


def test_a_unit_of_work_may_make_any_number_of_calls() -> None:
    """An agent's rollout is reserved once, with the calls that its rollouts made so far."""
    budget, rollout = Budget(Limits(calls=100), Usage()), Usage(12, 1_000, 500, usd=0.5)
    made = 0
    with pytest.raises(BudgetExceeded):
        for _ in range(99):
            with budget.reserve("target", CALL) as spent:
                made += 1
                spent.append(rollout)
    assert (made, budget.spent.calls) == (8, 96)
    assert budget.estimate("target", CALL).calls == 12
    budget.hold("target", 2, CALL)
    assert budget.held.calls == 24


@pytest.mark.anyio
async def test_the_certificates_share_is_there_after_a_training_of_uneven_calls(tmp_path: Path) -> None:
    costs = random.Random(1)
    model = Dear(lambda: costs.choice([500, 2_000, 20_000, 40_000]))
    with Run.open(tmp_path) as run:
        budget = Budget(Limits(tokens=2_000_000), Usage())
        budget.hold("target", 40, Usage(1, 100, 100))
        call = Client(model, Meter(Endpoint(16), budget, run, "target"), (1.0, 10.0))
        training = await asyncio.gather(*(call(Request(())) for _ in range(600)), return_exceptions=True)
        assert 40 < sum(isinstance(end, Reply) for end in training) < 100
        budget.release()
        model.answer_tokens = lambda: 15_625  # the mean
        assert len([await call(Request(())) for _ in range(40)]) == 40


def test_the_hint_names_a_budget_for_the_rest_of_the_run() -> None:
    for limits, enough in (
        (Limits(calls=8), "budget.calls=220"),
        (Limits(tokens=1_200), "budget.tokens=33000"),
        (Limits(usd=0.8), "budget.usd=22"),
    ):
        budget = Budget(limits, Usage())
        budget.rest = lambda: ("target", 192, CALL)
        spend(budget, *[CALL] * 8)
        with pytest.raises(BudgetExceeded) as stopped:
            spend(budget, CALL)
        assert f"raise it with {enough} and run the same command to go on" in str(stopped.value)
        assert "192 more target calls, its certificate included" in str(stopped.value)


# -- prices that nobody knows


def test_pitfall_21_an_unpriced_model_is_refused_under_a_dollar_budget_before_it_is_called():
    budget = Budget(Limits(usd=5), Usage())
    made: list[Usage] = []
    with pytest.raises(UsageError, match=r"price of the target model is unknown.*\[target\] price"):
        made = budget.reserve("target", Usage(1, 10, 10, usd=None)).__enter__()
    assert not made
    with pytest.raises(UsageError, match="price of the optimizer model"):
        budget.require_price("optimizer", Usage(1, 10, 10, usd=None))
    with pytest.raises(UsageError, match=r'price of codex/x is unknown.*`\{model = "codex/x", price = \[') as other:
        budget.require_price("target codex/x", Usage(1, 10, 10, usd=None))
    assert "[target" not in str(other.value)
    budget.require_price("optimizer", CALL)
    Budget(Limits(calls=1), Usage()).require_price("optimizer", Usage(1, 10, 10, usd=None))
    assert budget.spent == Usage()


def test_pitfall_21_dollars_that_were_spent_unpriced_do_not_switch_the_dollar_limit_off():
    earlier = Budget(Limits(usd=5), Usage(100, usd=None))
    during = Budget(Limits(usd=5), Usage())
    spend(during, Usage(1, 10, 10, usd=None))  # the bound had a price, the reply had none
    for budget in (earlier, during):
        with pytest.raises(UsageError, match="no known price"):
            spend(budget, CALL)


def test_without_a_dollar_limit_unpriced_calls_are_counted_in_calls_and_tokens():
    budget = Budget(Limits(calls=7, tokens=200), Usage())
    unpriced = Usage(1, 10, 10, usd=None)
    with pytest.raises(BudgetExceeded):
        spend(budget, *[unpriced] * 10, bound=unpriced)
    assert budget.spent == Usage(7, 70, 70, usd=None)


def test_minutes_are_wall_clock(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = Budget(Limits(minutes=2), Usage())
    spend(budget, CALL)
    now += 119
    spend(budget, CALL)
    now += 2
    with pytest.raises(BudgetExceeded, match="2 minutes"):
        spend(budget, CALL)


# -- the promise

LIMIT = 3_000


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(["target", "optimizer"]), st.integers(1, 300), st.integers(1, 400)
        ),
        max_size=60,
    )
)
def test_spent_never_passes_a_limit_by_more_than_the_estimation_error_of_the_calls_in_flight(events):
    """Each event starts a call (bound, then real cost) after `n` calls of those under way have returned, first in
    first out. When a call was admitted, spent + estimates of all under way ≤ limit; so from then on the overshoot is
    at most what those calls cost beyond their estimates."""
    budget = Budget(Limits(tokens=LIMIT, calls=40), Usage())
    seen: dict[str, list[int]] = {"target": [], "optimizer": []}
    flying: list[tuple[str, ExitStack, list[Usage], int, int]] = []  # …, estimate, real cost
    slack = 0

    def land() -> None:
        kind, stack, spent, _, cost = flying.pop(0)
        spent.append(Usage(1, cost, 0))
        seen[kind].append(cost)
        stack.close()
        assert budget.spent.tokens <= LIMIT + slack
        assert budget.spent.calls + len(flying) <= 40

    for returned, kind, bound, cost in events:
        for _ in range(min(returned, len(flying))):
            land()
        costs = seen[kind]
        mean = sum(costs) // len(costs) if costs else 0
        estimate = max(mean, bound) if len(costs) < FEW else mean
        fits = budget.spent.tokens + sum(call[3] for call in flying) + estimate <= LIMIT
        stack = ExitStack()
        try:
            spent = stack.enter_context(budget.reserve(kind, Usage(1, bound, 0)))
        except BudgetExceeded:
            assert not fits or budget.spent.calls + len(flying) == 40
            continue
        assert fits
        flying.append((kind, stack, spent, estimate, cost))
        slack = sum(max(0, call[4] - call[3]) for call in flying)
    while flying:
        land()
