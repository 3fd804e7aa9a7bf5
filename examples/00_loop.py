"""Training a skill with no abstractions: one file, the standard library, one minute to read.

    python examples/00_loop.py data.jsonl http://127.0.0.1:8000/v1 TARGET_MODEL OPTIMIZER_MODEL > SKILL.md

data.jsonl holds {"id", "input", "target"} per line. This is the idea, not the product. What skilltune adds is what this
file lacks: it measures each edit instead of trusting a patch, calls an error an error and not a zero, pays for nothing
twice when it is killed, keeps to a budget, and tells you on an untouched split whether the gain is real.
"""

import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

EPOCHS, BATCH, MINIBATCH, EDITS_PER_STEP, WORKERS = 4, 40, 8, 4, 16

REFLECT = """You improve the skill document of a frozen agent. Below are the skill and tasks at which the agent failed.
Propose at most {budget} short, general rules that would have prevented the failures; never copy an answer.
Answer with JSON only: {{"edits": [{{"op": "add", "text": "the rule", "why": "...", "evidence": [...]}}]}}"""


def ask(model: str, system: str, user: str, schema: str = "") -> str:
    """One chat completion."""
    body = {"model": model, "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}
    if schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": schema, "schema": {"type": "object"}}}
    key = os.environ.get("OPENAI_API_KEY", "none")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with urlopen(Request(f"{url}/chat/completions", json.dumps(body).encode(), headers), timeout=120) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def roll(skill: str, batch: list) -> list:
    """Forward pass: the target does each sample with the skill; (sample, answer, score), in order."""
    answers = list(pool.map(lambda sample: ask(target, skill or "-", sample["input"]), batch))
    return [(s, a, float(a.strip() == str(s["target"]).strip())) for s, a in zip(batch, answers, strict=True)]


def score(skill: str, batch: list) -> float:
    return sum(points for _, _, points in roll(skill, batch)) / len(batch)


def reflect(skill: str, failures: list) -> list:
    """Gradient: the optimizer reads failures, a minibatch at a time, and proposes lines to add."""
    shown = [
        f'<trajectory sample="{s["id"]}" score="0.00" attempt="0" outcome="ok">\n{s["input"]}\n\n'
        f"Final answer: {a}\nExpected: {s['target']}\n</trajectory>"
        for s, a, _ in failures
    ]
    prompt = REFLECT.format(budget=EDITS_PER_STEP)
    head = f"<skill>\n{skill}\n</skill>\n\n<edit_budget>\n{EDITS_PER_STEP}\n</edit_budget>\n\n"
    calls = [head + "\n\n".join(shown[i : i + MINIBATCH]) for i in range(0, len(shown), MINIBATCH)]
    replies = pool.map(lambda call: ask(optimizer, prompt, call, "reflect"), calls)
    edits = [edit for reply in replies for edit in json.loads(reply)["edits"]]
    return list(dict.fromkeys(edit["text"] for edit in edits if edit["op"] == "add" and edit["text"]))


path, url, target, optimizer = sys.argv[1:5]
pool = ThreadPoolExecutor(WORKERS)
samples = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
random.Random(0).shuffle(samples)
train, select, test = samples[0::5] + samples[1::5], samples[2::5], samples[3::5] + samples[4::5]

skill = ""
best = score(skill, select)
for epoch in range(EPOCHS):
    random.Random(epoch).shuffle(train)
    for start in range(0, len(train), BATCH):
        failures = [rollout for rollout in roll(skill, train[start : start + BATCH]) if rollout[2] < 1]
        rules = [rule for rule in reflect(skill, failures) if rule not in skill]
        candidate = "\n".join([*filter(None, [skill]), *rules[:EDITS_PER_STEP]])  # the learning rate
        points = score(candidate, select) if candidate != skill else best
        print(f"epoch {epoch + 1}: select {best:.2f} → {points:.2f}", file=sys.stderr)
        if points > best:  # the gate, in its naive form: noise gets through it
            skill, best = candidate, points

print(f"test {score('', test):.2f} → {score(skill, test):.2f} on {len(test)} samples", file=sys.stderr)
print(skill)
