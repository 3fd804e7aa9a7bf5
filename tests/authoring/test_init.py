"""init: a folder that is sound from the first minute, and that cannot be trained on before somebody has read it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from http_server import Answer, Server
from skilltune.authoring.scaffold import Plan, chunks, draft_with, scaffold
from skilltune.cli.main import app
from skilltune.config import load_config
from skilltune.envs.formats import load_samples
from skilltune.journal.run import Run
from skilltune.preflight.check import check
from skilltune.samples import Sample
from skilltune.skill import Skill
from world import World

pytestmark = pytest.mark.anyio

MODEL = "openai@http://127.0.0.1:9/v1/none"
SCORES = ["exact", "contains", "number", "choice", "json", "regex", "f1", "em", "anls", "checks", "python:my.py:fn"]


def skilltune(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def init(folder, *args):
    return skilltune("init", folder, "--yes", "--target", MODEL, *args)


@pytest.mark.parametrize("score", SCORES)
async def test_a_fresh_folder_lacks_nothing_but_tasks(tmp_path, score):
    args = ["--name", "my-skill", "--description", "Does it.", "--score", score]
    assert init(tmp_path / "s", *args).exit_code == 0
    found = await check(*load_config(tmp_path / "s"))
    assert len(found.problems) == 1
    assert "5 of 5 samples are still the template's examples (1, 2, 3, 4, 5)" in found.problems[0]
    assert found.notes == []
    (tmp_path / "my-skill").mkdir()
    (tmp_path / "s" / "SKILL.md").rename(tmp_path / "my-skill" / "SKILL.md")
    assert Skill.load(tmp_path / "my-skill").check() == []


def test_examples_and_drafts_are_refused_for_training_until_they_are_read(tmp_path):
    with World(classes=3, train=20, select=12, test=12, q=1.0, sloppy=0.0) as world:
        init(tmp_path / "s")
        config = [
            tmp_path / "s",
            f"target.model=openai@{world.url}/target",
            f"optimizer.model=openai@{world.url}/optimizer",
        ]
        refused = skilltune("train", *config)
        assert refused.exit_code == 2
        assert "samples.jsonl: 5 of 5 samples are still the template's examples" in refused.stderr
        world.write(tmp_path / "s" / "samples.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "s" / "samples.jsonl").read_text().splitlines()]
        rows[3]["reviewed"] = False
        (tmp_path / "s" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        refused = skilltune("train", *config)
        assert refused.exit_code == 2
        assert f"1 of 44 samples are drafts that nobody has reviewed ({rows[3]['id']})" in refused.stderr
        assert not world.calls
        rows[3]["reviewed"] = True
        (tmp_path / "s" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trained = skilltune("train", *config, "train.batch_size=10", "train.epochs=1")
        assert trained.exit_code == 0, trained.stderr


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "skilltune.toml").write_text("mine")
    refused = init(tmp_path)
    assert (refused.exit_code, (tmp_path / "skilltune.toml").read_text()) == (2, "mine")
    assert "already has skilltune.toml; nothing was written" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["skilltune.toml"]
    assert init(tmp_path, "--force").exit_code == 0
    assert (tmp_path / "skilltune.toml").read_text() != "mine"


@pytest.mark.parametrize("args", [[], ["--force"], ["--score", "checks"]])
async def test_a_skill_that_is_there_is_kept_and_only_config_and_tasks_are_added(tmp_path, args):
    text = b"\xef\xbb\xbf---\r\nname: desk\r\ndescription: d\r\n---\r\n\r\nMine, see references/a.md.\r\n"
    folder = tmp_path / "desk"
    (folder / "references").mkdir(parents=True)
    (folder / "references" / "a.md").write_text("more")
    (folder / "SKILL.md").write_bytes(text)
    made = init(folder, *args)
    assert made.exit_code == 0, made.stderr
    samples = "evals/evals.json" if "checks" in args else "samples.jsonl"
    wrote = {line for line in made.stdout.splitlines() if line.startswith("wrote")}
    assert wrote == {f"wrote {folder / name}" for name in ("skilltune.toml", samples)}
    assert f"kept {folder / 'SKILL.md'}" in made.stdout
    assert (folder / "SKILL.md").read_bytes() == text
    found = await check(*load_config(folder))
    assert len(found.problems) == 1  # the examples of the template
    assert found.skill is not None
    assert list(found.skill.files) == ["references/a.md"]
    again = init(folder, *args)
    assert (again.exit_code, (folder / "SKILL.md").read_bytes()) == (0 if "--force" in args else 2, text)


@pytest.mark.parametrize("args", [[], ["--force"], ["--score", "checks", "--force"]])
async def test_evals_that_are_there_are_the_tasks(tmp_path, args):
    folder = tmp_path / "desk"
    (folder / "evals").mkdir(parents=True)
    rows = [{"id": i, "prompt": f"p{i}", "expected_output": f"o{i}"} for i in range(12)]
    checks = [{**row, "expectations": [{"type": "contains", "target": f"o{row['id']}"}]} for row in rows]
    text = json.dumps({"skill_name": "desk", "evals": checks if "checks" in args else rows})
    (folder / "evals" / "evals.json").write_text(text)
    made = init(folder, "--description", "Answers.", *args)
    assert made.exit_code == 0, made.stderr
    assert f"kept {folder / 'evals' / 'evals.json'}: 12 tasks\nnext: skilltune check {folder}\n" in made.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["SKILL.md", "evals", "skilltune.toml"]
    assert (folder / "evals" / "evals.json").read_text() == text
    cfg, root = load_config(folder)
    found = await check(cfg, root)
    assert (cfg.env.samples, found.problems, found.samples) == ("evals/evals.json", [], 12)


def test_evals_in_prose_ask_for_a_judge_at_once(tmp_path):
    (tmp_path / "evals").mkdir()
    evals = [{"prompt": "p", "expected_output": "o", "expectations": ["Is kind"]}, {"prompt": "q", "answer": "r"}]
    (tmp_path / "evals" / "evals.json").write_text(json.dumps({"evals": evals}))
    assert "2 tasks; 1 have expectations in prose: name a judge in skilltune.toml" in init(tmp_path).stdout


async def test_the_templates_description_is_noted_until_it_is_written(tmp_path):
    init(tmp_path / "s")
    (note,) = (await check(*load_config(tmp_path / "s"))).notes
    assert "the description in SKILL.md is still the template's" in note


def test_what_a_skill_has_answered_is_not_asked_and_not_ignored(tmp_path):
    (tmp_path / "SKILL.md").write_text("mine")
    for key in ("name", "description", "task"):
        refused = init(tmp_path, f"--{key}", "x")
        assert (refused.exit_code, f"leave out --{key}" in refused.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["SKILL.md"]
    assert "add --score" in skilltune("init", tmp_path).stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--name", "My Skill"], "name"),
        (["--score", "exat"], 'did you mean "exact"'),
        (["--optimizer", "gtp-5"], "optimizer.model"),
        (["--from", "nowhere.md", "--optimizer", MODEL], "cannot read nowhere.md"),
        (["--from", "nowhere.md"], "--from needs a model for the drafts, and examples is none"),
        (
            ["--from", "nowhere.md", "--optimizer", "handoff:a"],
            "afterwards set optimizer.model to handoff:a in skilltune.toml",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_file_is_written(tmp_path, args, says):
    refused = init(tmp_path / "s", *args)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert not (tmp_path / "s").exists()


def test_questions_need_somebody_to_answer_them(tmp_path):
    refused = skilltune("init", tmp_path / "s")
    assert refused.exit_code == 2
    assert "add --name, or --yes for the default (s)" in refused.stderr


def test_quotes_and_slots_in_the_answers_stay_what_they_are(tmp_path):
    text = 'Says "@task@" \\ & {x}: yes'
    assert init(tmp_path / "s", "--name", "s", "--description", text, "--task", "Do @name@.").exit_code == 0
    skill = Skill.load(tmp_path / "s" / "SKILL.md")
    assert json.dumps(text) in skill.frontmatter
    assert "Do @name@." in skill.body


# -- drafts


def completion(*tasks):
    content = json.dumps({"samples": [{"input": task, "target": target} for task, target in tasks]})
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return Answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})


async def test_the_drafting_model_has_the_key_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DESK_KEY", "sk-of-the-desk")
    (tmp_path / "docs.md").write_text("A dog has four legs.\n")
    async with Server(completion(("How many?", "4"))) as server:
        plan = Plan("legs", "Counts legs.", "Count.", "number", MODEL, f"openai@{server.url}/api#m", "DESK_KEY")
        await draft_with(plan, tmp_path / "docs.md")
        assert server.calls[0].headers["authorization"] == "Bearer sk-of-the-desk"
    scaffold(tmp_path / "s", plan)
    assert load_config(tmp_path / "s")[0].optimizer.key_env == "DESK_KEY"
    refused = init(tmp_path / "t", "--yes", "--key-env", "sk-of-the-desk")
    assert refused.exit_code == 2
    assert "sk-of-the-desk" not in refused.output


async def test_drafts_come_from_the_document_and_await_review(tmp_path):
    (tmp_path / "docs.md").write_text("# Legs\n\nA dog has four legs.\n")
    unusable, good = completion(("How many?", "many")), completion(("How many?", "4"), ("how many? ", "5"))
    async with Server(unusable, good) as server:
        plan = Plan("legs", "Counts legs.", "Count.", "number", MODEL, f"openai@{server.url}/v1/m")
        drafts = await draft_with(plan, tmp_path / "docs.md")
        told = server.calls[1].body["messages"]
    assert "A dog has four legs." in told[1]["content"]
    assert "holds no plain number" in told[-1]["content"]  # the scorer could not have used it: told, and asked again
    scaffold(tmp_path / "s", plan, drafts=drafts)
    (sample,) = load_samples(tmp_path / "s" / "samples.jsonl")
    assert (sample.input, sample.target) == ("How many?", "4")
    assert sample.metadata == {"reviewed": False, "source": "docs.md:1"}
    rows = [{"id": str(i), "input": str(i), "target": i, "reviewed": False} for i in range(9)]
    (tmp_path / "s" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = await check(*load_config(tmp_path / "s"))
    assert found.problems == [
        "9 of 9 samples are drafts that nobody has reviewed (0, 1, 2, 3, 4, …): "
        'read each, fix or delete it, then set its "reviewed" to true'
    ]


def test_after_drafting_the_next_thing_is_to_read_them(tmp_path, monkeypatch):
    (tmp_path / "docs.md").write_text("A dog has four legs.\n")
    (tmp_path / "s" / "evals").mkdir(parents=True)
    (tmp_path / "s" / "evals" / "evals.json").write_text("{}")  # drafts do not touch it

    async def drafted(plan, document):
        return [Sample(id="L1-1", input="Legs?", target="4", metadata={"reviewed": False})]

    monkeypatch.setattr("skilltune.authoring.scaffold.draft_with", drafted)
    made = init(tmp_path / "s", "--from", tmp_path / "docs.md", "--optimizer", MODEL)
    assert f"next: read the 1 drafts in {tmp_path / 's' / 'samples.jsonl'}, set" in made.stdout
    assert load_config(tmp_path / "s")[0].env.samples == "samples.jsonl"


@given(text=st.text(alphabet="ab \n#", max_size=300), size=st.integers(4, 60))
def test_chunks_are_the_text(text, size):
    parts = chunks(text, size)
    assert all(0 < len(part) <= size for _, part in parts)
    assert "".join("".join(part for _, part in parts).split()) == "".join(text.split())
    assert all(part.split("\n")[0] in text.split("\n")[line - 1] for line, part in parts)


# -- a skill folder alone, and back to skill-creator


def test_a_skill_folder_with_evals_trains_and_opens_in_skill_creator(tmp_path, monkeypatch):
    with World(classes=3, train=20, select=12, test=12, q=1.0, sloppy=0.0) as world:
        world.write(tmp_path / "data.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
        evals = [
            {"id": row["id"], "prompt": row["input"], "expected_output": row["target"], "split": row["split"]}
            for row in rows
        ]
        skill = tmp_path / "desk"
        (skill / "evals").mkdir(parents=True)
        (skill / "evals" / "evals.json").write_text(json.dumps({"skill_name": "desk", "evals": evals}))
        (skill / "SKILL.md").write_text("---\nname: desk\ndescription: Answers tickets.\n---\n\nAnswer.\n")
        monkeypatch.chdir(tmp_path)
        lost = skilltune("train", "desk")
        assert (lost.exit_code, "e.g. target.model=" in lost.stderr) == (2, True)
        models = [f"target.model=openai@{world.url}/target", f"optimizer.model=openai@{world.url}/optimizer"]
        trained = skilltune("train", "desk", *models, "train.batch_size=10", "train.epochs=1")
        assert trained.exit_code == 0, trained.stderr
    for number in (1, 2):
        written = skilltune("export", "runs/desk", "--to", "skill-creator")
        assert written.stdout == f"wrote desk-workspace/iteration-{number}\n"
    folder = tmp_path / "desk-workspace" / "iteration-1"
    benchmark = json.loads((folder / "benchmark.json").read_text())
    assert benchmark["metadata"]["evals_run"] == list(range(1, 13))
    assert {(run["configuration"], run["run_number"]) for run in benchmark["runs"]} == {
        ("new_skill", 1),
        ("old_skill", 1),
    }
    summary = benchmark["run_summary"]
    assert list(summary) == ["new_skill", "old_skill", "delta"]  # the viewer takes the first two in this order
    assert (summary["new_skill"]["pass_rate"]["mean"], summary["old_skill"]["pass_rate"]["mean"]) == (1.0, 0.0)
    assert summary["delta"]["pass_rate"] == "+1.00"
    for run in benchmark["runs"]:
        assert run["result"].keys() >= {"pass_rate", "passed", "failed", "total", "time_seconds", "tokens", "errors"}
        place = folder / f"eval-{run['eval_id']}" / run["configuration"] / "run-1"
        grading = json.loads((place / "grading.json").read_text())
        assert grading["expectations"] == run["expectations"]
        assert all(item.keys() == {"text", "passed", "evidence"} for item in grading["expectations"])
        assert grading["summary"]["pass_rate"] == run["result"]["pass_rate"]
        assert (place / "outputs" / "answer.md").read_text()
        assert json.loads((place / "timing.json").read_text())["total_tokens"] == run["result"]["tokens"]
        metadata = json.loads((place.parents[1] / "eval_metadata.json").read_text())
        assert metadata["prompt"] in {row["input"] for row in rows}


def test_a_kind_that_is_not_known_is_answered_with_the_nearest(tmp_path):
    refused = skilltune("export", tmp_path / "run", "--to", "claud")
    assert (refused.exit_code, 'did you mean "claude"?' in refused.stderr) == (2, True)


def test_a_run_that_is_not_finished_is_not_exported(tmp_path):
    Run.open(tmp_path / "run").close()
    refused = skilltune("export", tmp_path / "run", "--to", "skill-creator")
    assert refused.exit_code == 2
    assert "has not finished" in refused.stderr
    assert not list(tmp_path.glob("*workspace"))


@pytest.mark.parametrize("target", ["codex/gpt-5.5", "claude-code/openai@http://127.0.0.1:9/v1/m", "acp:goose acp"])
def test_an_agent_is_a_target_with_options_that_fit_it(tmp_path, target):
    made = init(tmp_path / "desk", "--target", target, "--optimizer", "codex/gpt-5.5")
    assert made.exit_code == 0, made.stderr
    text = (tmp_path / "desk" / "skilltune.toml").read_text()
    section = text[text.index("[target]") : text.index("[optimizer]")]
    (tmp_path / "desk" / "skilltune.toml").write_text(text.replace(section, re.sub("(?m)^# ", "", section)))
    cfg, _ = load_config(tmp_path / "desk")
    assert (cfg.target.model, cfg.target.workers, cfg.target.activation) == (target, 2, "forced")
    assert cfg.target.max_turns == 30
    assert cfg.target.upstream == ("anthropic/claude-opus-5" if target.startswith("acp") else "")
    assert cfg.optimizer.model == "codex/gpt-5.5"


def test_a_misspelt_agent_is_named_before_anything_is_written(tmp_path):
    made = init(tmp_path / "desk", "--target", "claudecode/claude-opus-5")
    assert (made.exit_code, (tmp_path / "desk").exists()) == (2, False)
    assert "Did you mean a name like `claude-code/claude-opus-5`?" in " ".join(made.stderr.split())
