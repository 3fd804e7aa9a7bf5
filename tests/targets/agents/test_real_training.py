"""From a start skill to a skill that the real command line loads: training, certificate, export, another agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from real_agents import CLIS, call_of
from skilltune import Env
from skilltune.api import aevaluate, atrain
from skilltune.cli.main import app
from skilltune.targets.agents.claude_code import QUIET
from skilltune.targets.agents.codex import CONFIG, GATEWAY
from upstream import Asked, Turn, Upstream
from world import blocks

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

START = "---\nname: totals\ndescription: Totals orders. Use for every order.\n---\n\n# Totals\n\nAdd up all lines.\n"
RULE = "Amounts in euros become whole cents in the result; yen stay as they are."
TASK = "Read order.txt and write its total to total.txt."
PRICES = {"EUR": ("2.50", "0.75", "12.40"), "JPY": ("300", "45", "1280")}
SUM = "tail -n +2 order.txt | awk -v unit=%d '{s += $2 * $3 * unit} END {printf \"%%.10g\\n\", s}' > total.txt"


def orders(folder: Path, n: int) -> Path:
    """Orders in two currencies as files, and a sample for each with the expected total."""
    rows = []
    for number in range(n):
        currency = ("EUR", "JPY")[number % 2]
        counts = [1 + (number + place) % 7 for place in range(3)]
        lines = zip(("paper", "ink", "lamps"), counts, PRICES[currency], strict=True)
        text = f"currency {currency}\n" + "".join(f"{what} {count} {price}\n" for what, count, price in lines)
        path = folder / f"orders/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        unit = 100 if currency == "EUR" else 1
        total = sum(round(float(price) * unit) * c for price, c in zip(PRICES[currency], counts, strict=True))
        files = {"order.txt": f"orders/{number}.txt"}
        rows.append({"id": f"o{number}", "input": TASK, "files": files, "target": {"total.txt": f"{total}\n"}})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "samples.jsonl"


def clerk(asked: Asked) -> Turn:
    """Three models. "o" proposes the rule. Any other one works in a shell, and knows about cents only if its skill
    says so; it looks at the order first."""
    if asked.body["model"] == "o":
        return Turn(json.dumps(proposed(asked)) if "response_format" in asked.body else "ready")
    if not asked.body.get("tools"):
        return Turn("A title")
    if asked.results == 0:
        return Turn("I look at the order.", calls=(call_of(asked, "cat order.txt"),))
    if asked.results == 1:
        cents = b"currency EUR" in asked.raw and RULE.encode() in asked.raw
        return Turn("I add it up.", calls=(call_of(asked, SUM % (100 if cents else 1)),))
    return Turn("The total is in total.txt.")


def proposed(asked: Asked) -> dict[str, Any]:
    """The answer of the optimizer: the rule, with the failed orders in euros as its evidence."""
    text = asked.body["messages"][-1]["content"]
    match asked.body["response_format"]["json_schema"]["name"]:
        case "reflect":
            failed = [a["sample"] for a, body in blocks("trajectory", text) if float(a["score"]) < 1 and "EUR" in body]
            cited = [{"sample": sample, "quote": "currency EUR"} for sample in failed]
            edit = {"op": "add", "after": None, "target": None, "text": RULE, "why": "Totals in euros are wrong."}
            known = RULE in text.partition("</skill>")[0]
            return {"diagnosis": [], "edits": [{**edit, "evidence": cited}] if failed and not known else []}
        case "slow_update":
            return {"reasoning": "Nothing is left.", "guidance": ""}
        case stage:
            return {"notes": ""} if stage == "notes" else {"edits": 1, "reason": "One rule."}


def model_of(kind: str, url: str) -> dict[str, Any]:
    form = f"anthropic@{url}/m" if kind == "claude-code" else f"openai@{url}/v1/m"
    return {"model": f"{kind}/{form}", "workers": 3, "price": [1.0, 5.0]}


@pytest.mark.parametrize(("kind", "other"), [("codex", "claude-code"), ("claude-code", "codex")])
async def test_a_skill_is_trained_certified_exported_and_loaded(
    kind: str, other: str, home: Path, tmp_path: Path, record_testsuite_property: Any
) -> None:
    work = tmp_path / "work"
    skill = work / "totals"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text(START)
    env = Env(orders(work, 40), {"type": "files"})
    async with Upstream(clerk) as server:
        result = await atrain(
            skill,
            env,
            model_of(kind, server.url),
            f"openai@{server.url}/v1/o",
            run=tmp_path / "run",
            budget={"calls": 5000},
            train={"epochs": 1, "batch_size": 8},
            gate={"screen": 12},
        )
        assert result.best.text == f"{START}\n{RULE}\n"
        assert result.certificate is not None
        record_testsuite_property(f"{kind} trained", str(result.certificate))
        assert result.certificate.before < 0.7
        assert result.certificate.after == 1.0
        assert (skill / "SKILL.md").read_text() == START

        project = tmp_path / "project"
        form = "claude" if kind == "claude-code" else "codex"
        done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", form, "--out", str(project)])
        assert done.exit_code == 0, done.output
        server.asked.clear()
        total = await asyncio.to_thread(use, kind, project, work / "orders/0.txt", server.url)
        assert total == json.loads((work / "samples.jsonl").read_text().splitlines()[0])["target"]["total.txt"]
        assert RULE.encode() in server.asked[0].raw

        before = await aevaluate(Path(skill), env, model_of(other, server.url), split="test")
        after = await aevaluate(result.best, env, model_of(other, server.url), split="test")
    record_testsuite_property(f"{other} with the skill of {kind}", f"{before.score:.2f} to {after.score:.2f}")
    assert before.score is not None
    assert before.score < 0.7
    assert (after.score, after.n) == (1.0, after.total)


def use(kind: str, project: Path, order: Path, url: str) -> str:
    """Run the command line in the project, as its user does, without skilltune. Returns the total that it wrote."""
    home = project.with_name("users-home")
    home.mkdir()
    (project / "order.txt").write_text(order.read_text())
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": os.environ["TMPDIR"], "LANG": "C.UTF-8"}
    if kind == "codex":
        config = CONFIG.format(model='"m"', provider="own")
        config += GATEWAY.format(provider="own", url=json.dumps(f"{url}/v1"), key="OWN_KEY")
        (home / "config.toml").write_text(config)
        env |= {"CODEX_HOME": str(home), "OWN_KEY": "k"}
        argv = ["exec", "-s", "danger-full-access", "--skip-git-repo-check", "--disable", "plugins", f"$totals {TASK}"]
    else:
        env |= QUIET | {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "k", "CLAUDE_CONFIG_DIR": str(home / ".claude")}
        argv = ["-p", f"/totals {TASK}", "--model", "m", "--permission-mode", "dontAsk", "--allowedTools", "Bash"]
    done = subprocess.run(
        [CLIS[kind], *argv], cwd=project, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (project / "total.txt").read_text()
