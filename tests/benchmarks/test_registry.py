"""The registry of benchmarks: names, variants, the draw of the released sizes, missing data, configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skilltune import benchmarks
from skilltune.benchmarks import Draw
from skilltune.build import build_env, split_ratio
from skilltune.config import make_config
from skilltune.errors import UsageError
from skilltune.samples import Sample, SplitName, split


def gsm8k(folder: Path, n: int = 20, name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"question": f"A box holds {i} pens. How many?", "answer": f"It is {i}.\n#### {i}"} for i in range(n))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sizes(env: object) -> tuple[int, int, int]:
    made = split(env.samples, env.split or (4, 3, 3), 42)  # type: ignore[attr-defined]
    return len(made.train), len(made.select), len(made.test)


@pytest.mark.parametrize("spec", ["bench:gsm9k", "bench:", "bench:gsm8k/", "bench:gsm8k/hard"])
def test_a_name_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="gsm8k"):
        benchmarks.load(spec)


def test_missing_data_is_one_line_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLTUNE_DATA", str(tmp_path))
    with pytest.raises(benchmarks.Missing) as caught:
        benchmarks.load("bench:gsm8k")
    message = str(caught.value)
    assert "\n" not in message
    assert f"train.jsonl is not in {tmp_path / 'gsm8k'}" in message
    assert "skilltune data fetch gsm8k" in message


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(benchmarks.Missing, match=r"there is no file or folder .*nowhere \(--data, env\.data\)"):
        benchmarks.load("bench:gsm8k", tmp_path / "nowhere")


def test_data_comes_from_the_config_else_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gsm8k(tmp_path / "data" / "gsm8k", 12)
    gsm8k(tmp_path / "project" / "mine", 15)
    monkeypatch.setenv("SKILLTUNE_DATA", str(tmp_path / "data"))
    cfg = make_config({"env": {"samples": "bench:gsm8k"}})
    assert len(build_env(cfg, tmp_path / "project").samples) == 12
    cfg = make_config({"env": {"samples": "bench:gsm8k", "data": "mine"}})
    assert len(build_env(cfg, tmp_path / "project").samples) == 15
    assert len(benchmarks.load("bench:gsm8k", tmp_path / "project" / "mine" / "train.jsonl").samples) == 15


@pytest.mark.parametrize("table", [{"score": "number"}, {"prompt": "{input}!"}, {"fields": {"input": "question"}}])
def test_a_benchmark_keeps_its_own_prompt_and_scorer(tmp_path: Path, table: dict[str, object]) -> None:
    cfg = make_config({"env": {"samples": "bench:gsm8k", "data": str(gsm8k(tmp_path)), **table}})
    with pytest.raises(UsageError, match=f"leave out env.{next(iter(table))}"):
        build_env(cfg, tmp_path)


def test_a_place_of_data_needs_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"input": "a", "target": "b"}\n')
    with pytest.raises(UsageError, match="is the place of"):
        build_env(make_config({"env": {"samples": "data.jsonl", "data": "x"}}), tmp_path)


def test_the_released_sizes_come_out_exactly_and_do_not_depend_on_the_order() -> None:
    samples = [Sample(id=str(i), input=f"question {i}") for i in range(300)]
    draw = Draw((40, 20, 140), seed=1)
    drawn = draw(samples)
    assert drawn == draw(reversed(samples))
    assert draw(samples) != Draw((40, 20, 140), seed=2)(samples)
    made = split(drawn, (40, 20, 140), 1)
    assert (len(made.train), len(made.select), len(made.test)) == (40, 20, 140)


@pytest.mark.parametrize(
    ("fixed", "free", "expected"), [(300, 300, (40, 20, 140)), (90, 300, (40, 20, 140)), (0, 100, (20, 10, 70))]
)
def test_a_fixed_split_counts_for_its_own_size(fixed: int, free: int, expected: tuple[int, int, int]) -> None:
    def made(n: int, name: SplitName | None) -> list[Sample]:
        return [Sample(id=f"{name}{i}", input=f"{name} {i}", split=name) for i in range(n)]

    drawn = Draw((40, 20, 140))([*made(fixed, "test"), *made(free, None)])
    parts = split(drawn, (40, 20, 140), 3)
    assert (len(parts.train), len(parts.select), len(parts.test)) == expected
    assert sum(sample.split == "test" for sample in drawn) == min(fixed, 140)


def test_fewer_samples_are_split_in_proportion_and_reported(tmp_path: Path) -> None:
    env = benchmarks.load("bench:gsm8k", gsm8k(tmp_path, 100))
    assert sizes(env) == (20, 10, 70)
    assert any("100 of the 1000 samples" in note for note in env.notes())


def test_official_test_samples_stay_in_the_test_split(tmp_path: Path) -> None:
    gsm8k(tmp_path, 60)
    env = benchmarks.load("bench:gsm8k", gsm8k(tmp_path, 40, "test.jsonl"))
    made = split(env.samples, env.split or (), 42)
    assert {sample.id.partition(":")[0] for sample in (*made.train, *made.select)} == {"train"}
    assert sum(sample.id.startswith("test:") for sample in made.test) == 40


def test_a_config_may_state_another_ratio_or_a_limit(tmp_path: Path) -> None:
    place = str(gsm8k(tmp_path, 100))
    table = {"samples": "bench:gsm8k", "data": place}
    for env, ratio in (({}, (200, 100, 700)), ({"split": [1, 1, 1]}, (1, 1, 1)), ({"limit": 30}, (200, 100, 700))):
        cfg = make_config({"preset": "paper", "env": table | env})
        made = build_env(cfg, tmp_path)
        assert split_ratio(cfg, made) == ratio
        assert len(made.samples) == env.get("limit", 100)


@pytest.mark.parametrize("ratio", [{}, {"split": [4, 3, 3]}, {"split": [1, 1, 0]}])
def test_a_limit_keeps_the_share_of_a_benchmarks_own_test_samples(tmp_path: Path, ratio: dict[str, object]) -> None:
    gsm8k(tmp_path, 60)
    gsm8k(tmp_path, 60, "test.jsonl")
    table = {"samples": "bench:gsm8k", "data": str(tmp_path), "limit": 30, **ratio}
    made = build_env(make_config({"env": table}), tmp_path)
    assert len(made.samples) == 30
    assert sum(sample.split == "test" for sample in made.samples) == 21


def test_a_limit_applies_to_any_samples(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(f'{{"input": "{i}", "target": "b"}}\n' for i in range(50)))
    cfg = make_config({"env": {"samples": "data.jsonl", "limit": 12}, "seed": 3})
    ids = [sample.id for sample in build_env(cfg, tmp_path).samples]
    assert len(set(ids)) == 12
    assert ids == [sample.id for sample in build_env(cfg, tmp_path).samples]


@pytest.mark.anyio
async def test_expected_answers_of_gsm8k_score_1(tmp_path: Path) -> None:
    rows = [("2 + 2?", "#### 4"), ("A tax?", "x <<1=1>>\n#### 1,072"), ("Debt?", "#### -3")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    assert await benchmarks.load("bench:gsm8k", tmp_path).validate() == []


@pytest.mark.parametrize("answer", ["no mark", "#### many", "####4"])
def test_a_file_of_another_kind_is_refused_with_its_line(tmp_path: Path, answer: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "?", "answer": answer}) + "\n")
    with pytest.raises(UsageError, match=r"a\.jsonl:1"):
        benchmarks.load("bench:gsm8k", tmp_path)


@pytest.mark.parametrize("name", list(benchmarks.BENCHMARKS))
def test_the_document_lists_every_set_as_it_is(name: str) -> None:
    found = benchmarks.find(name)
    document = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    row = next(line for line in document.splitlines() if line.startswith(f"| `bench:{name}"))
    sizes = " / ".join(map(str, found.splits)) if sum(found.splits) else "2 : 1 : 7"
    for text in (found.licence, sizes, found.hard.meaning, found.soft.meaning, found.source.partition(",")[0]):
        assert text in row
    for trap in found.traps:
        assert f"| {name} | {trap} |" in document
