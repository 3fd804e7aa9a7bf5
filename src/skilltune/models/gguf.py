"""Reads the header of a GGUF file: the model's name, size, context length and chat template.

Only the header is read, and long arrays are skipped. The package `gguf` makes an object of every token of the
vocabulary, which takes seconds. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skilltune.errors import UsageError

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 16_000_000  # bytes of one string; a longer one means that the file is damaged
_LONGEST_ARRAY = 2**40  # bytes of one array
_TEMPLATE = "tokenizer.chat_template"
_TOKENS = "tokenizer.ggml.tokens"
# llama.cpp's `llama_ftype`: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
_QUANTS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16"},
}


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of a GGUF file that matter here. `context` is the trained context length in tokens, 0 if unknown.

    `template` is the chat template (Jinja), "" for a base model. `bos` and `eos` are the texts of those tokens, and
    `adds_bos` is True if the tokeniser itself puts `bos` before every prompt.
    """

    architecture: str
    name: str
    size: str
    quantisation: str
    context: int
    template: str
    bos: str
    eos: str
    adds_bos: bool

    def __str__(self) -> str:
        parts = [self.name or "unnamed model", self.architecture, self.size, self.quantisation]
        template = "with a chat template" if self.template else "without a chat template (prompts are continued)"
        context = f"{self.context:,} tokens of context" if self.context else "context length not stated"
        return " · ".join([*filter(None, parts), context, template])


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`. Raises `UsageError` if the file is not a complete GGUF header."""
    try:
        with path.open("rb") as file:
            values, tokens = _values(file)
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UsageError(f"{path} is not a complete GGUF file ({error}): download it again") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    architecture = str(values.get("general.architecture", ""))

    def text_of(token: str) -> str:
        return tokens.get(values.get(f"tokenizer.ggml.{token}_token_id", -1), "")

    return Header(
        architecture=architecture,
        name=str(values.get("general.name", "")),
        size=str(values.get("general.size_label", "")),
        quantisation=_QUANTS.get(values.get("general.file_type", -1), ""),
        context=int(values.get(f"{architecture}.context_length", 0)),
        template=str(values.get(_TEMPLATE, "")),
        bos=text_of("bos"),
        eos=text_of("eos"),
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", architecture == "llama")),
    )


def _values(file: BinaryIO) -> tuple[dict[str, Any], dict[int, str]]:
    """The scalar values by key, and the texts of all tokens by number."""
    if file.read(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, _, count = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is unknown here")
    values: dict[str, Any] = {}
    tokens: dict[int, str] = {}
    for _ in range(count):
        key, kind = _string(file), _scalar(file, 4)
        if kind == _ARRAY:
            inner, length = _scalar(file, 4), _scalar(file, 10)
            if inner == _STRING and key == _TOKENS:
                tokens = {number: _string(file) for number in range(length)}
            else:
                _skip(file, inner, length)
        else:
            values[key] = _string(file) if kind == _STRING else _scalar(file, kind)
    return values, tokens


def _scalar(file: BinaryIO, kind: int) -> Any:
    if kind not in _FORMATS:
        raise ValueError(f"value type {kind} is unknown")
    form = "<" + _FORMATS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _scalar(file, 10)
    if length > _LONGEST:
        raise ValueError("a text is longer than the file could hold")
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError("it ends in the middle of its header")
    return raw.decode("utf-8", "replace")


def _skip(file: BinaryIO, kind: int, length: int) -> None:
    """Move past the items of an array. Arrays of arrays do not occur in model files."""
    if kind == _STRING:
        for _ in range(length):
            _forward(file, _scalar(file, 10))
    elif kind in _FORMATS:
        _forward(file, struct.calcsize("<" + _FORMATS[kind]) * length)
    else:
        raise ValueError(f"arrays of type {kind} are unknown")


def _forward(file: BinaryIO, size: int) -> None:
    """Move on by so many bytes. An absurd number, from a damaged file, would be an error of the system."""
    if size > _LONGEST_ARRAY:
        raise ValueError("an array is longer than the file could hold")
    file.seek(size, 1)
