"""Samples: what the target is asked, what is expected, and which split each one belongs to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SplitName = Literal["train", "select", "test"]


class ChatTurn(BaseModel):
    """One chat message of a sample's input. `images` are paths relative to the sample file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"] = "user"
    content: str
    images: tuple[str, ...] = ()


class Sample(BaseModel):
    """One task. `input` is text or chat messages, `target` what a scorer compares with (any JSON value).

    `group` ties paraphrases together so that they never straddle splits; `split` fixes the split by hand;
    `files` maps a path in the workspace to a path beside the sample file; `checks` are scorer specs of this sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    input: str | tuple[ChatTurn, ...]
    target: Any = None
    files: dict[str, str] = {}
    group: str | None = None
    metadata: dict[str, Any] = {}
    checks: tuple[dict[str, Any], ...] = ()
    split: SplitName | None = None

    @property
    def text(self) -> str:
        """The input as plain text (chat messages joined by blank lines)."""
        return self.input if isinstance(self.input, str) else "\n\n".join(turn.content for turn in self.input)
