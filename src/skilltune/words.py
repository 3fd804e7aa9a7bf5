"""Splits text of any script into words, for finding near-duplicates and copies."""

from __future__ import annotations

import re
from unicodedata import normalize

_SIGNS = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = "\u0e00-\u109f\u1780-\u17ff"
_TOKEN = re.compile(rf"[{_SIGNS}{_LETTERS}]|[^\W{_SIGNS}{_LETTERS}]+|[^\w\s]")
_MARK = re.compile(r"[^\w\s]|_")
SIGN = re.compile(f"[{_SIGNS}]")  # ideographs and kana
LETTER = re.compile(f"[{_LETTERS}]")  # Thai, Lao, Tibetan, Myanmar and Khmer


def tokens(text: str, *, punctuation: bool = True) -> list[str]:
    """Case-folded words and punctuation marks. In scripts without spaces between words, each character is a word.

    Without punctuation, everything between white space is one word: don't, well-known, **bold**.
    """
    text = normalize("NFKC", text).casefold()
    return _TOKEN.findall(text if punctuation else _MARK.sub("", text))
