"""The configuration: presets, errors that name what was meant, and a TOML file that reads back as it was."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from skilltune.config import EXAMPLES, Config, load_config, make_config, to_toml
from skilltune.errors import UsageError


def refused(tree: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        make_config(tree, overrides, source="run.toml")
    return str(caught.value)


# -- presets


def test_default_and_paper_are_nothing_but_other_defaults():
    default, paper = make_config({}), make_config({"preset": "paper"})
    assert default == Config()
    assert (default.gate.policy, default.train.merge, default.optimizer.checks) == ("race", "pool", "enforce")
    assert (default.env.split, default.gate.metric) == ((4, 3, 3), "score")
    assert (paper.gate.policy, paper.train.merge, paper.optimizer.checks) == ("strict", "rank", "record")
    assert (paper.env.split, paper.gate.metric) == ((2, 1, 7), "hard")
    assert (default.train.batch_size, paper.train.batch_size) == (30, 40)
    for cfg in (default, paper):
        assert (cfg.train.epochs, cfg.train.lr, cfg.train.lr_min, cfg.train.schedule) == (4, 4, 2, "cosine")


def test_what_is_given_wins_over_the_preset_and_an_override_over_both():
    tree = {"preset": "paper", "gate": {"metric": "soft"}}
    assert make_config(tree).gate.metric == "soft"
    assert make_config(tree).gate.policy == "strict"
    assert make_config(tree, ["gate.metric=mixed"]).gate.metric == "mixed"
    assert make_config({}, ["preset=paper"]).gate.policy == "strict"


def test_an_unknown_preset_names_the_known_ones():
    for preset in ("papr", ["paper"], {"a": 1}, 3):
        assert "'default' or 'paper'" in refused({"preset": preset})


def test_every_key_says_what_it_is_for():
    sections = {name: field.annotation for name, field in Config.model_fields.items() if not field.description}
    assert sections, "the tables say it in their docstrings"
    for name, section in sections.items():
        assert isinstance(section, type), f"{name} has no description"
        assert issubclass(section, BaseModel), f"{name} has no description"
        assert section.__doc__, f"[{name}] has no docstring"
        silent = [key for key, field in section.model_fields.items() if not field.description]
        assert not silent, f"[{name}] {', '.join(silent)}: no description"


# -- errors


@pytest.mark.parametrize(
    ("tree", "key", "meant"),
    [
        ({"trian": {}}, "trian", "train"),
        ({"train": {"epoch": 2}}, "train.epoch", "epochs"),
        ({"train": {"batchsize": 2}}, "train.batchsize", "batch_size"),
        ({"optimizer": {"show_expcted": True}}, "optimizer.show_expcted", "show_expected"),
        ({"budget": {"dollars": 3, "minuts": 3}}, "budget.minuts", "minutes"),
    ],
)
def test_pitfall_26_an_unknown_key_is_an_error_that_names_the_nearest(tree, key, meant):
    assert f'run.toml: unknown key {key}; did you mean "{meant}"?' in refused(tree)


@pytest.mark.parametrize(
    ("key", "tree"),
    [("train.compact", {"train": {"compact": True}}), ("certify.controls", {"certify": {"controls": False}})],
)
def test_a_key_that_became_a_command_names_the_command(key, tree):
    assert f"{key} is a command now" in (told := refused(tree))
    assert f"run `skilltune {key.partition('.')[2]} RUN`" in told
    with pytest.raises(UsageError, match=r"override: .* is a command now"):
        make_config({}, [f"{key}=true"])


def test_an_unknown_key_without_a_near_one_lists_all():
    message = refused({"certify": {"zzz": 1}})
    assert "unknown key certify.zzz; known keys: attempts, alpha" in message


def test_all_errors_are_told_at_once():
    message = refused({"train": {"epochs": -1, "lrr": 2}, "gate": {"metric": "best"}})
    assert len(message.splitlines()) == 3
    assert "train.epochs" in message
    assert "gate.metric" in message
    assert "(got 'best')" in message


def test_a_rate_that_would_rise_is_refused():
    message = refused({"train": {"lr": 2, "lr_min": 3}})
    assert "train.lr_min (3) is larger than train.lr (2)" in message
    assert "train.lr_min (2) is larger than train.lr (1)" in refused({"train": {"lr": 1}})  # the default minimum is 2
    assert make_config({"train": {"lr": 1, "lr_min": 1}}).train.lr == 1


def test_the_last_bar_of_a_race_is_no_higher_than_the_others():
    for last in (0.96, 0.999):
        assert f"gate.last_confidence ({last}) is above confidence (0.95)" in refused(
            {"gate": {"confidence": 0.95, "last_confidence": last}}
        )
    assert "gate.proven_confidence (0.9) is above last_confidence (0.88)" in refused(
        {"gate": {"proven_confidence": 0.9}}
    )
    low = make_config({"gate": {"confidence": 0.8}}).gate
    assert (low.last_confidence, low.proven_confidence) == (0.8, 0.55)  # a default follows what was set
    lower = make_config({"gate": {"confidence": 0.8, "last_confidence": 0.52}}).gate
    assert lower.proven_confidence == 0.52
    equal = make_config({"gate": {"confidence": 0.95, "last_confidence": 0.95}})
    assert equal.gate.last_confidence == equal.gate.confidence
    assert make_config({}).gate.last_confidence < make_config({}).gate.confidence


def test_a_model_name_that_cannot_be_is_refused_at_once():
    assert "target.model" in refused({"target": {"model": "gpt-5.5"}})


def test_pitfall_22_a_password_in_a_url_is_refused_without_repeating_it():
    message = refused({"target": {"model": "openai@https://me:hunter2@host/v1/m"}})
    assert "must not carry a user" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_are_finite(number):
    for tree in ({"target": {"timeout_s": number}}, {"env": {"split": [1, 1, number]}}, {"budget": {"usd": number}}):
        assert "finite" in refused(tree)


def test_a_config_cannot_be_changed():
    cfg = make_config({})
    with pytest.raises(ValidationError):
        cfg.train.lr = 9


# -- overrides


def test_overrides_are_toml_values_or_bare_words():
    overrides = [
        "train.epochs=2",
        "slow.enabled = false",
        "env.split=[1, 2, 3]",
        'env.score={type = "number", tolerance = 0.01}',
        "target.model=openai@http://127.0.0.1:8000/v1/a=b",
        "env.samples=data/file.jsonl",
        "gate.length_price=1e-3",
        'env.prompt="a\\n{input}"',
        "env.fields.input=question",
    ]
    cfg = make_config({}, overrides)
    assert cfg.train.epochs == 2
    assert cfg.slow.enabled is False
    assert cfg.env.split == (1, 2, 3)
    assert cfg.env.score == {"type": "number", "tolerance": 0.01}
    assert cfg.target.model == "openai@http://127.0.0.1:8000/v1/a=b"
    assert cfg.env.samples == "data/file.jsonl"
    assert cfg.gate.length_price == 0.001
    assert cfg.env.prompt == "a\n{input}"
    assert cfg.env.fields == {"input": "question"}


def test_what_is_wrong_in_an_override_is_not_said_of_the_file():
    tree = {"gate": {"blok": 8}}
    told = refused(tree, "gate.screeen=3", "train.lr=many").splitlines()
    assert sorted(line.partition(":")[0] for line in told) == ["override", "override", "run.toml"]
    [of_file] = [line for line in told if line.startswith("run.toml")]
    assert "gate.blok" in of_file


def test_an_override_that_is_none_says_how_to_write_one():
    for override in ("train.epochs", "=2", "  = 2"):
        assert "write section.key=value" in refused({}, override)
    assert '"seed.x=1": seed is not a section' in refused({"seed": 1}, "seed.x=1")
    assert 'did you mean "epochs"' in refused({}, "train.epocs=2")


def test_the_given_tree_is_not_changed_by_overrides():
    tree = {"train": {"epochs": 1}}
    make_config(tree, ["train.epochs=2"])
    assert tree == {"train": {"epochs": 1}}


def test_a_budget_may_be_a_sentence_and_one_of_its_limits_overridden():
    assert make_config({"budget": "5 usd, 30 minutes"}).budget.model_dump(exclude_none=True) == {
        "usd": 5,
        "minutes": 30,
    }
    assert make_config({}, ["budget=2k calls"]).budget.calls == 2000
    raised = make_config({"budget": "5 usd, 2M tokens"}, ["budget.usd=8"]).budget  # as BudgetExceeded tells one to
    assert (raised.usd, raised.tokens) == (8, 2_000_000)
    assert make_config({"budget": {"usd": 5}}, ["budget=9 calls"]).budget.model_dump(exclude_none=True) == {"calls": 9}
    assert "cannot read the budget" in refused({"budget": "5 bucks"})
    assert "budget.usd" in refused({"budget": "0 usd"})


# -- files


def test_a_toml_file_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_bytes('\ufeffskill = "ü.md"\r\n[train]\r\nepochs = 1\r\n'.encode())
    cfg, root = load_config(file, ["seed=7"])
    assert (cfg.skill, cfg.train.epochs, cfg.seed, root) == ("ü.md", 1, 7, tmp_path)


def test_a_skill_folder_is_a_complete_input(tmp_path: Path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "evals.json").write_text("[]")
    cfg, root = load_config(tmp_path, ["target.model=local/x"])
    assert (cfg.skill, cfg.env.samples, cfg.target.model, root) == (".", "evals/evals.json", "local/x", tmp_path)
    (tmp_path / "skilltune.toml").write_text("seed = 5")
    for named in (tmp_path, tmp_path / "skilltune.toml"):
        cfg, root = load_config(named)
        assert (cfg.seed, cfg.env.samples, root) == (5, "evals/evals.json", tmp_path)
    (tmp_path / "skilltune.toml").write_text('[env]\nscore = "f1"')
    assert load_config(tmp_path)[0].env.samples == "evals/evals.json"
    assert load_config(tmp_path, ["env.samples=mine.jsonl"])[0].env.samples == "mine.jsonl"
    (tmp_path / "skilltune.toml").write_text('[env]\nsamples = "data.jsonl"')
    assert load_config(tmp_path)[0].env.samples == "data.jsonl"
    (tmp_path / "evals" / "evals.json").unlink()
    (tmp_path / "skilltune.toml").write_text('[env]\nscore = "f1"')
    assert load_config(tmp_path)[0].env.samples == ""


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"budget": 3000}, "budget is a section, not a value: set its keys, e.g. budget.calls=3000"),
        ({"target": "openai/gpt-5.5"}, 'set its keys, e.g. target.model="openai/gpt-5.5"'),
        ({"env": "data.jsonl"}, 'set its keys, e.g. env.samples="data.jsonl"'),
        ({"env": {"split": "4:3:3"}}, "env.split is a list: write its values in square brackets"),
        ({"target": {"tools": "bash"}}, "target.tools is a list: write its values in square brackets"),
    ],
)
def test_a_value_of_the_wrong_shape_is_told_the_right_one(tree: dict[str, Any], says: str):
    assert says in refused(tree)


def test_the_example_of_each_section_is_a_setting():
    sections = {key for key, known in Config.model_fields.items() if hasattr(known.annotation, "model_fields")}
    assert EXAMPLES.keys() == sections
    make_config({}, [f"{key}.{example}" for key, example in EXAMPLES.items()])


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"holds neither skilltune\.toml nor evals/evals\.json"):
        load_config(tmp_path)
    with pytest.raises(UsageError, match=r"cannot read the config .*missing\.toml"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"no such file or folder; `skilltune init .*/missing` starts a skill there"):
        load_config(tmp_path / "missing")
    broken = tmp_path / "broken.toml"
    for content in (b"seed = ", b"seed = 1\nseed = 2", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML"):
            load_config(broken)
    broken.write_text("[train]\nepoch = 1")
    with pytest.raises(UsageError, match=r"broken\.toml: unknown key train\.epoch"):
        load_config(broken)


# -- round trip

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
json_value = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
positive = st.floats(1e-6, 1e9)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["default", "paper"]),
        "skill": text,
        "seed": st.integers(),
        "env": st.fixed_dictionaries(
            {},
            optional={
                "samples": text,
                "score": text | st.dictionaries(text, json_value, max_size=4),
                "prompt": st.none() | text,
                "split": st.tuples(positive, positive, positive).map(list),
                "fields": st.dictionaries(text, text, max_size=3),
            },
        ),
        "target": st.fixed_dictionaries(
            {},
            optional={
                "model": st.sampled_from(["", "local/m", "openai@http://[::1]:80/v1/x#y", 'plugin:sh/"a\\b" \t']),
                "timeout_s": positive,
                "temperature": st.none() | st.floats(0, 2),
                "price": st.none() | st.tuples(positive, positive).map(list),
            },
        ),
        "train": st.fixed_dictionaries(
            {}, optional={"lr": st.integers(2, 9), "update": st.sampled_from(["patch", "rewrite"])}
        ),
        "budget": st.fixed_dictionaries({}, optional={"usd": st.none() | positive, "tokens": st.integers(1, 10**12)}),
    },
)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_the_written_config_reads_back_as_it_was(tree):
    cfg = make_config(tree)
    written = to_toml(cfg)
    assert make_config(tomllib.loads(written.encode().decode("utf-8-sig"))) == cfg
    assert to_toml(make_config(tomllib.loads(written))) == written
    assert make_config(json.loads(json.dumps(cfg.to_json()))) == cfg


def test_pitfall_18_odd_texts_survive_the_file(tmp_path: Path):
    odd = 'a "quoted" \\ {brace} 😀 \x7f \x00 \r\n\t \u2028 é'
    cfg = make_config({"env": {"prompt": odd, "score": {"type": "json", odd: {"n": None, "list": [odd]}}}})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(cfg), encoding="utf-8", newline="")
    again, _ = load_config(file)
    assert again.env.prompt == odd
    assert again.env.score == {"type": "json", odd: {"list": [odd]}}  # TOML has no null


def test_a_config_that_is_nested_too_deeply_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("x = " + "[" * 3000 + "]" * 3000)
    with pytest.raises(UsageError, match=r"deep\.toml is nested too deeply"):
        load_config(tmp_path / "deep.toml")
    many = "[" * 3000
    assert make_config({}, [f"env.samples={many}"]).env.samples == many


@pytest.mark.parametrize(
    ("tokens", "limit"), [(0, 2000), (1666, 2000), (1667, 2001), (2000, 2400), (2400, 2880), (3129, 3755)]
)
def test_a_skill_may_grow_by_a_fifth_and_in_any_case_to_two_thousand_tokens(tokens: int, limit: int) -> None:
    assert make_config({}).train.skill_limit(tokens) == limit
    assert make_config({"train": {"max_skill_tokens": 500}}).train.skill_limit(tokens) == 500
