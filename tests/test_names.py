import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.errors import UsageError
from skilltune.names import FORMS, GENERAL, TASK_FORMS, Name, TaskName, parse_name, parse_tasks


@pytest.mark.parametrize(
    ("text", "scheme", "model", "url"),
    [
        ("openai/gpt-5.5", "openai", "gpt-5.5", None),
        ("anthropic/claude-opus-5", "anthropic", "claude-opus-5", None),
        ("openai@http://127.0.0.1:8000/v1/qwen3", "openai", "qwen3", "http://127.0.0.1:8000/v1"),
        (
            "openai@https://openrouter.ai/api/v1/openai/gpt-4o",
            "openai",
            "openai/gpt-4o",
            "https://openrouter.ai/api/v1",
        ),
        ("openai@http://h/v1/proxy/v1/m:7b", "openai", "m:7b", "http://h/v1/proxy/v1"),
        ("openai@http://[::1]:8000/v1/m", "openai", "m", "http://[::1]:8000/v1"),
        ("anthropic@http://127.0.0.1:8000/model", "anthropic", "model", "http://127.0.0.1:8000"),
        ("anthropic@https://host/proxy/v1/model", "anthropic", "model", "https://host/proxy"),
        (
            "openai@https://api.z.example/api/paas/v4#glm-5",
            "openai",
            "glm-5",
            "https://api.z.example/api/paas/v4",
        ),
        ("openai@https://h/v1beta/openai/#google/gemini-3", "openai", "google/gemini-3", "https://h/v1beta/openai"),
        ("openai@http://h/v1#qwen3", "openai", "qwen3", "http://h/v1"),
        ("openai@http://h:4000#gpt-4o", "openai", "gpt-4o", "http://h:4000"),
        ("openai@http://[::1]:8000///#m#2/x", "openai", "m#2/x", "http://[::1]:8000"),
        (
            "openai@https://me.azure.example/openai/deployments/d?api-version=2024-10-21#gpt-4o",
            "openai",
            "gpt-4o",
            "https://me.azure.example/openai/deployments/d?api-version=2024-10-21",
        ),
        ("anthropic@https://h/api/anthropic#glm-5", "anthropic", "glm-5", "https://h/api/anthropic"),
        ("anthropic@https://h/v1/#a/b", "anthropic", "a/b", "https://h"),
        ("local/smollm2-135m", "local", "smollm2-135m", None),
        ("local//models/my model.gguf", "local", "/models/my model.gguf", None),
        ("claude-code/sonnet", "claude-code", "sonnet", None),
        ("codex/gpt-5.5", "codex", "gpt-5.5", None),
        ("command:./agent.sh --at a@b/c {prompt_file}", "command", "./agent.sh --at a@b/c {prompt_file}", None),
        ("examples", "examples", "", None),
        ("handoff:to/answer", "handoff", "to/answer", None),
        ("plugin:tickets", "plugin", "", None),
        ("plugin:my.agent-2/fast/at 3", "plugin", "fast/at 3", None),
        ("fake:world", "fake", "world", None),
    ],
)
def test_every_form_of_the_grammar(text: str, scheme: str, model: str, url: str | None) -> None:
    name = parse_name(f" {text}\n")
    assert (name.scheme, name.model, name.url, name.text) == (scheme, model, url, text)
    assert str(name) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gpt-5.5", "openai/gpt-5.5"),
        ("claude-opus-5", "anthropic/claude-opus-5"),
        ("opnai/gpt-5.5", FORMS["openai/"]),
        ("OpenAI/gpt-5.5", FORMS["openai/"]),
        ("openai:gpt-5.5", FORMS["openai/"]),
        ("openia@http://127.0.0.1/v1/m", FORMS["openai@"]),
        ("http://127.0.0.1:8000/v1/qwen3", FORMS["openai@"]),
        ("local:smollm2-135m", FORMS["local/"]),
        ("claude_code/sonnet", FORMS["claude-code/"]),
        ("command/./agent.sh", FORMS["command:"]),
        ("example", "examples"),
        ("examples:3", "examples"),
        ("", "handoff:"),
        ("zzz", "handoff:"),
        ("openai/", FORMS["openai/"]),
        ("openai/ ", FORMS["openai/"]),
        ("openai/gpt 5", FORMS["openai/"]),
        ("openai@127.0.0.1:8000/v1/qwen3", "http://"),
        ("openai@http://127.0.0.1:8000/qwen3", "openai@http://127.0.0.1:8000#qwen3"),
        ("openai@https://h.example/api/paas/v4/glm-5", "openai@https://h.example/api/paas/v4#glm-5"),
        ("openai@https://[::1]/ep-1/", "openai@https://[::1]#ep-1"),
        ("openai@https://h.example", "openai@https://h.example#MODEL"),
        ("openai@https://h.example/", "openai@https://h.example#MODEL"),
        ("openai@http://127.0.0.1:8000/v1/", "openai@http://127.0.0.1:8000/v1/MODEL"),
        ("openai@http://127.0.0.1:8000/v1", "openai@http://127.0.0.1:8000/v1#MODEL"),
        ("openai@https://h/api#", GENERAL["openai@"]),
        ("openai@#m", FORMS["openai@"]),
        ("openai@https://h/api/chat/completions#m", "openai@https://h/api#m"),
        ("openai@https://h/d/chat/completions?api-version=1#m", "openai@https://h/d?api-version=1#m"),
        ("anthropic@https://h/v1/messages#m", "anthropic@https://h#m"),
        ("openai@https://h/d?api-version=1", "before the `#`"),
        ("openai@http://127.0.0.1:80x/v1/m", FORMS["openai@"]),
        ("openai@http:///v1/m", FORMS["openai@"]),
        ("openai@http://[::1/v1/m", FORMS["openai@"]),
        ("anthropic@http://127.0.0.1:8000", FORMS["anthropic@"]),
        ("anthropic@http://127.0.0.1:8000/v1", FORMS["anthropic@"]),
        ("anthropic@ftp://host/model", FORMS["anthropic@"]),
        ("handoff:", FORMS["handoff:"]),
        ("command:", FORMS["command:"]),
        ("plugin:", FORMS["plugin:"]),
        ("plugin:/fast", FORMS["plugin:"]),
        ("plugins:x", FORMS["plugin:"]),
    ],
)
def test_pitfall_26_a_typo_is_an_error_that_shows_the_right_form(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert hint in str(caught.value)


def test_pitfall_22_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    for text in (
        "openai@http://me:hunter22@host/v1/m",
        "anthropic@https://hunter22@host/m",
        "openai@http://h/v1/m?key=hunter22",
        "openai@http://h/api?key=hunter22#m",
        "openai@http://h/api?api-version=1&key=hunter22#m",
        "openai@http://me:hunter22@h/api#m",
        "openai@http://me:hunter22#@h/api#m",
        "anthropic@https://h?hunter22#m",
    ):
        with pytest.raises(UsageError) as caught:
            parse_name(text)
        assert "hunter22" not in str(caught.value)
    with pytest.raises(UsageError) as caught:  # another mistake in the same name
        parse_name("opnai@http://me:hunter22@host/v1/m")
    assert "hunter22" not in str(caught.value)


def test_models_behind_one_url_share_an_endpoint() -> None:
    names = ["openai@http://h/v1/a", "openai@http://h/v1/b", "openai@http://g/v1/a", "openai/a", "openai/b"]
    a, b, c, d, e = (parse_name(name).endpoint for name in names)
    assert a == b != c
    assert d == e != a


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("openai@http://h/v1#a/b", "openai@http://h/v1/a/b"),
        ("openai@http://h/v1/#m", "openai@http://h/v1/m"),
        ("anthropic@http://h#m", "anthropic@http://h/m"),
        ("openai@http://h/api/#m", "openai@http://h/api#m"),
    ],
)
def test_two_ways_to_write_an_endpoint_are_the_same_model(one: str, other: str) -> None:
    a, b = parse_name(one), parse_name(other)
    assert (a.known, a.endpoint) == (b.known, b.endpoint)
    assert parse_name(a.known).known == a.known
    assert a.known != parse_name(f"{other}2").known


def test_a_plug_in_has_a_name_and_perhaps_a_model_of_its_own() -> None:
    whole, other, plain = (parse_name(f"plugin:{text}") for text in ("mine/openai/gpt-5.5", "mine/fast", "yours"))
    assert (whole.plugin, whole.inner) == ("mine", parse_name("openai/gpt-5.5"))
    assert other.inner is plain.inner is parse_name("openai/gpt-5.5").inner is None
    assert whole.endpoint == other.endpoint != plain.endpoint


@given(st.text())
def test_any_text_gives_a_name_or_a_usage_error(text: str) -> None:
    try:
        name = parse_name(text)
    except UsageError:
        return
    assert isinstance(name, Name)
    assert parse_name(name.text) == name


@given(st.sampled_from(sorted(FORMS)), st.text(max_size=20))
def test_any_text_after_a_known_beginning_gives_a_name_or_a_usage_error(form: str, rest: str) -> None:
    try:
        name = parse_name(form + rest)
    except UsageError:
        return
    assert form.startswith(name.scheme)
    assert bool(name.model or name.plugin) == (form != "examples")
    assert bool(name.plugin) == (form == "plugin:")


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("claude-code/claude-opus-5", "anthropic/claude-opus-5"),
        ("codex/gpt-5.5", "openai/gpt-5.5"),
        ("codex/openai@http://127.0.0.1:8000/v1/qwen3", "openai@http://127.0.0.1:8000/v1/qwen3"),
        ("claude-code/openai@http://h/v1/org/model", "openai@http://h/v1/org/model"),
        ("opencode/anthropic@https://h/api#m", "anthropic@https://h/api#m"),
        ("acp:goose acp", None),
    ],
)
def test_an_agent_has_a_model_behind_it_whose_endpoint_it_shares(text: str, inner: str | None) -> None:
    name = parse_name(text)
    assert (name.inner.text if name.inner else None) == inner
    assert name.endpoint == (parse_name(inner).endpoint if inner else "acp")


@pytest.mark.parametrize(
    "text", ["opencode/gpt-5.5", "codex/openai@nonsense", "claude-code/local/smollm2-135m", "codex/a b", "acp:"]
)
def test_an_agent_without_a_model_that_can_be_called_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_name(text)


def test_tasks_of_another_framework() -> None:
    assert parse_tasks("data.jsonl") is None
    assert parse_tasks("env.py:invoices") is None
    named = parse_tasks("inspect:evals/tasks.py@sums")
    assert named == TaskName("inspect", "evals/tasks.py", "sums", "inspect:evals/tasks.py@sums")
    assert parse_tasks("harbor:tasks/easy") == TaskName("harbor", "tasks/easy", "", "harbor:tasks/easy")
    assert parse_tasks("inspect:a@b/c.py") == TaskName("inspect", "a@b/c.py", "", "inspect:a@b/c.py")


@pytest.mark.parametrize(
    "text", ["inspect:", "inspect:tasks", "inspect:.py@t", "inspect:tasks.py@", "inspect:t.py@a b"]
)
def test_an_incomplete_name_of_tasks_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match=TASK_FORMS["inspect:"]):
        parse_tasks(text)
    with pytest.raises(UsageError, match=TASK_FORMS["harbor:"]):
        parse_tasks("harbor: ")


@given(st.text())
def test_any_text_after_the_framework_is_parsed_or_refused(text: str) -> None:
    try:
        named = parse_tasks(f"inspect:{text}")
    except UsageError:
        return
    assert named is not None
    assert f"{named.path}{'@' * bool(named.task)}{named.task}" == text.strip()
