"""Builds the model behind a name. Only this module knows the class of each scheme."""

from __future__ import annotations

from typing import Literal

from skilltune.errors import UsageError
from skilltune.models import Model
from skilltune.names import parse_name


def build_model(
    text: str,
    *,
    api: Literal["chat", "responses"] = "chat",
    timeout_s: float = 120.0,
    price: tuple[float, float] | None = None,
    key_env: str | None = None,
    same_as: str | None = None,
) -> Model:
    """The model called `text`.

    `api` chooses between OpenAI's two APIs; other schemes refuse it. `timeout_s` limits one attempt. `price` is
    (dollars per million input tokens, dollars per million output tokens) and overrides the price list. `key_env` is the
    environment variable that holds the endpoint's key (see `skilltune.api_keys`). `same_as` is the former name of a
    model that has moved; its answers are stored and found under that name.

    Raises `UsageError` for a name that is not a chat model, and if the required key is not set. Nothing is connected or
    imported for a connection before the first call.
    """
    name = parse_name(text)
    if api != "chat" and name.scheme != "openai":
        raise UsageError(f"`{name}` has no {api} API; leave `api` out, or name an openai/… or openai@… model")
    if price is not None and name.scheme == "local":
        raise UsageError(f"`{name}` runs on your own hardware and has no price per token; leave `price` out")
    if name.scheme == "local" and (key_env or same_as):
        raise UsageError(f"`{name}` runs on this machine: leave {'key_env' if key_env else 'same_as'} out")
    if same_as and parse_name(same_as).scheme != name.scheme:
        raise UsageError(f"`{name}` and `{same_as}` speak different APIs, so same_as cannot make them one model")
    match name.scheme:
        case "openai":
            from skilltune.models.openai import OpenAIModel

            return OpenAIModel(name, api=api, timeout_s=timeout_s, price=price, key_env=key_env, same_as=same_as)
        case "anthropic":
            from skilltune.models.anthropic import AnthropicModel

            return AnthropicModel(name, timeout_s=timeout_s, price=price, key_env=key_env, same_as=same_as)
        case "local":
            from skilltune.models.local import LocalModel

            return LocalModel(name.model)
        case _:
            raise UsageError(
                f"`{name}` is not a chat model; name one like openai/gpt-5.5, "
                f"openai@http://127.0.0.1:8000/v1/qwen3, openai@URL#MODEL, anthropic/claude-opus-5 or "
                "local/smollm2-135m"
            )
