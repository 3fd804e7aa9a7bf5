"""The jobs of `cluster.py`. The workers import this file, so it imports little."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass

TURNS = 3  # exchanges of a job that asks


async def sleep(job: tuple[float, bytes]) -> float:
    """A job that sleeps and returns its own seconds."""
    began = time.perf_counter()
    await asyncio.sleep(job[0])
    return time.perf_counter() - began


@dataclass(frozen=True)
class Asking:
    """A job that asks the gateway `TURNS` questions, each about the answer before it, and sleeps between."""

    number: int
    seconds: float
    url: str
    token: str


async def ask(job: Asking) -> str:
    """The last answer. It depends on all answers before it."""
    text = f"job {job.number}"
    for _ in range(TURNS):
        text = await asyncio.to_thread(_answer, job, text)
        await asyncio.sleep(job.seconds / TURNS)
    return text


def _answer(job: Asking, text: str) -> str:
    """A streamed answer, whole."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {job.token}"}
    request = urllib.request.Request(f"{job.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        rows = [row[5:].strip() for row in answer.read().decode().splitlines() if row.startswith("data:")]
    chunks = [json.loads(row) for row in rows if row != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))
