"""Convert: plain JSONL that loads to equal samples, whatever they came from."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from skilltune.authoring.convert import convert, to_jsonl
from skilltune.cli.main import app
from skilltune.envs import Env
from skilltune.envs.formats import load_samples
from skilltune.errors import UsageError
from skilltune.samples import ChatTurn, Sample

TEXT = st.text(max_size=12)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
DATA = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
TURN = st.builds(
    ChatTurn, role=st.sampled_from(["system", "user", "assistant"]), content=TEXT, images=st.tuples() | st.tuples(TEXT)
)
CHECK = st.fixed_dictionaries({"type": st.sampled_from(["contains", "judge"]), "text": TEXT})
SAMPLES = st.lists(
    st.builds(
        Sample,
        id=st.text(min_size=1, max_size=8).filter(str.strip),
        input=TEXT | st.lists(TURN, min_size=1, max_size=3).map(tuple),
        target=DATA,
        files=st.dictionaries(TEXT, TEXT, max_size=2),
        group=st.none() | TEXT,
        metadata=st.dictionaries(TEXT, DATA, max_size=3),
        checks=st.lists(CHECK, max_size=2).map(tuple),
        split=st.sampled_from([None, "train", "select", "test"]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda sample: sample.id,
)


@pytest.mark.slow
@settings(deadline=None)
@given(samples=SAMPLES)
def test_what_is_written_loads_to_equal_samples(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("convert") / "data.jsonl"
    path.write_bytes(to_jsonl(samples).encode())
    assert load_samples(path) == samples


@pytest.mark.parametrize("key", ["id", "input", "target", "note"])
def test_half_a_surrogate_pair_is_refused_at_its_line(tmp_path, key):
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "q", "target": "t", key: "x \ud83d"}) + "\n")
    with pytest.raises(UsageError, match=r"a\.jsonl:1: .* holds half a surrogate pair \(\\ud83d\)"):
        convert(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match=r"sample 1.* half a surrogate pair"):
        Env([Sample(id="a", input="\ud83d", target="x")])


def test_the_command_writes_a_file_once_and_maps_fields(tmp_path):
    (tmp_path / "data.csv").write_text("q,solution\n1+1,2\n")
    out = tmp_path / "out.jsonl"
    args = ["convert", str(tmp_path / "data.csv"), "--field", "input=q", "--field", "target=solution"]
    assert CliRunner().invoke(app, [*args, "-o", str(out)]).stdout == f"wrote 1 samples to {out}\n"
    (sample,) = load_samples(out)
    assert (sample.input, sample.target) == ("1+1", "2")
    again = CliRunner().invoke(app, [*args, "-o", str(out)])
    assert again.exit_code == 2
    assert "exists and was not changed" in again.stderr
    assert json.loads(CliRunner().invoke(app, args).stdout)["input"] == "1+1"
    wrong = CliRunner().invoke(app, [*args, "--field", "input"])
    assert "must look like input=question" in wrong.stderr


def test_samples_that_nothing_could_score_are_warned_of(tmp_path):
    (tmp_path / "data.csv").write_text("input,target\nq,a\nr,\n")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "data.csv")])
    assert len(result.stdout.splitlines()) == 2
    assert f"warning: 1 of 2 samples have neither target nor checks: {tmp_path / 'data.csv'}:3" in result.stderr


def test_the_option_is_named_where_a_field_is_missing(tmp_path):
    (tmp_path / "data.csv").write_text("Frage,Antwort\nq,a\n")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "data.csv")])
    assert (result.exit_code, "(skilltune convert: --field input=…)" in result.stderr) == (2, True)


def test_paths_follow_the_file_that_names_them(tmp_path):
    skill = tmp_path / "skill"
    (skill / "evals" / "files").mkdir(parents=True)
    (skill / "evals" / "files" / "in.csv").write_text("a")
    evals = [{"id": 1, "prompt": "p", "expected_output": "e", "files": ["evals/files/in.csv"]}]
    (skill / "evals" / "evals.json").write_text(json.dumps({"evals": evals}))
    convert(skill, tmp_path / "all.jsonl")
    assert Env(tmp_path / "all.jsonl").samples[0].files == {"in.csv": "skill/evals/files/in.csv"}
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match=r"lies outside of .*elsewhere: write the samples into .*skill"):
        convert(skill, tmp_path / "elsewhere" / "data.jsonl")


CRITERIA = {
    "prompt": "Write to team 4.",
    "target": "Dear team 4",
    "must_mention": ["team 4"],
    "must_not_have": ["sorry"],
}


def test_a_key_that_looks_like_criteria_is_refused_and_read_or_left_as_the_options_say(tmp_path):
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(CRITERIA) + "\n")
    args = ["convert", str(source), "-o", str(out)]
    refused = CliRunner().invoke(app, args)
    assert refused.exit_code == 2
    assert not out.exists()
    with pytest.raises(UsageError, match="must_mention and must_not_have in 1 of 1 samples") as told:
        Env(source)
    assert str(told.value) in refused.stderr.replace("error: ", "")

    options = re.findall(r"--field (\S+?)[):]*(?= |$)", refused.stderr, re.MULTILINE)
    ignored = [option for option in options if option.startswith("ignore=")]
    read = [option for option in options if option not in ignored]
    assert ignored == ["ignore=must_mention,must_not_have"]
    for chosen, checks in ((read, 2), (ignored, 0)):
        flags = [part for option in chosen for part in ("--field", option)]
        done = CliRunner().invoke(app, [*args, *flags, "--force"])
        assert done.exit_code == 0, done.stderr
        (sample,) = load_samples(out)
        assert len(sample.checks) == checks


@pytest.mark.parametrize(
    "key", ["must_mention", "forbidden_words", "should_trigger", "gradingNotes", "evaluation_steps"]
)
def test_convert_refuses_whatever_check_refuses(tmp_path, key):
    (tmp_path / "a.json").write_text(json.dumps([{"input": "q", "target": "t", key: ["x"]}]))
    errors = []
    for read in (convert, Env):
        with pytest.raises(UsageError, match=key) as told:
            read(tmp_path / "a.json")
        errors.append(str(told.value))
    assert errors[0] == errors[1]
