"""The header of model files, and requests written through a chat template."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.errors import CallConfigError, UsageError
from skilltune.models import Image, Message, Request, system, user
from skilltune.models.build import build_model
from skilltune.models.gguf import read_header
from skilltune.models.prompting import ChatTemplate, Continuation

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role here') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: object) -> bytes:
    match value:
        case bool():
            return text(key) + struct.pack("<I?", 7, value)
        case int():
            return text(key) + struct.pack("<II", 4, value)
        case str():
            return text(key) + struct.pack("<I", 8) + text(value)
        case [str(), *_]:
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        case list():
            return text(key) + struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
    raise TypeError(value)


def gguf(values: dict[str, object]) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(entry(*pair) for pair in values.items())


FACTS: dict[str, object] = {
    "general.architecture": "qwen2",
    "general.name": "Qwen 0.5B",
    "general.file_type": 15,
    "qwen2.context_length": 32768,
    "tokenizer.ggml.scores": [0.5] * 1000,
    "tokenizer.ggml.tokens": ["a", "<s>", "</s>"],
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": CHATML,
}


def test_the_facts_of_a_header(tmp_path: Path):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(FACTS) + b"tensors")
    header = read_header(file)
    assert (header.context, header.bos, header.eos, header.adds_bos) == (32768, "<s>", "</s>", True)
    assert header.template == CHATML
    assert str(header) == "Qwen 0.5B · qwen2 · Q4_K_M · 32,768 tokens of context · with a chat template"
    file.write_bytes(gguf({"general.architecture": "gpt2"}))
    assert "without a chat template (prompts are continued)" in str(read_header(file))


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_header_is_an_error_for_the_user(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes):
    """Cut or overwritten anywhere, it is read or refused, and never anything else."""
    whole = gguf(FACTS)
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    for damaged in (whole[:at], whole[:at] + junk + whole[at + len(junk) :]):
        file.write_bytes(damaged)
        try:
            read_header(file)
        except UsageError as error:
            assert "not a complete GGUF file" in str(error)
    with pytest.raises(UsageError, match="cannot be read"):
        read_header(file.parent)


def test_a_prompt_goes_through_the_template_and_shares_its_prefix():
    chat = ChatTemplate(CHATML)
    prefix, prompt = chat.render(Request((system("Be brief."), user("Hi {{ 7 * 7 }} {% raw %}"))))
    assert prefix == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert prompt == prefix + "Hi {{ 7 * 7 }} {% raw %}<|im_end|>\n<|im_start|>assistant\n"
    assert chat.name != ChatTemplate(MISTRAL).name
    turns = (user("a"), Message("assistant", "b"), user("c"))
    marked = ChatTemplate(MISTRAL, bos="<s>", eos="</s>", adds_bos=True)
    assert marked.render(Request(turns)) == ("[INST] ", "[INST] a [/INST]b</s>[INST] c [/INST]")
    assert ChatTemplate(MISTRAL, bos="<s>").render(Request(turns))[1].startswith("<s>[INST]")


def test_the_date_of_a_template_is_fixed():
    assert ChatTemplate("{{ strftime_now('%d %b') }}").render(Request(()))[1] == "2026-01-01"


def test_what_a_template_refuses_is_said():
    with pytest.raises(CallConfigError, match="refuses these messages: no system role here"):
        ChatTemplate(MISTRAL).render(Request((system("s"), user("u"))))
    with pytest.raises(UsageError, match="cannot be read"):
        ChatTemplate("{% if %}")
    with pytest.raises(CallConfigError, match="text only"):
        ChatTemplate(CHATML).render(Request((user("What?", [Image(b"png")]),)))


def test_a_template_is_confined():
    """The template comes from a downloaded file, so it must reach nothing of the process."""
    probe = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(CallConfigError, match="unsafe"):
        ChatTemplate(probe).render(Request((user("u"),)))


def test_a_continuation_has_no_roles():
    assert Continuation().render(Request((system("s"), user("u")))) == ("s", "s\n\nu")


@pytest.mark.parametrize("option", [{"context": 512}, {"threads": 2}])
def test_options_of_the_embedded_model_are_refused_elsewhere(option: dict[str, int]):
    with pytest.raises(UsageError, match=rf"leave {next(iter(option))} out"):
        build_model("openai@http://127.0.0.1:1/v1/m", **option)  # pyright: ignore[reportArgumentType]
