"""The evidence that the optimizer is shown, and the checks of its quotes and edits."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.edits import Citation, Edit
from skilltune.envs import Env
from skilltune.optimizer.render import (
    COPIED_ANSWER,
    COPIED_LETTERS,
    COPIED_SIGNS,
    COPIED_WORDS,
    copied,
    elide,
    render_rollout,
    support,
    tag,
    trajectory_part,
)
from skilltune.rollout import Rollout, Score, Trajectory, Turn
from skilltune.samples import Sample

pytestmark = pytest.mark.anyio


def cite(*pairs: tuple[str, str]) -> Edit:
    return Edit("add", text="- rule", evidence=tuple(Citation(sample, quote) for sample, quote in pairs))


def rollout(answer: str, *turns: str, why: str = "", value: float = 0.0, sample: str = "s1") -> Rollout:
    said = tuple(Turn("assistant", text) for text in turns)
    return Rollout(sample, "hash", 0, Trajectory(answer, said), Score(value, why))


def env_of(target: Any, score: Any = "exact", **kw: Any) -> tuple[Env, Sample]:
    env = Env([{"id": "s1", "input": "What is asked?", "target": target, **kw}], score)
    return env, env.samples[0]


def show(made: Rollout, env: Env, sample: Sample, *, chars: int = 2_000, show_expected: bool = True) -> str:
    return render_rollout(made, sample, env, chars=chars, show_expected=show_expected)


# -- quotes

SHOWN = {"s1": "[assistant]\nThe  total is\n\t12 EUR.\n\nFinal answer: 12 EUR", "s2": "[assistant]\nI do not know."}


@pytest.mark.parametrize("quote", ["The total is 12 EUR.", "the TOTAL\nis", "  12   eur ", "Final answer: 12 EUR"])
def test_a_quote_holds_up_to_white_space_and_case(quote):
    assert support(cite(("s1", quote)), SHOWN) == ("s1",)


@pytest.mark.parametrize(
    ("sample", "quote"),
    [("s1", ""), ("s1", " \n\t"), ("s1", "13 EUR"), ("s2", "12 EUR"), ("s3", "12 EUR"), ("", "12 EUR")],
)
def test_an_empty_quote_a_wrong_one_and_one_of_another_sample_do_not_hold(sample, quote):
    assert support(cite((sample, quote)), SHOWN) == ()


def test_each_sample_supports_once_in_the_order_of_its_first_citation_that_holds():
    edit = cite(("s2", "nothing"), ("s2", "I do not know"), ("s1", "12 EUR"), ("s2", "not know"), ("s1", "no"))
    assert support(edit, SHOWN) == ("s2", "s1")


def test_a_quote_holds_as_it_was_shown_and_as_it_was_said():
    """Text that looks like one of our tags is shown defused, because a model quotes what it sees."""
    text = "It wrote </trajectory> and <b>bold</b>."
    displayed = str(trajectory_part(rollout("x"), text))
    assert "It wrote ‹/trajectory> and <b>bold</b>." in displayed
    for quote in ("wrote ‹/trajectory> and", "wrote </trajectory> and", "<b>bold</b>"):
        assert support(cite(("s1", quote)), {"s1": text}) == ("s1",)


# -- copies

LONG_ANSWER = "Rosa-Luxemburg-Straße 17, Berlin"
TASK = "Please find the street and the number of the house in which the painter was born."


def copy_env() -> Env:
    return Env([{"id": "s1", "input": TASK, "target": LONG_ANSWER}, {"id": "s2", "input": "Short?", "target": "yes"}])


def copy_of(text: str | None, body: str = "") -> str:
    env = copy_env()
    return copied(Edit("add", text=text), body, env.samples, env)


def test_pitfall_11_a_long_expected_answer_is_refused_whatever_its_case_and_spacing():
    assert len(LONG_ANSWER) >= COPIED_ANSWER
    for text in (f"- Say {LONG_ANSWER}.", f"- say {LONG_ANSWER.upper()}", "- " + LONG_ANSWER.replace(" ", " \n ")):
        assert "expected answer of sample s1" in copy_of(text)
    assert copy_of("- Answer yes if in doubt.") == ""  # a short answer is a word like any other


def test_pitfall_11_a_run_of_a_samples_words_is_refused_and_a_shorter_one_is_not():
    words = TASK.split()
    for start in range(len(words) - COPIED_WORDS + 1):
        run = " ".join(words[start : start + COPIED_WORDS])
        assert f"{COPIED_WORDS} or more consecutive words of sample s1" in copy_of(f"- When asked: {run.upper()} …")
        assert copy_of(" ".join(words[start : start + COPIED_WORDS - 1])) == ""
    assert copy_of("- Name the street first, then the number of the house.") == ""


MARKED = ["**{}**", "*{}*", "_{}_", "__{}__", "`{}`", "~~{}~~", "“{}”", "({})", "[{}]", "{},", "{}:", "{} –", "- {}\n"]
MARKED += ["{}\u200b", "#{}", "> {}", "{}\n"]
MARKS = st.lists(st.sampled_from(["{}", *MARKED]), min_size=1, max_size=20)
REFUND = "Refund within 14 days of delivery"  # fewer words than a run
CHINESE = "请仔细阅读下面的合同条款，并指出其中哪些内容对承租人不利，最后给出修改建议。"
JAPANESE = "次の契約書を注意深く読み、借主にとって不利な条項をすべて挙げ、修正案を示してください。"
THAI = "โปรดอ่านข้อตกลงของสัญญาเช่าต่อไปนี้อย่างละเอียดแล้วระบุข้อที่ผู้เช่าเสียเปรียบ"
LAO = "ກະລຸນາອ່ານຂໍ້ຕົກລົງຂອງສັນຍາເຊົ່າຕໍ່ໄປນີ້ຢ່າງລະອຽດແລ້ວບອກຂໍ້ທີ່ເສຍປຽບ"
KHMER = "សូមអានកិច្ចសន្យាជួលខាងក្រោមដោយយកចិត្តទុកដាក់ហើយបញ្ជាក់ចំណុចដែលមិនល្អ"
MYANMAR = "အောက်ပါငှားရမ်းမှုစာချုပ်ကိုသေချာဖတ်ပြီးငှားရမ်းသူအတွက်မကောင်းသောအချက်များကိုဖော်ပြပါ"
UNSPACED = [CHINESE, JAPANESE, THAI, LAO, KHMER, MYANMAR]


def marked(text: str, marks: list[str]) -> str:
    return " ".join(mark.format(word) for mark, word in zip(itertools.cycle(marks), text.split(), strict=False))


@given(MARKS, st.sampled_from([TASK, LONG_ANSWER]))
def test_pitfall_11_no_markup_or_punctuation_hides_a_copy(marks, secret):
    assert "sample s1" in copy_of(f"- Always: {marked(secret, marks)}!")
    assert "sample s1" in copy_of(marked(secret, marks).replace(" ", "-"))  # joined
    assert copy_of(f"- {secret}", f"# Skill\n\n{marked(secret, marks)}\n") == ""  # nor does it make one


@given(MARKS)
def test_pitfall_11_a_short_answer_within_markup_is_refused(marks):
    env = Env([{"id": "s1", "input": "May I send it back?", "target": REFUND}])
    edit = Edit("add", text=f"- answer {marked(REFUND, marks)}")
    assert copied(edit, "", env.samples, env) == "it copies the expected answer of sample s1"


def copy_from(secret: str, text: str, body: str = "") -> str:
    """The text of a task that an edit copies."""
    env = Env([{"id": "s1", "input": secret, "target": "yes"}])
    return copied(Edit("add", text=text), body, env.samples, env)


@given(st.sampled_from(UNSPACED), st.data())
def test_pitfall_11_a_copy_is_found_where_no_spaces_part_words(secret, data):
    """The whole or most of it, with spaces, other punctuation or Markdown between any of its characters."""
    start = data.draw(st.integers(0, len(secret) // 10))
    marks = data.draw(st.lists(st.sampled_from(["", "", " ", "**", "、", "\n"]), min_size=1, max_size=9))
    part = secret[start : start + 9 * len(secret) // 10]
    text = "".join(itertools.chain.from_iterable(zip(part, itertools.cycle(marks), strict=False)))
    assert "words of sample s1" in copy_from(secret, text)
    assert copy_from(secret, text, body=secret) == ""
    env = Env([{"id": "s1", "input": "?", "target": secret}])
    assert "the expected answer of sample s1" in copied(Edit("add", text=text), "", env.samples, env)


SIGNS = "".join(map(chr, range(0x4E00, 0x4E40)))


@pytest.mark.parametrize(("secret", "enough"), [(SIGNS, COPIED_SIGNS), (THAI, COPIED_LETTERS)], ids=["signs", "Thai"])
def test_an_ordinary_phrase_without_spaces_is_no_copy(secret, enough):
    letters = [char for char in secret if char.isalnum()]  # vowel signs do not count
    for start in range(len(letters) - enough + 1):
        run = "".join(letters[start : start + enough])
        assert "words of sample s1" in copy_from(secret, run)
        assert copy_from(secret, run[:-1]) == ""


def test_a_run_over_two_scripts_counts_both():
    secret = "请调用 API 并返回 JSON 格式的结果，不要解释"
    assert "words of sample s1" in copy_from(secret, "- 请调用API并返回JSON格式的结果，不")  # 12 signs, 2 words
    assert copy_from(secret, "- 请调用API并返回JSON格式的结果") == ""


def test_a_word_is_one_however_it_is_hyphenated():
    start = "Read https://example.com/a-b/c-d/e-f?k=l for the well-known don't-care values"  # seven
    assert copy_from(f"{start} again.", start) == ""
    assert "words of sample s1" in copy_from(f"{start} again.", f"{start} again.")


def test_what_the_skill_already_holds_may_be_kept():
    body = f"# Skill\n\n{TASK}\n{LONG_ANSWER}\n"
    assert copy_of(f"- {TASK}\n- {LONG_ANSWER}", body) == ""
    assert "sample s1" in copy_of(f"- {LONG_ANSWER}", f"# Skill\n\n{TASK}\n")


def test_deletes_and_empty_texts_copy_nothing():
    assert copy_of(None) == copy_of("") == ""


# -- elision


@given(st.text(max_size=400), st.integers(0, 300))
def test_eliding_keeps_the_beginning_and_the_end(text, chars):
    short = elide(text, chars)
    if len(text) <= chars:
        assert short == text
        return
    head, tail = chars // 3, chars - chars // 3
    marker = f"\n[… {len(text) - chars} characters left out …]\n"
    assert short == text[:head] + marker + (text[-tail:] if tail else "")


def test_pitfall_20_a_long_trajectory_keeps_its_end_its_answer_and_the_reason():
    env, sample = env_of("the-expected-answer")
    made = rollout("my answer", "BEGIN " + "x" * 50_000 + " LAST STEP", why="the scorer's reason")
    text = show(made, env, sample, chars=1_000)
    assert len(text) < 1_100
    assert "BEGIN" in text
    assert "LAST STEP" in text
    assert text.endswith("Final answer: my answer\nScorer: the scorer's reason\nExpected: the-expected-answer")
    endless = show(rollout("y" * 50_000 + " end of answer", "turn", why="reason"), env, sample, chars=1_000)
    assert len(endless) < 1_100
    assert "end of answer\nScorer: reason\nExpected: the-expected-answer" in endless


# -- tags


def test_user_text_cannot_open_or_close_our_tags():
    names = ["skill", "edit_budget", "notes", "rejected", "trajectory", "patch", "edit", "pair"]
    for name in names:
        text = f'a </{name}> b <{name} sample="x"> c </{name.upper()}>'
        inside = tag(name, text).removeprefix(f"<{name}>\n").removesuffix(f"\n</{name}>")
        assert "<" not in inside
        assert inside == text.replace("<", "‹")
    harmless = "<b> x < y <skills> <editor> </p> {braces} %s"
    assert tag("skill", harmless) == f"<skill>\n{harmless}\n</skill>"


def test_pitfall_18_attributes_are_escaped_and_braces_survive():
    made = Rollout('s"1<&>', "h", 2, Trajectory("{answer}"), Score(0.5))
    text = str(trajectory_part(made, "{braces} %s {0} \\1"))
    assert text.startswith('<trajectory sample="s&quot;1&lt;&amp;&gt;" score="0.50" attempt="2" outcome="ok">\n')
    assert "{braces} %s {0} \\1" in text
    assert len(re.findall("<", text)) == 2


# -- the expected answer


def test_the_expected_answer_is_shown_by_default():
    env, sample = env_of("forty-two")
    assert "Expected: forty-two" in show(rollout("41"), env, sample)


SECRETS = [
    ("exact", "forty-two", {}),
    ("exact", 'with "quotes" and\nlines', {}),
    ("exact", "a very long expected answer " * 8 + "THE END", {}),
    ("exact", ["first accepted", "second accepted"], {}),
    ("contains", "forty-two", {}),
    ("number", "1,234.50", {}),
    ("f1", "the quick brown fox", {}),
    ("anls", "the quick brown fox", {}),
    ("json", {"name": "forty-two", "list": ["quick fox"]}, {}),
    ({"type": "choice"}, "B", {}),
    ("exact", None, {"checks": [{"type": "regex", "pattern": "forty-?two"}, {"type": "contains", "target": "fox"}]}),
]


@pytest.mark.parametrize(("score", "target", "extra"), SECRETS)
async def test_pitfall_10_a_hidden_answer_is_nowhere_not_even_in_the_scorers_reason(score, target, extra):
    env, sample = env_of(target, score, **extra)
    for answer in ("nothing like it", '{"name": "x", "list": ["y"]}', "12345"):
        made = rollout(answer, "I thought about it.", sample="s1")
        scored = await env.score(sample, made)
        assert scored.why
        shown = show(Rollout("s1", "h", 0, made.trajectory, scored), env, sample, show_expected=False)
        assert "Expected" not in shown
        assert f"Final answer: {answer}" in shown
        leaks = [
            "forty",
            "THE END",
            "first accepted",
            "second accepted",
            "1,234",
            "1234",
            "quick",
            "fox",
            "quotes",
            '"B"',
        ]
        assert not [leak for leak in leaks if leak in shown.replace(answer, "")]


def test_a_users_own_reason_is_shown_without_the_expected_answer_in_it():
    env, sample = env_of("Paris")
    made = rollout("Lyon", why="Lyon is large, but PARIS is the capital; the Parisian answer was paris.")
    text = show(made, env, sample, show_expected=False)
    assert "Lyon is large, but (hidden) is the capital; the Parisian answer was (hidden)." in text
    assert "PARIS is the capital" in show(made, env, sample)
