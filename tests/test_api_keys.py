"""One key for each endpoint: which is sent where, which is sent nowhere, and what is said of a key that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from http_server import Answer, Server
from skilltune.api_keys import is_key_variable, key_variable
from skilltune.build import build_parts
from skilltune.config import load_config, make_config
from skilltune.errors import CallConfigError, UsageError
from skilltune.journal.run import Run
from skilltune.models import Request, user
from skilltune.models.build import build_model
from skilltune.names import parse_name
from skilltune.targets.chat import ChatTarget
from training import prepare, small, train

pytestmark = pytest.mark.anyio

ASK = Request((user("2 + 2?"),))
OWN, OTHER, THIRD = "sk-of-openai-0123", "sk-of-router-4567", "sk-of-third-8901"
AZURE = "/openai/deployments/d"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in (("OPENAI_API_KEY", OWN), ("ANTHROPIC_API_KEY", OWN), ("ROUTER_KEY", OTHER), ("THIRD_KEY", THIRD)):
        monkeypatch.setenv(name, key)
    monkeypatch.setenv("NO_PROXY", "*")


def chat() -> Answer:
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    return Answer({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": usage})


@pytest.mark.parametrize(
    ("name", "key_env", "variable"),
    [
        ("openai/gpt-5.5", None, "OPENAI_API_KEY"),
        ("openai/gpt-5.5", "ROUTER_KEY", "ROUTER_KEY"),
        ("openai@https://api.openai.com/v1/gpt-5.5", None, "OPENAI_API_KEY"),
        ("openai@https://eu.api.openai.com/v1/gpt-5.5", None, "OPENAI_API_KEY"),
        ("openai@https://eu.api.openai.com.evil.example/v1/m", None, None),
        ("openai@https://notapi.openai.com/v1/m", None, None),
        ("openai@http://api.openai.com/v1/m", None, None),
        ("openai@https://openrouter.example/api/v1/m", None, None),
        ("openai@https://openrouter.example/api/v1/m", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("openai@https://h/api#m", "ROUTER_KEY", "ROUTER_KEY"),
        ("openai@http://127.0.0.1:8000/v1/m", None, None),
        ("openai@http://127.0.0.1:8000/v1/m", "ROUTER_KEY", "ROUTER_KEY"),
        ("openai@http://[::1]:8000/v1/m", "ROUTER_KEY", "ROUTER_KEY"),
        ("openai@http://localhost:8000/v1/m", "ROUTER_KEY", "ROUTER_KEY"),
        ("anthropic/claude-opus-5", None, "ANTHROPIC_API_KEY"),
        ("anthropic@https://api.anthropic.com/claude-opus-5", None, "ANTHROPIC_API_KEY"),
        ("anthropic@https://api.openai.com/m", None, None),
        ("anthropic@https://h/api#m", None, None),
        ("local/smollm2-135m", None, None),
    ],
)
def test_pitfall_34_a_providers_key_is_for_its_own_host_and_every_other_host_has_the_key_that_is_named(
    name: str, key_env: str | None, variable: str | None
) -> None:
    assert key_variable(parse_name(name), key_env) == variable


@pytest.mark.parametrize("host", ["192.168.1.20:8000", "gpu-box", "[fe80::1]:8000", "127.0.0.1.example.org"])
@pytest.mark.parametrize("scheme", ["openai", "anthropic"])
def test_no_key_goes_over_plain_http_to_another_machine(host: str, scheme: str) -> None:
    for variable in ("OPENAI_API_KEY", "ROUTER_KEY"):
        with pytest.raises(UsageError, match="over plain http") as refused:
            build_model(f"{scheme}@http://{host}/v1#m", key_env=variable)
        assert OWN not in str(refused.value)
    assert build_model(f"{scheme}@http://{host}/v1#m").name  # without a key it may be called


async def test_no_key_goes_to_a_proxy_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http needs a loopback address, and such an address is called directly."""
    async with Server(chat()) as proxy, Server(chat()) as server:
        monkeypatch.delenv("NO_PROXY")
        for variable in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        model = build_model(f"openai@{server.url}/v1/m", key_env="ROUTER_KEY")
        await model.complete(ASK)
        await model.aclose()
        assert [call.headers["authorization"] for call in server.calls] == [f"Bearer {OTHER}"]
        assert not proxy.calls


async def test_what_a_server_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(chat()) as server:
        for name, key_env in ((f"openai@{server.url}/v1/m", None), (f"openai@{server.url}/api#m", "ROUTER_KEY")):
            model = build_model(name, key_env=key_env)
            await model.complete(ASK)
            await model.aclose()
        plain, named = server.calls
    assert plain.headers["authorization"] == "Bearer no-key"
    assert (named.path, named.headers["authorization"]) == ("/api/chat/completions", f"Bearer {OTHER}")
    assert OWN not in str(server.calls)


async def test_azures_older_api_has_its_query_behind_the_path_and_its_key_in_a_header_of_its_own() -> None:
    async with Server(chat()) as server:
        model = build_model(f"openai@{server.url}{AZURE}?api-version=2024-10-21#gpt-4o", key_env="ROUTER_KEY")
        await model.complete(ASK)
        await model.aclose()
        (call,) = server.calls
    assert call.path == f"{AZURE}/chat/completions?api-version=2024-10-21"
    assert call.headers["api-key"] == OTHER
    assert "authorization" not in call.headers


@pytest.mark.parametrize(
    ("key_env", "says"),
    [
        (None, "No key was sent: OPENAI_API_KEY is for the provider's own host alone"),
        ("ROUTER_KEY", "The key is read from ROUTER_KEY, which is set, but not accepted here"),
    ],
)
async def test_a_refused_key_says_where_it_was_read_and_how_to_name_another(key_env: str | None, says: str) -> None:
    refusal = Answer({"error": {"message": f"no {OWN}, {OTHER} or {THIRD}"}}, status=401)
    make_config({"judge": {"key_env": "THIRD_KEY"}})
    async with Server(refusal) as server:
        model = build_model(f"openai@{server.url}/v1/m", key_env=key_env)
        with pytest.raises(CallConfigError) as refused:
            await model.complete(ASK)
        await model.aclose()
    assert says in str(refused.value)
    assert 'key_env = "VARIABLE" beside the model ([target], [optimizer] or [judge])' in str(refused.value)
    assert not any(key in str(refused.value) for key in (OWN, OTHER, THIRD))  # the keys of other roles neither


def test_a_key_that_is_named_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROUTER_KEY")
    with pytest.raises(UsageError, match="set the environment variable ROUTER_KEY"):
        build_model("openai@https://h/v1/m", key_env="ROUTER_KEY")
    with pytest.raises(UsageError, match="leave key_env out"):
        build_model("local/smollm2-135m", key_env="ROUTER_KEY")


@pytest.mark.parametrize(
    "key", ["sk-proj-abc0123456789", "gsk_abcdef0123456789", "AIzaSyD0123", "abcdef0123456789", ""]
)
@pytest.mark.parametrize("role", ["target", "optimizer", "judge"])
def test_pitfall_22_a_key_in_place_of_its_variable_is_refused_and_not_repeated(role: str, key: str) -> None:
    with pytest.raises(UsageError, match=rf"{role}\.key_env: name the environment variable") as refused:
        make_config({role: {"key_env": key}})
    assert not key or key not in str(refused.value)


def test_a_variable_that_a_config_names_is_a_secret_whatever_its_name() -> None:
    assert not is_key_variable("MY_OPENROUTER")
    make_config({"optimizer": {"key_env": "MY_OPENROUTER"}})
    assert is_key_variable("MY_OPENROUTER")


# two roles, two keys


async def test_two_roles_at_two_endpoints_have_a_key_each(tmp_path: Path) -> None:
    with small(q=1.0, key=OTHER) as one, small(q=1.0, key=THIRD) as other:
        keyed = {"target.key_env": "ROUTER_KEY", "optimizer.key_env": "THIRD_KEY", "train.epochs": 1}
        trained = await train(one, tmp_path, {**keyed, "optimizer.model": f"openai@{other.url}/optimizer"})
        assert trained.result.exit_code in (0, 5)
        assert one.answered["target"]
        assert other.answered["optimizer"]
    assert 'key_env = "ROUTER_KEY"' in trained.read("config.toml")
    for path in trained.folder.rglob("*"):
        assert path.is_dir() or not any(key.encode() in path.read_bytes() for key in (OWN, OTHER, THIRD))


@pytest.mark.parametrize(
    ("tables", "variables"),
    [
        ({}, (None, None)),
        ({"target": {"key_env": "ROUTER_KEY"}}, ("ROUTER_KEY", "ROUTER_KEY")),  # a key for the endpoint
        ({"target": {"key_env": "ROUTER_KEY"}, "optimizer": {"key_env": "THIRD_KEY"}}, ("ROUTER_KEY", "THIRD_KEY")),
        ({"optimizer": {"key_env": "THIRD_KEY"}}, ("THIRD_KEY", "THIRD_KEY")),
    ],
)
def test_two_roles_at_one_endpoint(tmp_path: Path, tables: dict[str, Any], variables: tuple[str | None, ...]) -> None:
    with small() as world:
        prepare(world, tmp_path)
        lines = [f'[env]\nsamples = "samples.jsonl"\n[target]\nmodel = "openai@{world.url}/target"']
        lines += [f'key_env = "{tables["target"]["key_env"]}"'] if "target" in tables else []
        lines += [f'[optimizer]\nmodel = "openai@{world.url}/optimizer"']
        lines += [f'key_env = "{tables["optimizer"]["key_env"]}"'] if "optimizer" in tables else []
        (tmp_path / "skilltune.toml").write_text("\n".join(lines))
        cfg, root = load_config(tmp_path)
        with Run.open(tmp_path / "run") as run:
            session = build_parts(cfg, run, root)
            assert session.optimizer_client is not None
            assert isinstance(session.target, ChatTarget)
            clients = session.target.client, session.optimizer_client
            assert tuple(client.model._wire._variable for client in clients) == variables  # type: ignore[attr-defined]
            endpoints = [client.meter.endpoint for client in clients]
            assert (endpoints[0] is endpoints[1]) == (variables[0] == variables[1])  # a limit is a key's
