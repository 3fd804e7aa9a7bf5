"""The world must be right before anything is tested against it: its truth, its persona, its faults, its determinism."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from skilltune.errors import CallConfigError
from skilltune.models import Request, system, user
from skilltune.models.build import build_model
from skilltune.samples import Sample
from world import HARMS, OCCASIONS, Faults, World, guess_stage, lognormal

pytestmark = pytest.mark.anyio
Json = dict[str, Any]


@pytest.fixture
def world() -> Iterator[World]:
    with World(classes=6, train=36, select=18, test=36, q=1.0, sloppy=0.0) as world:
        yield world


def post(url: str, body: Json, *, timeout: float = 10, **headers: Any) -> Json:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)


def ask(world: World, skill: str, sample: Json, **headers: Any) -> str:
    """The target's answer, over HTTP."""
    system = [{"role": "system", "content": skill}] if skill else []
    body = {"model": "target", "messages": [*system, {"role": "user", "content": sample["input"]}]}
    return post(f"{world.url}/chat/completions", body, **headers)["choices"][0]["message"]["content"]


def think(world: World, stage: str, prompt: str, **headers: Any) -> Json:
    """The optimizer's answer to a stage, over HTTP."""
    form = {"type": "json_schema", "json_schema": {"name": stage, "strict": True, "schema": {"type": "object"}}}
    messages = [{"role": "system", "content": "Improve the skill."}, {"role": "user", "content": prompt}]
    body = {"model": "optimizer", "messages": messages, "response_format": form}
    reply = post(f"{world.url}/chat/completions", body, **headers)
    return json.loads(reply["choices"][0]["message"]["content"])


def evidence(skill: str, rollouts: list[tuple[Json, str, float]], budget: int = 4, rejected: str = "") -> str:
    """A reflect prompt as contracts.md lays it out."""
    shown = "\n".join(
        f'<trajectory sample="{s["id"]}" score="{score:.2f}" attempt="0" outcome="ok">\n[user] {s["input"]}\n'
        f"[assistant] {answer}\n</trajectory>"
        for s, answer, score in rollouts
    )
    head = f"<skill>\n{skill}\n</skill>\n<edit_budget>{budget}</edit_budget>\n<notes></notes>\n"
    return f"{head}<rejected>{rejected}</rejected>\n{shown}"


def roll(world: World, skill: str, samples: list[Json]) -> list[tuple[Json, str, float]]:
    return [(s, answer := ask(world, skill, s), float(answer == s["target"])) for s in samples]


def of(world: World, split: str) -> list[Json]:
    return [sample for sample in world.samples() if sample["split"] == split]


def status_of(world: World, body: Json, path: str = "/v1/chat/completions", **headers: Any) -> tuple[int, Json, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(world.root + path, body, **headers)
    with caught.value as error:
        return error.code, json.load(error), error.headers


def hello(model: str = "target", text: str = "Hello") -> Json:
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}]}


# Truth


def test_samples_are_valid_and_their_answers_cannot_be_copied_from_others(world: World, tmp_path: Path) -> None:
    lines = world.write(tmp_path / "world.jsonl").read_text().splitlines()
    samples = [Sample.model_validate_json(line) for line in lines]
    assert [sum(s.split == split for s in samples) for split in ("train", "select", "test")] == [36, 18, 36]
    assert len({s.id for s in samples}) == len({s.target for s in samples}) == len({s.text for s in samples}) == 90
    assert not any(s.target in other.text for s in samples for other in samples)
    for s in samples:
        assert s.id in s.text
        assert s.metadata["class"] in s.text
    changes = sum(one.split != two.split for one, two in pairwise(samples))
    assert changes > 30, "an id must not tell the split"


def test_true_score_counts_the_rules_held_and_a_harmful_phrase_spoils_all_of_them(world: World) -> None:
    assert world.true_score("") == 0
    skill = "# Desk\n"
    for kind in range(6):
        skill += f"- {world.rule(kind)}\n"
        assert all(world.true_score(skill, split) == pytest.approx((kind + 1) / 6) for split in ("train", "test"))
    wrapped = skill.replace(" answer with", "\n  answer with")
    assert world.true_score(wrapped) == 1, "wrapping a line changes no rule"
    variants = {world.harmful(i) for i in range(len(HARMS) * len(OCCASIONS))}
    assert len(variants) == 12
    assert all(world.true_score(f"{skill}\n{harm}") == 0 for harm in variants)
    assert World(seed=1).samples() != World(seed=2).samples()
    assert World(seed=1).samples() == World(seed=1).samples()


def test_target_solves_exactly_what_the_true_score_says(world: World) -> None:
    skill = f"{world.rule(0)}\n\n{world.rule(3)}"
    for text in ("", skill, f"{skill}\n{world.harmful(4)}"):
        rollouts = roll(world, text, of(world, "test"))
        assert sum(score for *_, score in rollouts) / len(rollouts) == pytest.approx(world.true_score(text))
        assert all(answer.startswith("wrong-") for _, answer, score in rollouts if not score)


@pytest.mark.slow
def test_noise_flips_at_rate_p_in_both_directions_and_is_fixed_by_the_key() -> None:
    with World(classes=4, p=0.2) as world:
        skill = "\n".join(world.rule(k) for k in range(4))
        for text in (skill, ""):
            solved = [ask(world, text, s, **{"Idempotency-Key": "k0"}) == s["target"] for s in world.samples()]
            again = [ask(world, text, s, **{"Idempotency-Key": "k0"}) == s["target"] for s in world.samples()]
            other = [ask(world, text, s, **{"Idempotency-Key": "k1"}) == s["target"] for s in world.samples()]
            assert solved == again
            assert solved != other
            assert sum(solved) / len(solved) == pytest.approx(0.8 if text else 0.2, abs=0.08)
        sample = world.samples()[0]
        draws = [ask(world, skill, sample) == sample["target"] for _ in range(60)]
        assert 30 <= sum(draws) < 60, "without a key, repeated requests are separate draws"


def test_results_do_not_depend_on_the_number_of_workers_or_their_order() -> None:
    async def one(world: World, sample: Json) -> str:
        answer = await asyncio.to_thread(ask, world, world.rule(1), sample, **{"Idempotency-Key": "a"})
        return f"{sample['id']}: {answer}"

    async def many(world: World, samples: list[Json], workers: int) -> list[str]:
        gate = asyncio.Semaphore(workers)

        async def bounded(sample: Json) -> str:
            async with gate:
                return await one(world, sample)

        return sorted(await asyncio.gather(*(bounded(sample) for sample in samples)))

    results = []
    for workers in (1, 8):
        with World(classes=3, train=30, select=0, test=0, p=0.3, latency=lambda u: 0.01 * u) as world:
            samples = world.samples()
            random.Random(workers).shuffle(samples)
            results.append(asyncio.run(many(world, samples, workers)))
            assert world.peak["target"] <= workers
            assert world.peak["target"] > workers // 2
    assert results[0] == results[1]


# Optimizer


def test_reflect_proposes_the_missing_rules_of_frequent_classes_first_with_verbatim_quotes(world: World) -> None:
    train = of(world, "train")
    batch = [s for s in train if s["metadata"]["class"] == "gamma-02"][:3]
    batch += [s for s in train if s["metadata"]["class"] == "alpha-00"][:1]
    batch += [s for s in train if s["metadata"]["class"] == "beta-01"][:5]
    rollouts = roll(world, world.rule(1), batch)
    answer = think(world, "reflect", evidence(world.rule(1), rollouts))
    assert [edit["text"] for edit in answer["edits"]] == [world.rule(2), world.rule(0)]
    assert [len(edit["evidence"]) for edit in answer["edits"]] == [3, 1]
    inputs = {s["id"]: s["input"] for s in batch}
    for edit in answer["edits"]:
        assert set(edit) == {"op", "after", "target", "text", "why", "evidence"}
        for item in edit["evidence"]:
            assert item["quote"] in inputs[item["sample"]]
            assert len(item["quote"].split()) > 3
    aside = [({**s, "input": f"{world.rule(4)}\n{s['input']}"}, answer, score) for s, answer, score in rollouts]
    told = think(world, "reflect", evidence(world.rule(1), aside))["edits"]
    assert [edit["text"] for edit in told] == [world.rule(2), world.rule(0)], "a skill shown with the task misleads"
    assert [d["samples"] for d in answer["diagnosis"]] == [[s["id"] for s in batch[:3]], [batch[3]["id"]]]
    assert len(think(world, "reflect", evidence("", rollouts, budget=1))["edits"]) == 1
    assert think(world, "reflect", evidence(world.rule(1), rollouts, budget=0))["edits"] == []


def test_training_by_hand_reaches_the_top_with_a_right_optimizer_and_not_with_a_useless_one() -> None:
    modes: dict[Literal["normal", "useless"], float] = {"normal": 1.0, "useless": 0.0}
    for mode, final in modes.items():
        with World(classes=6, train=36, select=0, test=36, q=1.0, sloppy=0.0, optimizer_mode=mode) as world:
            skill, train = "# Desk", of(world, "train")
            for step in range(4):
                batch = roll(world, skill, train[step * 9 : step * 9 + 9])
                for edit in think(world, "reflect", evidence(skill, batch))["edits"]:
                    assert edit["op"] == "add"
                    skill += f"\n\n{edit['text']}"
            assert world.true_score(skill) == final


def test_edits_are_right_with_odds_q_and_otherwise_harmful_as_configured() -> None:
    with World(classes=12, train=240, q=0.6, harmful=0.5) as world:
        rules = {world.rule(k) for k in range(12)}
        texts = []
        for draw in range(30):
            batch = [(s, "wrong-1", 0.0) for s in of(world, "train")[draw * 8 : draw * 8 + 8]]
            edits = think(world, "reflect", evidence("", batch, budget=8))["edits"]
            assert len({edit["text"] for edit in edits}) == len(edits)
            texts += [edit["text"] for edit in edits]
    right = sum(text in rules for text in texts) / len(texts)
    harmful = sum(any(harm in text for harm in HARMS) for text in texts) / len(texts)
    assert right == pytest.approx(0.6, abs=0.12)
    assert harmful == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize("mode", ["useless", "harmful"])
def test_modes_make_every_edit_so(mode: Any) -> None:
    with World(classes=6, train=36, optimizer_mode=mode) as world:
        batch = [(s, "wrong-1", 0.0) for s in of(world, "train")]
        edits = think(world, "reflect", evidence("", batch, budget=6))["edits"]
        assert len(edits) == 6
        assert all(any(harm in edit["text"] for harm in HARMS) == (mode == "harmful") for edit in edits)
        assert world.true_score("\n".join(edit["text"] for edit in edits)) == 0
        cured = think(world, "reflect", evidence(world.harmful(), batch))["edits"]
        assert not any(edit["op"] == "delete" for edit in cured)


def test_rejected_edits_are_not_proposed_again(world: World) -> None:
    batch = [(s, "wrong-1", 0.0) for s in of(world, "train")]
    rejected = json.dumps([{"op": "add", "text": world.rule(2)}])
    texts = [e["text"] for e in think(world, "reflect", evidence("", batch, budget=6, rejected=rejected))["edits"]]
    assert world.rule(2) not in texts
    assert {world.rule(k) for k in (0, 1, 3, 4, 5)} < set(texts)
    with World(optimizer_mode="harmful") as bad:
        every = "\n".join(bad.harmful(i) for i in range(12))
        edit = think(bad, "reflect", evidence("", batch[:1], rejected=every))["edits"][0]
        assert not any(harm in edit["text"] for harm in HARMS)


def test_successes_call_for_no_edit_with_odds_q() -> None:
    with World(classes=6, train=60, q=0.7) as world:
        counts = []
        for draw in range(40):
            batch = [(s, s["target"], 1.0) for s in of(world, "train")[draw : draw + 4]]
            answer = think(world, "reflect", evidence("", batch))
            assert answer["diagnosis"] == []
            counts.append(len(answer["edits"]))
            assert not any(world.rule(k) == e["text"] for e in answer["edits"] for k in range(6))
    assert set(counts) == {0, 1}
    assert sum(counts) / 40 == pytest.approx(0.3, abs=0.2)


def test_a_harmful_line_is_found_and_deleted_when_everything_fails(world: World) -> None:
    skill = f"# Desk\n\n- {world.rule(0)}\n- {world.harmful(5)}\n"
    batch = roll(world, skill, of(world, "train")[:6])
    edit = think(world, "reflect", evidence(skill, batch))["edits"][0]
    assert (edit["op"], edit["target"], edit["text"]) == ("delete", f"- {world.harmful(5)}", None)
    assert world.true_score(skill.replace(edit["target"], "")) > world.true_score(skill)


def test_sloppy_edits_hang_on_a_line_that_stands_once_in_the_skill() -> None:
    with World(classes=6, train=36, q=1.0, sloppy=1.0) as world:
        skill = f"---\nname: desk\ndescription: d\n---\n# Desk\n\nBe brief.\n\n- {world.rule(0)}"
        batch = [(s, "wrong-1", 0.0) for s in of(world, "train")]
        edits = think(world, "reflect", evidence(skill, batch, budget=6))["edits"]
        for edit in edits:
            assert skill.count(edit["after"] or edit["target"]) == 1
        assert {edit["op"] for edit in edits} == {"add", "replace"}
        replaced = skill
        for edit in edits:
            if edit["op"] == "replace":
                replaced = replaced.replace(edit["target"], edit["text"], 1)
        assert world.true_score(replaced) == (1 + sum(e["op"] == "replace" for e in edits)) / 6


def test_misquotes_stand_in_no_trajectory() -> None:
    with World(classes=6, train=36, misquote=1.0) as world:
        batch = [(s, "wrong-1", 0.0) for s in of(world, "train")[:6]]
        edits = think(world, "reflect", evidence("", batch))["edits"]
        quotes = [item["quote"] for edit in edits for item in edit["evidence"]]
        assert quotes
        assert not any(quote in s["input"] for quote in quotes for s, *_ in batch)


def test_merge_rank_and_learning_rate(world: World) -> None:
    edits = [{"op": "add", "after": None, "target": None, "text": text} for text in ("Be kind.", world.rule(0), "b")]
    patches = "".join(
        f'<patch id="{i}">{json.dumps({"edits": part})}</patch>' for i, part in enumerate([edits[:2], edits[1:]])
    )
    assert think(world, "merge", f"<skill>x</skill>\n{patches}")["edits"] == edits
    assert think(world, "merge", f"<skill>x</skill><edit_budget>2</edit_budget>\n{patches}")["edits"] == edits[:2]
    listed = "".join(f'<edit index="{i}">{json.dumps(edit)}</edit>' for i, edit in enumerate(edits))
    order = think(world, "rank", f"<skill>x</skill><edit_budget>1</edit_budget>{listed}")["order"]
    assert order[0] == 1
    assert sorted(order) == [0, 1, 2]
    rate = think(world, "learning_rate", f"<skill>x</skill><edit_budget>3</edit_budget>{listed}")
    assert 1 <= rate["edits"] <= 3
    assert rate["reason"]


def test_rewrite_works_the_suggestions_in(world: World) -> None:
    suggestions = [
        {"op": "add", "text": world.rule(0)},
        {"op": "delete", "target": "- Be slow.\n"},
    ]
    listed = "".join(f'<edit index="{i}">{json.dumps(edit)}</edit>' for i, edit in enumerate(suggestions))
    answer = think(world, "rewrite", f"<skill>\n# Desk\n- Be slow.\n- Be kind.\n</skill>{listed}")
    assert world.rule(0) in answer["skill"]
    assert "slow" not in answer["skill"]
    assert "# Desk" in answer["skill"]
    batch = [(s, "wrong-1", 0.0) for s in of(world, "train")]
    assert world.true_score(think(world, "rewrite", evidence("# Desk", batch, budget=6))["skill"]) == 1


def test_slow_update_guides_toward_a_class_that_still_fails(world: World) -> None:
    fails, passes = of(world, "train")[:2]
    pairs = "".join(
        f'<pair sample="{s["id"]}" before="0.00" after="{after:.2f}">{s["input"]}</pair>'
        for s, after in ((passes, 1), (fails, 0))
    )
    answer = think(world, "slow_update", f"<skill># Desk</skill>{pairs}")
    assert answer["guidance"] == world.rule(world.names.index(fails["metadata"]["class"]))
    assert answer["reasoning"]
    assert think(world, "notes", f"<skill># Desk</skill>{pairs}")["notes"]


def test_judge_decides_by_containment(world: World) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "judge", "schema": {}}}
    text = '<checks>\n- Says "total: 7"\n- thanks\n</checks>\n<answer>The total: 7.</answer>'
    reply = post(f"{world.url}/chat/completions", {**hello("judge", text), "response_format": form})
    verdicts = json.loads(reply["choices"][0]["message"]["content"])["verdicts"]
    assert [(v["check"], v["passed"]) for v in verdicts] == [('Says "total: 7"', True), ("thanks", False)]
    assert world.calls == {"judge": 1}, "the judge is not the optimizer: it may see test samples"


def test_optimizer_saw_finds_what_was_sent_anywhere_and_nothing_else(world: World) -> None:
    train, test = of(world, "train")[:3], of(world, "test")
    think(world, "reflect", evidence("", roll(world, "", [*train, *test])[:3]))
    patch = json.dumps({"edits": [{"op": "add", "text": 'say "né"'}]})
    think(world, "merge", f'<patch id="0">{patch}</patch>')
    assert all(world.optimizer_saw(s["id"]) and world.optimizer_saw(s["input"]) for s in train)
    assert world.optimizer_saw('say "né"')
    assert not any(world.optimizer_saw(s["id"]) for s in test)
    assert not any(world.optimizer_saw(s["target"]) for s in [*train, *test])


# Dialects


def test_anthropic_dialect_with_a_forced_tool(world: World) -> None:
    sample = of(world, "test")[0]
    rules = "\n".join(world.rule(k) for k in range(6))
    content = [{"type": "text", "text": sample["input"]}]
    messages = [{"role": "user", "content": content}]
    asked = {"model": "target", "max_tokens": 50, "system": [{"type": "text", "text": rules}], "messages": messages}
    reply = post(f"{world.root}/v1/messages", asked)
    assert reply["content"] == [{"type": "text", "text": sample["target"]}]
    assert reply["stop_reason"] == "end_turn"
    assert reply["usage"]["input_tokens"] == -(-len(rules + sample["input"]) // 4)
    batch = [(s, "wrong-1", 0.0) for s in of(world, "train")[:4]]
    forced = {
        "tools": [{"name": "reflect", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "reflect"},
    }
    reply = post(f"{world.root}/v1/messages", hello("optimizer", evidence("", batch)) | forced | {"max_tokens": 9999})
    assert reply["stop_reason"] == "tool_use"
    assert reply["content"][0]["name"] == "reflect"
    assert reply["content"][0]["input"]["edits"][0]["text"].startswith("For ")
    assert world.requests[-1].stage == "reflect"
    assert world.requests[-1].api == "anthropic"


def test_max_tokens_cuts_the_answer_and_says_so(world: World) -> None:
    reply = post(f"{world.url}/chat/completions", hello("optimizer") | {"max_tokens": 1})
    assert reply["choices"][0] | {"message": reply["choices"][0]["message"]["content"]} == {
        "index": 0,
        "message": "Read",
        "finish_reason": "length",
    }


STAGE_FIELDS = {
    "reflect": {"diagnosis": {}, "edits": {"quote": {}, "why": {}}},
    "merge": {"edits": {"quote": {}, "why": {}}},
    "rank": {"order": {}},
    "learning_rate": {"edits": {}, "reason": {}},
    "rewrite": {"skill": {}, "summary": {}},
    "slow_update": {"reasoning": {}, "guidance": {}},
    "notes": {"notes": {}},
    "judge": {"verdicts": {"check": {}, "passed": {}, "evidence": {}}},
}


def test_an_endpoint_without_structured_output_refuses_it_and_reads_the_schema_from_the_prompt() -> None:
    evidence_tags = '<notes>{"guidance": 1, "order": 2}</notes><patch id="0">{"edits": [], "diagnosis": []}</patch>'
    for stage, names in STAGE_FIELDS.items():
        form = f"Answer as JSON: {json.dumps(names)}"
        assert guess_stage("", f"{evidence_tags}\n{form}") == stage
        assert guess_stage(f"Mind the <notes>. {form}", evidence_tags) == stage
    with World(classes=6, train=36, q=1.0, structured=False) as world:
        prompt = evidence("", [(s, "wrong-1", 0.0) for s in of(world, "train")[:4]])
        form = {"type": "json_schema", "json_schema": {"name": "reflect", "schema": {}}}
        code, body, _ = status_of(world, hello("optimizer", prompt) | {"response_format": form})
        assert code == 400
        assert "response_format" in body["error"]["message"]
        asked = hello("optimizer", f"{prompt}\n{json.dumps(STAGE_FIELDS['reflect'])}") | {"max_tokens": 9999}
        text = post(f"{world.url}/chat/completions", asked)["choices"][0]["message"]["content"]
        assert json.loads(text.split("```json")[1].split("```")[0])["edits"]
        assert [r.stage for r in world.requests] == ["reflect", "reflect"]


async def test_both_dialects_serve_the_models_of_the_library(world: World) -> None:
    sample = of(world, "test")[0]
    rules = "\n".join(world.rule(k) for k in range(6))
    asked = Request((system(rules), user(sample["input"])), max_tokens=50)
    for name in (f"openai@{world.url}/target", f"anthropic@{world.root}/target"):
        model = build_model(name)
        reply = await model.complete(asked)
        assert reply.text == sample["target"]
        assert reply.usage.tokens > 0
        await model.aclose()
    unknown = build_model(f"openai@{world.url}/gpt-0")
    with pytest.raises(CallConfigError, match="404"):
        await unknown.complete(asked)
    await unknown.aclose()
    with urllib.request.urlopen(f"{world.url}/models", timeout=5) as answer:
        assert {model["id"] for model in json.load(answer)["data"]} == {"target", "optimizer", "judge"}
    assert all(request.key for request in world.requests)


# Faults


def test_a_wrong_key_is_401_an_unknown_model_404_and_nonsense_400() -> None:
    api_key: Json = {"x-api-key": "secret"}
    with World(key="secret") as world:
        assert status_of(world, hello(), authorization="Bearer other")[0] == 401
        assert status_of(world, hello())[0] == 401
        assert post(f"{world.url}/chat/completions", hello(), authorization="Bearer secret")["choices"]
        assert post(f"{world.root}/v1/messages", hello(), **api_key)["content"]
        code, body, _ = status_of(world, hello("gpt-0"), authorization="Bearer secret")
        assert (code, body["error"]["type"]) == (404, "not_found_error")
        code, body, _ = status_of(world, hello("gpt-0"), "/v1/messages", **api_key)
        assert (code, body["type"]) == (404, "error")
        assert status_of(world, {"model": "target"})[0] == 400
        assert status_of(world, hello(), "/v1/nowhere")[0] == 404
        merge = {"response_format": {"type": "json_schema", "json_schema": {"name": "merge"}}}
        nonsense = hello("optimizer", '<patch id="0">not JSON</patch>') | merge
        assert status_of(world, nonsense, authorization="Bearer secret")[0] == 400
        assert (world.calls["target"], world.answered["target"]) == (4, 2)


def test_each_fault_looks_on_the_wire_as_it_does_in_life() -> None:
    with World() as world:
        world.faults = Faults(error=1.0)
        assert status_of(world, hello())[0] == 500
        world.faults = Faults(limit=1.0, retry_after=2)
        code, _, headers = status_of(world, hello())
        assert (code, headers["retry-after"]) == (429, "2")
        world.faults = Faults(drop=1.0)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            post(f"{world.url}/chat/completions", hello())
        world.faults = Faults(truncate=1.0)
        with pytest.raises(http.client.IncompleteRead):
            post(f"{world.url}/chat/completions", hello())
        world.faults = Faults(malformed=1.0)
        with pytest.raises(ValueError, match=r"decode|Unterminated|utf"):
            post(f"{world.url}/chat/completions", hello())
        world.faults = Faults(empty=1.0)
        assert post(f"{world.url}/chat/completions", hello())["choices"][0]["message"]["content"] == ""
        world.faults = Faults(no_choices=1.0)
        assert post(f"{world.url}/chat/completions", hello())["choices"] == []
        world.faults = Faults(garbled=1.0)
        with pytest.raises(json.JSONDecodeError):
            think(world, "reflect", evidence("", []))
        assert ask(world, world.rule(0), world.samples()[0]), "a garbled target would be a wrong answer, not a fault"
        world.faults = Faults(hang=1.0, hang_s=0.2)
        with pytest.raises(TimeoutError):
            post(f"{world.url}/chat/completions", hello(), timeout=0.05)
        world.faults = Faults(outage=(0, 1e9))
        assert status_of(world, hello())[0] == 503
        world.faults = Faults()
        assert post(f"{world.url}/chat/completions", hello())["choices"]
        named = [r.fault for r in world.requests if r.fault and r.fault != "hang"]
        assert named == ["error", "limit", "drop", "truncate", "malformed", "empty", "no_choices", "garbled", "outage"]
        assert world.answered == {"target": 2, "optimizer": 0}


def test_faults_are_drawn_anew_per_attempt_never_change_an_answer_and_repeat_exactly() -> None:
    def attempts(world: World) -> list[tuple[int, str]]:
        found = []
        for sample in of(world, "train"):
            for tries in range(1, 20):
                try:
                    found.append((tries, ask(world, world.rule(0), sample, **{"Idempotency-Key": "x"})))
                    break
                except urllib.error.HTTPError as error:
                    error.close()
        return found

    runs = []
    for faults in (Faults(), Faults(error=0.3, limit=0.2), {"target": Faults(error=0.3, limit=0.2)}):
        with World(classes=3, train=60, p=0.2, faults=faults) as world:
            runs.append(attempts(world))
    calm, rough, again = runs
    assert rough == again
    assert [answer for _, answer in calm] == [answer for _, answer in rough]
    assert sum(tries for tries, _ in rough) / 60 == pytest.approx(2.0, abs=0.5)


def test_latency_follows_its_distribution_and_role() -> None:
    quantiles = [lognormal(0.2, 0.5)((i + 0.5) / 1000) for i in range(1000)]
    assert sorted(quantiles)[500] == pytest.approx(0.2, rel=0.01)
    assert sorted(quantiles)[841] == pytest.approx(0.2 * 2.718281828**0.5, rel=0.02)
    with World(latency={"target": 0.1}) as world:
        post(f"{world.url}/chat/completions", hello())
        post(f"{world.url}/chat/completions", hello("optimizer"))
        slow, fast = world.requests
        assert slow.ended - slow.began >= 0.1
        assert fast.ended - fast.began < 0.05


# The server itself


def test_it_ends_at_once_with_requests_open_and_starts_again_on_its_port() -> None:
    world = World(latency=60)
    with world:
        port = world.port
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/chat/completions", json.dumps(hello()))
        while not world.calls["target"]:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    connection.close()
    world.latency = 0.0
    with world:
        assert world.port == port
        assert post(f"{world.url}/chat/completions", hello())["choices"]
        with pytest.raises(OSError, match="in use"), World(port=port):
            pass


def test_a_request_costs_little_cpu_on_a_kept_connection(world: World) -> None:
    skill = "Be kind to everybody. " * 300 + world.rule(0)
    connection = http.client.HTTPConnection(urlsplit(world.url).netloc)

    def fetch(method: str, path: str, body: str | None = None) -> Json:
        connection.request(method, path, body)
        return json.load(connection.getresponse())

    before, count = fetch("GET", "/v1/stats")["cpu_s"], 0
    for sample in world.samples() * 5:
        messages = [{"role": "system", "content": skill}, {"role": "user", "content": sample["input"]}]
        fetch("POST", "/v1/chat/completions", json.dumps({"model": "target", "messages": messages}))
        count += 1
    stats = fetch("GET", "/v1/stats")
    connection.close()
    assert stats["answered"]["target"] == count == 450
    assert (stats["cpu_s"] - before) / count < 1e-3, "about 0.15 ms when the machine is calm"


def test_it_serves_from_a_process_of_its_own(tmp_path: Path) -> None:
    script, samples = Path(__file__).with_name("world.py"), tmp_path / "samples.jsonl"
    arguments = ["--classes", "3", "--train", "6", "--write", str(samples), "--faults", '{"outage": [100, 200]}']
    with subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        first = json.loads(samples.read_text().splitlines()[0])
        rule = World(3).rule(World(3).names.index(first["metadata"]["class"]))
        messages = [{"role": "system", "content": rule}, {"role": "user", "content": first["input"]}]
        reply = post(f"{url}/chat/completions", {"model": "target", "messages": messages})
        assert reply["choices"][0]["message"]["content"] == first["target"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
