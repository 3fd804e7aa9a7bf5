"""A plug-in of skilltune: an agent of one's own as the target, a scorer, and an optimizer that asks no model."""

import asyncio
import json
from pathlib import Path
from urllib.request import Request, urlopen

from skilltune import Score
from skilltune.edits import Edit
from skilltune.errors import InfraError
from skilltune.optimizer import Optimizer, Proposal
from skilltune.rollout import Trajectory, Turn
from skilltune.usage import Usage


class Desk:
    """`plugin:desk/URL`: an agent behind a URL. It is told the skill and the task, never the expected answer."""

    def __init__(self, url, cfg):
        self.url, self.timeout_s, self.fingerprint = url, cfg.timeout_s, f"desk at {url}"

    def guess(self, skill, task):
        return Usage(calls=1, input_tokens=skill.tokens + len(task.messages[-1].text) // 4, output_tokens=64)

    async def run(self, skill, task, attempt):
        asked = task.messages[-1].text
        said = await asyncio.to_thread(self._ask, skill.body, asked)
        answer, cost = said["choices"][0]["message"]["content"], said["usage"]
        turns = (Turn("user", asked), Turn("assistant", answer))
        return Trajectory(answer, turns, usage=Usage(1, cost["prompt_tokens"], cost["completion_tokens"]))

    def _ask(self, skill, task):
        messages = [{"role": "system", "content": skill}, {"role": "user", "content": task}]
        body = json.dumps({"model": "target", "messages": messages}).encode()
        try:
            return json.load(urlopen(Request(self.url, body), timeout=self.timeout_s))
        except (OSError, ValueError) as error:  # tried again, and never scored
            raise InfraError(f"{self.url}: {error}") from error


def code(sample, rollout, *, letters: int = 3):
    """`score = "code"`: the whole code is right; its first letters are worth half."""
    right = rollout.answer.strip() == sample.target
    begun = rollout.answer.strip()[:letters] == sample.target[:letters]
    why = "" if right else f"expected {sample.target}, got {rollout.answer.strip()[:40]}"
    return Score(float(right), why, soft=1.0 if right else 0.5 * begun)


class Rules(Optimizer):
    """`plugin:rules/FILE`: tries the lines of a file as rules of the skill. The gate finds out which ones help."""

    def __init__(self, file, material):
        self.rules = Path(material.root, file).read_text(encoding="utf-8").splitlines()  # beside the config

    async def propose(self, skill, rollouts, memory, step, limit):
        failed = tuple([r.sample async for r in rollouts if r.score is not None and not r.score.hard])
        tried = {entry.edit.key for entry in memory.rejected}
        edits = [Edit("add", text=f"- {rule}") for rule in self.rules if rule and rule not in skill.body]
        return [Proposal(edit, failed) for edit in edits if edit.key not in tried] if failed else []
