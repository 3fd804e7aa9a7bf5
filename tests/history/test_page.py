"""The data of the page says what the journal says, in bounded size, and shows no hidden character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from journals import a_run, splits
from skilltune.errors import Outcome, RunError
from skilltune.history.page import key_of, page, summary, transcript
from skilltune.history.record import Record, Rollouts
from skilltune.journal.run import Paid, Run
from skilltune.rollout import Artifact, Rollout, Score, Trajectory, Turn, rollout_to_json
from skilltune.rollouts.inputs import keep_samples
from skilltune.rollouts.roller import LEFT_OUT
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.usage import Usage

START = Skill("# Start\n")


def a_rollout(sample: str, value: float | None, attempt: int = 0, outcome: Outcome = "ok", **parts: Any) -> Any:
    trajectory = Trajectory("done", (Turn("user", "do it"),), outcome, usage=Usage(2, 10, 5), **parts)
    score = None if value is None else Score(value, "because")
    return rollout_to_json(Rollout(sample, START.hash, attempt, trajectory, score))


def a_start(folder: Path, rollouts: list[Any], samples: list[str], **config: Any) -> Run:
    run = Run.open(folder, {"target": {"model": "openai/x"}, **config})
    run.decide("split", lambda: {"train": samples, "select": [], "test": []})
    run.put_blob(START.hash, START.text.encode())
    for number, value in enumerate(rollouts):
        run.put(f"{number:064x}", "rollout", Paid(value, Usage(2, 10, 5)))
    run.record("start", skill=START.hash, score=0.5, score_sd=0.1, select=0)
    return run


def test_a_cell_has_one_of_five_states_and_all_attempts(tmp_path: Path) -> None:
    samples = ["right", "wrong", "half", "hardly", "nearly", "limit", "broken", "unseen", "judge"]
    rollouts = [
        a_rollout("right", 1.0),
        a_rollout("right", 0.0, attempt=1),
        a_rollout("wrong", 0.0),
        a_rollout("half", 0.5),
        a_rollout("hardly", 0.001),
        a_rollout("nearly", 0.999),
        a_rollout("limit", 0.0, outcome="agent_limit"),
        a_rollout("judge", None, outcome="judge_error"),
    ]
    with a_start(tmp_path, rollouts, samples) as run:
        failure = {"outcome": "infra_error", "why": "503", "cause": "503", "final": False}
        run.record(LEFT_OUT, purpose="train", skill=START.hash, attempt=0, samples={"broken": failure})
        (column,) = page(run)["columns"]
        assert column["cells"] == ["A0519LX.X", "0"]
        assert page(run)["samples"]["notes"] == {"broken": "infra_error: 503"}
        # a later attempt at a sample that was left out has the last word
        run.put("f" * 64, "rollout", Paid(a_rollout("broken", 1.0), Usage(1)))
        assert page(run)["columns"][0]["cells"] == ["A0519LA.X", "0"]


def test_a_reader_that_follows_a_run_sees_what_a_new_reader_sees(tmp_path: Path) -> None:
    known = Rollouts()
    samples = [f"s{i}" for i in range(4)]
    with a_start(tmp_path, [], samples) as run:
        for i, sample in enumerate(samples):
            run.put(f"{i:064x}", "rollout", Paid(a_rollout(sample, float(i % 2)), Usage(1, 2, 3)))
            followed, fresh = page(run, known), page(run)
            assert followed["columns"] == fresh["columns"]
            assert followed["money"]["rows"] == fresh["money"]["rows"]
        assert known.count == len(samples)


def test_rollouts_that_a_fork_copied_from_another_target_are_not_shown(tmp_path: Path) -> None:
    with a_start(tmp_path, [a_rollout("s0", 1.0)], ["s0", "s1"]) as run:
        parts = {"target": "other", "env": "e", "contents": {"s0": "c0", "s1": "c1"}}
        run.decide("pins", lambda: parts)
        assert page(run)["columns"][0]["cells"] == []


def test_a_transcript_is_found_by_its_key_and_no_other(tmp_path: Path) -> None:
    files = {"<b>.png": Artifact.of(b"x" * 2048), **{f"{i}.txt": Artifact.of(b"") for i in range(300)}}
    rollouts = [a_rollout("s1", 0.0, artifacts=files, diff="+ row", error="\x1b[31mno\u202e")]
    with a_start(tmp_path, rollouts, ["s0", "s1"]) as run:
        found = transcript(run, key_of(START.hash, 1, 0))
        assert found is not None
        assert (found["sample"], found["split"], found["column"]) == ("s1", "train", "version 0")
        assert found["error"] == "\\x1b[31mno\\u202e"
        assert found["files"][0] == {
            "path": "<b>.png",
            "size": 2048,
            "hash": files["<b>.png"].hash,
            "image": "image/png",
        }
        assert found["omitted"] == [
            {"n": 101, "what": "files", "where": "skilltune show --file prints a file by its hash"}
        ]
        for key in (key_of(START.hash, 0, 0), key_of(START.hash, 1, 1), key_of("0" * 16, 1, 0), "", "a-b-c", "../-1-0"):
            assert transcript(run, key) is None


@pytest.mark.parametrize("text", ["x" * 3_000_000, "Ж" * 1_000_000, "👩‍💻<" * 300_000, "\u202e" * 400_000])
def test_a_long_transcript_is_cut_in_its_middle_and_says_so(tmp_path: Path, text: str) -> None:
    stored = a_rollout("s0", 1.0)
    stored["turns"] += [["tool", text], ["assistant", "short"]]
    with a_start(tmp_path, [stored], ["s0"]) as run:
        found = transcript(run, key_of(START.hash, 0, 0))
    assert found is not None
    assert 500_000 < len(json.dumps(found, ensure_ascii=False).encode()) < 1_000_000
    assert [turn["cut"] for turn in found["turns"]][0::2] == [0, 0]
    assert found["turns"][1]["cut"] > 0
    assert found["omitted"][0]["n"] == 1


def test_a_process_that_ended_without_a_word_has_died(tmp_path: Path) -> None:
    a_start(tmp_path / "killed", [a_rollout("s0", 1.0)], ["s0"]).close()
    with a_start(tmp_path / "stopped", [a_rollout("s0", 1.0)], ["s0"]) as run:
        run.record("stopped", reason="interrupted", exit_code=4)
    states = {}
    for name in ("killed", "stopped"):
        with Run.read(tmp_path / name) as run:
            states[name] = page(run)["state"], summary(run)["state"]
    assert states == {"killed": ("died", "died"), "stopped": ("stopped", "stopped")}
    with pytest.raises(RunError, match="another configuration"):
        Run.open(tmp_path / "stopped", {"target": {"model": "openai/y"}})
    with Run.read(tmp_path / "stopped") as run:
        assert summary(run)["state"] == "stopped"  # nobody went on with it
    Run.open(tmp_path / "stopped", {"target": {"model": "openai/x"}}).close()  # it went on and was killed
    with Run.read(tmp_path / "stopped") as run:
        assert summary(run)["state"] == "died"
    with Run.open(tmp_path / "evaluation") as run:
        run.put("a", "rollout", Paid(a_rollout("s0", 1.0), Usage(2, 10, 5)))
    with Run.read(tmp_path / "evaluation") as run:
        assert summary(run)["state"] == "stopped"


def test_a_running_run_shows_what_its_process_wrote_and_survives_nonsense(tmp_path: Path) -> None:
    with a_start(tmp_path, [a_rollout("s0", 1.0)], ["s0"]):
        for text, live in (
            ('{"step": 2, "phase": "race\\u202e"}', {"step": 2, "phase": "race\\u202e"}),
            ("[" * 9_000, None),
            ("", None),
            ("[1]", None),
        ):
            (tmp_path / "live.json").write_text(text)
            with Run.read(tmp_path) as run:
                shown = page(run)
                assert (shown["state"], shown["live"]) == ("running", live)


def test_the_page_and_its_row_agree(tmp_path: Path) -> None:
    with a_run(tmp_path / "run", ["# Start\n", "# Next\n", "# End\n"], splits(3), finish=False) as run:
        shown, row = page(run), summary(run)
        record = Record.of(run)
    assert row["gain"] == shown["decision"]["gain"] == pytest.approx(0.9)
    assert row["source"] == "select"
    assert row["spark"] == [0.0, 0.9, 0.9]
    assert [verdict["n_fixed"] for verdict in shown["verdicts"]] == [3, 3]
    ids = shown["samples"]["ids"]
    assert [ids[place] for place in shown["verdicts"][0]["fixed"]] == list(record.splits["select"])
    assert [edit["fate"] for edit in shown["verdicts"][0]["edits"]] == ["kept", "measured, not tried"]
    assert [version["scores"]["test"]["mean"] for version in shown["versions"]] == [0.0, 1.0, 1.0]


def test_a_sample_is_shown_with_its_input_and_what_was_expected(tmp_path: Path) -> None:
    chat = ({"role": "user", "content": "Wie viel?\x1b[2J"}, {"role": "assistant", "content": "Wovon?"})
    stored = [Sample(id="s0", input="How much?", target="42"), Sample.model_validate({"id": "s1", "input": chat})]
    stored += [Sample(id="s2", input="x" * 1_000, target={"total": [1, 2]})]
    names = [sample.id for sample in stored]
    with a_start(tmp_path, [a_rollout(name, 1.0) for name in names], names) as run:
        keep_samples(run, stored)
        assert page(run)["samples"]["inputs"][:2] == ["How much?", "Wie viel?\\x1b[2J Wovon?"]
        assert len(page(run)["samples"]["inputs"][2]) == 160
        found = [transcript(run, key_of(START.hash, place, 0)) for place in range(3)]
    assert [each and each["expected"] for each in found] == ["42", "", '{"total": [1, 2]}']
