"""Env: what the target sees, what the journal's key holds, and errors before anything is spent."""

import base64
import json
import sys
import textwrap
from hashlib import sha256

import pytest

from skilltune.envs import Env, env, load_env
from skilltune.envs.task import digest_of
from skilltune.errors import JudgeError, UsageError
from skilltune.models import Message
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import ChatTurn, Sample

pytestmark = pytest.mark.anyio

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


def rollout(answer: str) -> Rollout:
    return Rollout("a", "skill", 0, Trajectory(answer), None)


async def test_an_env_of_rows_scores_and_prompts():
    made = Env([{"input": "1 + 1?", "answer": "2"}], prompt="Answer: {input}\nOnly the number.")
    (sample,) = made.samples
    assert made.messages(sample) == (Message("user", "Answer: 1 + 1?\nOnly the number."),)
    assert made.expected(sample) == "2"
    assert (await made.score(sample, rollout("2"))).value == 1
    assert (await made.score(sample, rollout("3"))).why == 'expected "2", got "3"'
    assert await made.validate() == []


def test_pitfall_18_braces_in_prompt_and_sample_stay_as_they_are():
    text = "{input} {0} {x!r} %s {{}} \\1"
    made = Env([{"input": text}], lambda sample, rollout: 1.0, prompt="{json} {} {id} > {input} <")
    assert made.messages(made.samples[0])[0].text == "{json} {} {id} > " + text + " <"


def test_the_prompt_goes_around_the_last_user_turn_of_a_chat():
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "Sure:")]
    chat = [{"role": role, "content": content} for role, content in turns]
    made = Env([{"input": chat, "target": "x"}], prompt="<{input}>")
    assert [(m.role, m.text) for m in made.messages(made.samples[0])] == [*turns[:3], ("user", "<v>"), turns[4]]
    with pytest.raises(UsageError, match="no user message"):
        Env([{"input": [{"role": "system", "content": "s"}], "target": "x"}])


def test_images_are_read_from_the_root_and_from_nowhere_else(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")

    def with_image(path):
        row = {"id": "a", "input": [{"role": "user", "content": "what?", "images": [path]}], "target": "x"}
        (tmp_path / "data" / "d.jsonl").write_text(json.dumps(row))
        return Env(tmp_path / "data" / "d.jsonl")

    made = with_image("a.png")
    (message,) = made.messages(made.samples[0])
    assert (message.images[0].data, message.images[0].media_type) == (PNG, "image/png")
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(UsageError, match=r'sample "a": .* leads out of'):
            with_image(outside)
    with pytest.raises(UsageError, match=r'sample "a": no file "b.png"'):
        with_image("b.png")


def test_pitfall_17_a_path_of_the_workspace_stays_inside_it(tmp_path):
    (tmp_path / "x").write_text("")
    Env([Sample(id="a", input="q", target="t", files={"in/x": "x"})], root=tmp_path)
    for name in ("../x", "/x", ""):
        with pytest.raises(UsageError, match="not a path inside a workspace"):
            Env([Sample(id="a", input="q", target="t", files={name: "x"})], root=tmp_path)


@pytest.mark.parametrize(
    ("rows", "kw", "message"),
    [
        ([], {}, "at least one sample"),
        ([{"input": "q"}], {}, "no target to compare with"),
        ([{"input": "q", "taget": "t"}], {}, 'did you mean "taget"'),
        ([{"input": "q", "target": "t"}], {"prompt": "no place"}, "has no {input}"),
        ([{"input": "q", "target": "t"}], {"score": "exakt"}, 'did you mean "exact"'),
        ([{"input": "q", "target": "t"}], {"score": "number"}, "holds no plain number"),
        ([{"imput": "q"}], {}, 'sample 1: no input .*did you mean "imput"'),
        ([{"id": "x", "input": "q"}, {"id": "x", "input": "r"}], {"score": "exact"}, "already used by sample 1"),
        ([Sample(id="x", input="q"), Sample(id="x", input="r")], {}, "already used by sample 1"),
    ],
)
def test_pitfall_26_what_cannot_work_is_refused_before_anything_is_spent(rows, kw, message):
    with pytest.raises(UsageError, match=message):
        Env(rows, **kw)


async def test_samples_with_checks_are_scored_by_them_unless_another_score_is_named():
    rows = [
        {"id": "a", "input": "q", "checks": [{"type": "contains", "target": "x"}]},
        {"id": "b", "input": "r", "target": "y"},
    ]
    made = Env(rows)
    assert [(await made.score(sample, rollout("x"))).value for sample in made.samples] == [1, 0]
    assert await made.validate() == []
    rows[0]["target"] = "z"
    made = Env(rows, {"type": "exact"})
    assert [(await made.score(sample, rollout("x"))).value for sample in made.samples] == [0, 0]


def test_prose_expectations_are_refused_unless_another_score_is_named(tmp_path):
    (tmp_path / "evals").mkdir()
    evals = [{"id": 4, "prompt": "p", "expected_output": "e", "expectations": ["The tone is friendly"]}]
    (tmp_path / "evals" / "evals.json").write_text(json.dumps({"skill_name": "s", "evals": evals}))
    with pytest.raises(UsageError, match=r'sample "4", check 1: the check "The tone is friendly" .* needs a judge'):
        Env(tmp_path)
    with pytest.raises(UsageError, match=r"evals.json:1: sample .*; 1 of 1 samples have such checks; in a command"):
        Env(tmp_path)
    assert Env(tmp_path, "contains").samples[0].checks[0]["type"] == "judge"


async def test_a_target_that_no_check_looks_at_is_stated_and_can_be_tried():
    checks = [{"type": "contains", "target": "x"}]
    tone = {"type": "judge", "text": "It is kind"}
    rows = [
        {"id": "good", "input": "q", "target": "an x", "checks": checks},
        {"id": "bad", "input": "q", "target": "a y", "checks": checks},
        {"id": "mixed", "input": "q", "target": "a y", "checks": [*checks, tone]},
        {"id": "read", "input": "q", "target": "an x", "checks": [tone]},
        {"id": "none", "input": "q", "checks": checks},
    ]
    made = Env(rows, {"judge": "openai/none"})
    assert [made.stated(sample) for sample in made.samples] == ["an x", "a y", "a y", "an x", ""]
    assert [made.expected(sample) for sample in made.samples] == [""] * 5
    scores = [await made.tried(sample) for sample in made.samples]
    assert [score and score.value for score in scores] == [1, 0, 0, None, None]
    assert await made.validate() == []
    pattern = Env([{"input": "q", "target": "[ab]"}], "regex")
    assert pattern.stated(pattern.samples[0]) == ""


def test_a_file_of_a_skill_is_found_from_the_skill(tmp_path):
    (tmp_path / "evals" / "files").mkdir(parents=True)
    (tmp_path / "evals" / "files" / "in.csv").write_text("a,b")
    evals = [{"id": 1, "prompt": "p", "expected_output": "e", "files": ["evals/files/in.csv"]}]
    (tmp_path / "evals" / "evals.json").write_text(json.dumps({"evals": evals}))
    for path in (tmp_path, tmp_path / "evals" / "evals.json"):
        made = Env(path)
        assert (made.root, made.samples[0].files) == (tmp_path.resolve(), {"in.csv": "evals/files/in.csv"})


async def test_validate_names_samples_whose_expected_answer_fails_or_whose_silence_passes():
    def short(sample, rollout):
        return len(rollout.answer) < 3

    def broken(sample, rollout):
        return 1 / len(rollout.answer)

    rows = [{"id": "a", "input": "q", "target": "long answer"}, {"id": "b", "input": "r", "target": "ok"}]
    problems = await Env(rows, short).validate()
    assert [line.split(":")[0] for line in problems] == ['sample "a"', 'sample "a"', 'sample "b"']
    assert "its expected answer scores 0" in problems[0]
    assert "an empty answer scores 1" in problems[2]
    assert "ZeroDivisionError" in (await Env([{"input": "q", "target": "x"}], broken).validate())[0]
    tagged = Env([{"input": "q", "target": "two\nlines"}], "em")
    assert await tagged.validate() == []


async def test_pitfall_4_a_scorer_that_raises_is_a_judge_error():
    made = Env([{"id": "a", "input": "q"}], lambda sample, rollout: [][0])
    with pytest.raises(JudgeError, match='sample "a": IndexError'):
        await made.score(made.samples[0], rollout("x"))


def test_the_fingerprint_is_of_prompt_and_scorer_and_not_of_the_samples():
    rows = [{"input": "q", "target": "1"}]
    same = Env(rows).fingerprint
    assert same == Env([{"input": "other", "target": "2"}]).fingerprint
    others = [Env(rows, prompt="{input}!"), Env(rows, "em"), Env(rows, "number"), Env(rows, "number:1")]
    assert len({same, *(made.fingerprint for made in others)}) == 5


ENV = """
    import skilltune.envs as st
    from neighbour import TARGET

    ready = st.Env([{"input": "q", "target": TARGET}])

    @st.env
    def invoices(tolerance: float = 0.0, *, prompt="{input}"):
        from neighbour import TARGET as again
        score = {"type": "number", "tolerance": tolerance}
        return st.Env([{"input": "q", "target": again}], score, prompt=prompt)

    def plain(n=1):
        return st.Env([{"id": str(i), "input": "q", "target": "5"} for i in range(n)])

    def wrong():
        return 5
"""


@pytest.fixture
def env_file(tmp_path):
    (tmp_path / "env.py").write_text(textwrap.dedent(ENV))
    (tmp_path / "neighbour.py").write_text("TARGET = '5'\n")
    yield str(tmp_path / "env.py")
    sys.modules.pop("neighbour", None)


def test_load_env_finds_factories_and_instances_and_keeps_arguments(env_file):
    path = list(sys.path)
    made = load_env(f"{env_file}:invoices", tolerance=0.5)
    assert (made.name, made.args) == ("invoices", {"tolerance": 0.5, "prompt": "{input}"})
    assert load_env(env_file).name == "invoices"
    plain = load_env(f"{env_file}:plain", n=3)
    assert (len(plain.samples), plain.name, plain.args) == (3, "plain", {"n": 3})
    assert load_env(f"{env_file}:ready").samples[0].target == "5"
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        (":invoice", {}, 'no env "invoice" .did you mean "invoices"'),
        (":wrong", {}, r"wrong.. must return an Env, not int without samples"),
        (":invoices", {"tolerence": 1}, "tolerence"),
        (":ready", {"n": 1}, "it takes no n"),
        ("x:invoices", {}, "must look like env.py:name"),
    ],
)
def test_load_env_says_what_is_wrong(env_file, name, kw, message):
    with pytest.raises(UsageError, match=message):
        load_env(f"{env_file}{name}", **kw)


def test_load_env_of_a_broken_or_missing_file(tmp_path):
    (tmp_path / "broken.py").write_text("import json\njson.nothing\n")
    with pytest.raises(UsageError, match=r"broken.py:2: importing it failed with AttributeError"):
        load_env(f"{tmp_path}/broken.py:x")
    with pytest.raises(UsageError, match="no such Python file"):
        load_env(f"{tmp_path}/missing.py:x")


def test_the_decorator_binds_positional_arguments():
    @env
    def made(n, *, target="x"):
        return Env([Sample(id=str(i), input=(ChatTurn(content="q"),), target=target) for i in range(n)])

    assert made(2).args == {"n": 2, "target": "x"}


async def test_a_users_score_comes_through_unchanged():
    given = Score(0.5, "half of it", soft=0.7, metrics={"tokens": 3.0})
    made = Env([{"input": "q"}], lambda sample, rollout: given)
    assert await made.score(made.samples[0], rollout("x")) == given


def test_each_file_is_hashed_once_and_images_as_they_are_shown(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG + b"b")
    (tmp_path / "c.txt").write_text("text")
    turns = (
        ChatTurn(content="look", images=("b.png",)),
        ChatTurn(role="assistant", content="yes"),
        ChatTurn(content="and here?", images=("a.png",)),
        ChatTurn(role="assistant", content="…", images=("b.png",)),
    )
    sample = Sample(id="1", input=turns, target="x", files={"in/b.png": "b.png", "c.txt": "c.txt"})
    made = Env([sample], root=tmp_path)
    shown = [sha256(image.data).hexdigest() for message in made.messages(sample) for image in message.images]
    read = []
    monkeypatch.setattr("skilltune.envs.digest_of", lambda path: read.append(path.name) or digest_of(path))
    images, files = made.hashes(sample)
    assert images == shown
    assert files == {"in/b.png": shown[0], "c.txt": sha256(b"text").hexdigest()}
    assert sorted(read) == ["b.png", "c.txt"]


def test_images_are_not_read_to_find_out_that_they_can_be_shown(tmp_path, monkeypatch):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    (tmp_path / "c.txt").write_text("text")
    files = {"large.png": "large.png", "c.txt": "c.txt"}
    Env([Sample(id="1", input="q", target="x", files=files)], root=tmp_path).require_shown()
    with (tmp_path / "c.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="is too long"):
        Env([Sample(id="1", input="q", target="x", files=files)], root=tmp_path).require_shown()
