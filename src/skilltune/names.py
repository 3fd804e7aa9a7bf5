"""The grammar of names for everything that can play a role: models, agents, the example proposer, a person.

Code that needs a model or an agent takes a `Name`; only this module parses such strings. The general form of an
endpoint is `openai@URL#MODEL`, because API URLs contain no `#`, while a model id may contain slashes. Without `#`, the
model is found in the URL: after the *last* `/v1/` of an OpenAI-compatible one, as the last path segment of an
Anthropic-compatible one.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import urlsplit

from skilltune.errors import UsageError

Scheme = Literal[
    "openai",
    "anthropic",
    "local",
    "claude-code",
    "codex",
    "opencode",
    "acp",
    "command",
    "examples",
    "handoff",
    "plugin",
    "fake",
]

FORMS = {
    "openai/": "openai/gpt-5.5",
    "openai@": "openai@http://127.0.0.1:8000/v1/qwen3",
    "anthropic/": "anthropic/claude-opus-5",
    "anthropic@": "anthropic@http://127.0.0.1:8000/model",
    "local/": "local/smollm2-135m",
    "claude-code/": "claude-code/claude-opus-5",
    "codex/": "codex/gpt-5.5",
    "opencode/": "opencode/openai/gpt-5.5",
    "acp:": "acp:goose acp",
    "command:": "command:./agent.sh {prompt_file}",
    "examples": "examples",
    "handoff:": "handoff:answers",
    "plugin:": "plugin:my-agent/fast",
}
"""Start of each form, with an example for error messages. `fake:` is for tests and not listed."""
VENDORS = {"claude-code": "anthropic", "codex": "openai"}
"""The provider of an agent's model if its name is a plain model id: `codex/gpt-5.5` means `codex/openai/gpt-5.5`."""
NAMED_AGENTS = ("claude-code", "codex", "opencode")
"""Agents whose name holds their model's: `codex/MODEL`. The others get theirs from `target.upstream`."""
AGENT_SCHEMES = (*NAMED_AGENTS, "acp", "command")
TASK_FORMS = {"inspect:": "inspect:tasks.py@arithmetic", "harbor:": "harbor:tasks"}
"""Start of each form that names the tasks of another framework, with an example for error messages."""
GENERAL = {"openai@": "openai@https://host/api/v3#MODEL", "anthropic@": "anthropic@https://host/api#MODEL"}
"""The general forms, by their start."""

_AZURE = re.compile(r"api-version=[\w.-]+")
_CALLED = ("/chat/completions", "/responses", "/v1/messages")  # paths that are added to a base URL


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed name.

    `model` follows the scheme: a model id, a path, a command line or a folder; empty for `examples`. `url` is the base
    URL of a custom endpoint without a trailing slash, else None. `text` is the name as written. `plugin` is NAME of
    `plugin:NAME/REST` and `model` is REST (which may be empty); "" for other schemes.
    """

    scheme: Scheme
    model: str
    url: str | None
    text: str
    plugin: str = ""

    @property
    def endpoint(self) -> str:
        """Key of the shared rate limit: equal for all models behind one URL or one provider."""
        if self.scheme in AGENT_SCHEMES and self.inner is not None:
            return self.inner.endpoint
        return self.url or (f"plugin:{self.plugin}" if self.plugin else self.scheme)

    @property
    def known(self) -> str:
        """The name under which the model's answers are stored: equal for both ways to write an endpoint."""
        if self.url is None or "#" not in self.text:
            return self.text
        plain = self.url.endswith("/v1") if self.scheme == "openai" else "/" not in self.model
        return f"{self.scheme}@{self.url}{'/' if plain else '#'}{self.model}"

    @property
    def inner(self) -> Name | None:
        """The model behind an agent or a plug-in, or None.

        An agent's is the NAME of `codex/NAME`: any model of this grammar, or a plain id of its vendor's. A plug-in's is
        the REST of `plugin:NAME/REST` if that names a model.
        """
        if self.scheme in NAMED_AGENTS:
            named = self.model.startswith(_MODEL_FORMS) or self.scheme not in VENDORS
            return parse_name(self.model if named else f"{VENDORS[self.scheme]}/{self.model}")
        try:
            name = parse_name(self.model) if self.plugin else None
        except UsageError:
            return None
        return name if name and name.scheme in MODEL_SCHEMES else None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TaskName:
    """The tasks of another framework, named in `env.samples`.

    `path` is Inspect's file that defines them, and `task` is one of its names ("" if the file has only one). For
    Harbor, `path` is the folder of the tasks.
    """

    framework: Literal["inspect", "harbor"]
    path: str
    task: str
    text: str

    def __str__(self) -> str:
        return self.text


def parse_tasks(text: str) -> TaskName | None:
    """Parse `inspect:FILE.py@TASK` and `harbor:DIR`. Returns None for samples of skilltune's own formats.

    Raises `UsageError` if the form is not complete.
    """
    text = text.strip()
    if text.startswith("harbor:"):
        if not (folder := text.removeprefix("harbor:").strip()):
            raise _bad(text, "the folder of the tasks must follow `harbor:`", "harbor:")
        return TaskName("harbor", folder, "", text)
    if not text.startswith("inspect:"):
        return None
    path, _, task = text.removeprefix("inspect:").partition(".py@")
    path = path.removesuffix(".py")
    if not path or (task and not task.isidentifier()) or text.endswith("@"):
        raise _bad(text, "the file and the name of a task must follow `inspect:`", "inspect:")
    if not text.endswith(".py") and not task:
        raise _bad(text, "the file must end in .py", "inspect:")
    return TaskName("inspect", f"{path}.py", task, text)


def parse_name(text: str) -> Name:
    """Parse a name. Raises `UsageError` that shows the nearest form. It uses neither network nor disk."""
    text = text.strip()
    scheme, mark, rest = _split(text)
    form = scheme + mark
    if form not in FORMS and form != "fake:":
        raise UsageError(f"{_shown(text)} names no model or agent. {_nearest(text)}")
    if form == "examples":
        if rest:
            raise _bad(text, "`examples` takes nothing after it", form)
        return Name("examples", "", None, text)
    if not rest:
        raise _bad(text, f"something must follow `{form}`", form)
    if form == "plugin:":
        entry, _, model = rest.partition("/")
        if not re.fullmatch(r"[\w.-]+", entry):
            raise _bad(text, "a plug-in's name is made of letters, digits, `_`, `-` and `.`", form)
        return Name("plugin", model, None, text, entry)
    url = None
    if mark == "@" and "#" in rest:
        url, model = _any_url(text, rest, form)
    elif form == "openai@":
        url, model = _openai_url(text, rest)
    elif form == "anthropic@":
        url, model = _anthropic_url(text, rest)
    else:
        model = rest
    if scheme in ("openai", "anthropic", *NAMED_AGENTS) and re.search(r"\s", model):
        raise _bad(text, "a model id contains no white space", form)
    name = Name(cast(Scheme, scheme), model, url, text)
    if scheme in NAMED_AGENTS:
        _check_agent(name, form)
    return name


def _check_agent(name: Name, form: str) -> None:
    """Raise `UsageError` if the part after the agent names no endpoint that the gateway can call."""
    if name.scheme not in VENDORS and not name.model.startswith(_MODEL_FORMS):
        raise _bad(name.text, f"after `{form}` comes the full name of a model, with its provider", form)
    if (inner := name.inner) is not None and inner.scheme not in ("openai", "anthropic"):
        raise _bad(name.text, f"`{inner}` is no endpoint that an agent can call", form)


def _split(text: str) -> tuple[str, str, str]:
    """Split at the first of `/`, `@` and `:`."""
    head = re.match(r"[^/@:]*", text)
    assert head is not None
    end = head.end()
    return text[:end], text[end : end + 1], text[end + 1 :].strip()


def _any_url(text: str, rest: str, form: str) -> tuple[str, str]:
    """The general form: the base URL unchanged, and the model after the first `#`."""
    url, _, model = (part.strip() for part in rest.partition("#"))
    _check_url(text, url, form, query=True)
    if not model:
        raise UsageError(f"{_shown(text)}: the model must follow the `#`; write it like `{GENERAL[form]}`")
    base, question, query = url.partition("?")
    base = base.rstrip("/")
    for call in _CALLED:
        if base.endswith(call):
            given = f"{form}{base.removesuffix(call)}{question}{query}#{model}"
            raise UsageError(f"{_shown(text)}: the URL must not end in `{call}`, which is added to it; write `{given}`")
    if form == "anthropic@":
        base = base.removesuffix("/v1")  # AnthropicModel adds /v1/messages itself
    return f"{base}{question}{query}", model


def _openai_url(text: str, rest: str) -> tuple[str, str]:
    _check_url(text, rest, "openai@")
    base, found, model = rest.rpartition("/v1/")
    if found and model.strip("/"):
        return f"{base}/v1", model
    if found or rest.rstrip("/").endswith("/v1"):
        raise UsageError(
            f"{_shown(text)} names no model: it must follow the URL, e.g. `{text.rstrip('/')}/MODEL`, or "
            f"`{text.rstrip('/')}#MODEL`"
        )
    raise UsageError(
        f"{_shown(text)}: without `/v1/` in the URL the model cannot be told from it. Write the base URL, `#` and the "
        f"model, e.g. `openai@{_guessed(rest)}`"
    )


def _guessed(rest: str) -> str:
    """The likely meaning of a URL with a model, in the general form."""
    base, _, model = rest.rstrip("/").rpartition("/")
    return f"{base}#{model}" if urlsplit(base).hostname else f"{rest.rstrip('/')}#MODEL"


def _anthropic_url(text: str, rest: str) -> tuple[str, str]:
    _check_url(text, rest, "anthropic@")
    base, _, model = rest.rpartition("/")
    if not model or not urlsplit(base).hostname or model == "v1":
        raise _bad(text, "the model must follow the URL as its last path segment", "anthropic@")
    return base.removesuffix("/v1"), model  # AnthropicModel adds /v1/messages itself


def _check_url(text: str, url: str, form: str, *, query: bool = False) -> None:
    """Raise `UsageError` for an unusable URL, or for one that may contain a secret, because names go to config files
    and logs.

    `query` permits Azure's `?api-version=…`.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not re.search(r"\s", url)
    except ValueError:  # an invalid port or a broken IPv6 address
        usable = False
        parts = urlsplit("")
    asked = url.partition("?")[2]
    if "@" in parts.netloc or ("?" in url and not (query and _AZURE.fullmatch(asked))):
        raise UsageError(
            f"a URL in a name must not carry a user, a password or a query (but for Azure's `?api-version=…` before "
            f"the `#`): keys come only from the environment, and the name is then written like `{FORMS[form]}` or "
            f"`{GENERAL[form]}`"
        )
    if not usable:
        raise _bad(text, "what follows `@` must be a URL that starts with http:// or https://", form)


def _bad(text: str, problem: str, form: str) -> UsageError:
    return UsageError(f"{_shown(text)}: {problem}; write it like `{(FORMS | TASK_FORMS).get(form, form + 'NAME')}`")


def _shown(text: str) -> str:
    """The name for an error message, without a possible password in its URL."""
    return f"`{re.sub(r'//[^/@]*@', '//…@', text)}`"


def _nearest(text: str) -> str:
    """A hint with the most similar form, or with all forms."""
    lowered = text.lower()
    head, mark, _ = _split(lowered)
    if lowered.startswith(("http://", "https://")):
        form = "openai@"
    elif not mark and head.startswith(("gpt", "claude")):
        return f"Did you mean `{'openai' if head.startswith('gpt') else 'anthropic'}/{text}`?"
    else:
        schemes = {form.rstrip("/@:"): form for form in reversed(FORMS)}  # the first of two forms of a scheme wins
        close = difflib.get_close_matches(head, schemes, n=1, cutoff=0.6)
        if not close:
            return f"The forms are: {', '.join(f'`{example}`' for example in FORMS.values())}."
        exact = close[0] + mark
        form = exact if exact in FORMS else schemes[close[0]]
    return f"Did you mean a name like `{FORMS[form]}`?"


MODEL_SCHEMES = ("openai", "anthropic", "local")
_MODEL_FORMS = ("openai/", "openai@", "anthropic/", "anthropic@", "local/")
