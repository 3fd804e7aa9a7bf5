"""Stand-ins for the command lines of agents: executables that really talk to a model and print real event streams.

    python cli.py KIND ARGUMENTS…        KIND: claude, codex, opencode, acp, script

Each reads skill, settings and prompt where the real one does, asks its model in its own dialect, runs the tool calls,
and prints the stream that the real one printed once (`streams/`), with the final answer put in. A prompt that holds
`[NAME]` asks for a scenario:

denied, max-turns, api-error, wrong-key: that recorded stream · garbage: lines that are no events between them · silent:
no result line · hang: never ends · survivor: a daemon lives on · huge: an event of 1 MB · wordless: does not ask its
model · lies: reports another answer · foreign: lists another skill · bare: does not load the skill · spy: prints its
environment · crash: exit code 3
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

STREAMS = Path(__file__).with_name("streams")
HOME = Path(os.environ.get("HOME", "/"))
VERSIONS = {"claude": "2.1.332 (Claude Code)", "codex": "codex-cli 0.171.0", "opencode": "1.18.33"}


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "x-api-key": key}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def run(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def skills(folder: Path) -> dict[str, tuple[str, str]]:
    """name → (description, body) of the skills in a folder."""
    found = {}
    for file in sorted(folder.glob("*/SKILL.md")):
        _, head, body = file.read_text().split("---\n", 2)
        fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
        found[file.parent.name] = (fields["description"], body)
    return found


def listing(found: dict[str, tuple[str, str]], scenario: str) -> str:
    lines = [f"- {name}: {description}" for name, (description, _) in found.items()]
    lines += ["- another: A skill of the user's own."] if scenario == "foreign" else []
    return "The following skills are available for use with the Skill tool:\n\n" + "\n".join(lines) if lines else ""


def tool(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"}}}


class Claude:
    def __init__(self, argv: list[str]) -> None:
        def after(option: str) -> str:
            return argv[argv.index(option) + 1] if option in argv else ""

        self.url, self.key = os.environ["ANTHROPIC_BASE_URL"], os.environ["ANTHROPIC_API_KEY"]
        self.model, self.system = after("--model"), after("--append-system-prompt")
        self.skills = skills(Path(after("--add-dir")) / ".claude" / "skills") if after("--add-dir") else {}

    def ask(self, prompt: str, scenario: str) -> str:
        texts = [listing(self.skills, scenario)]
        if (called := re.match(r"/([\w-]+) (.*)", prompt, re.DOTALL)) and scenario != "bare":
            texts += [self.skills[called[1]][1], called[2]]
        else:
            texts.append(prompt)
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": t} for t in texts if t]}]
        while True:
            body = {"model": self.model, "max_tokens": 1000, "messages": messages, "system": self.system or "Claude"}
            body["tools"] = [{"name": "Bash", "input_schema": tool("command")}]
            answer = post(f"{self.url}/v1/messages?beta=true", self.key, body)
            calls = [block for block in answer["content"] if block["type"] == "tool_use"]
            if not calls:
                return "".join(block.get("text", "") for block in answer["content"])
            results = [
                {"type": "tool_result", "tool_use_id": c["id"], "content": run(c["input"]["command"])} for c in calls
            ]
            messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]


class Codex:
    def __init__(self, argv: list[str]) -> None:
        home = Path(os.environ["CODEX_HOME"])
        config = (home / "config.toml").read_text()
        found = {key: re.search(rf'^{key} = "(.*)"', config, re.MULTILINE) for key in ("base_url", "model", "env_key")}
        self.url, self.model, variable = (match[1] if match else "" for match in found.values())
        self.url = self.url or os.environ["OPENAI_BASE_URL"]  # a login of its own
        self.key, self.skills = os.environ[variable or "CODEX_API_KEY"], skills(home / "skills")
        given = next((word for word in argv if word.startswith("developer_instructions=")), "")
        self.system = json.loads(given.partition("=")[2]) if given else ""

    def ask(self, prompt: str, scenario: str) -> str:
        texts = [listing(self.skills, scenario), prompt]
        if (called := re.match(r"\$([\w-]+) ", prompt)) and scenario != "bare":
            texts.append(self.skills[called[1]][1])
        items: list[Any] = [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
            for text in texts
            if text
        ]
        while True:
            body = {"model": self.model, "input": items, "instructions": f"Codex\n{self.system}", "store": False}
            body["tools"] = [{"type": "function", "name": "exec_command", "parameters": tool("cmd"), "strict": False}]
            answer = post(f"{self.url}/responses", self.key, body)
            calls = [item for item in answer["output"] if item["type"] == "function_call"]
            if not calls:
                messages = [item for item in answer["output"] if item["type"] == "message"]
                return "".join(part["text"] for item in messages for part in item["content"])
            items += answer["output"]
            for call in calls:
                output = run(json.loads(call["arguments"])["cmd"])
                items.append({"type": "function_call_output", "call_id": call["call_id"], "output": output})


class Chat:
    """opencode's settings, or the variables that every client reads."""

    def __init__(self, argv: list[str]) -> None:
        self.system, self.command = "", argv[argv.index("--command") + 1] if "--command" in argv else ""
        if "OPENCODE_CONFIG" in os.environ:
            settings = json.loads(Path(os.environ["OPENCODE_CONFIG"]).read_text())
            (provider,) = settings["provider"].values()
            self.url, self.key = provider["options"]["baseURL"], provider["options"]["apiKey"]
            self.model = settings["model"].partition("/")[2]
            self.skills = skills(Path(settings["skills"]["paths"][0])) if "skills" in settings else {}
            self.system = "\n".join(Path(file).read_text() for file in settings.get("instructions", ()))
        else:
            self.url, self.key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
            self.model = os.environ.get("SKILLTUNE_MODEL", "m")
            self.skills = skills(HOME / ".agents" / "skills")

    def ask(self, prompt: str, scenario: str) -> str:
        if self.command and scenario != "bare":
            prompt = f"{self.skills[self.command][1]}\n\n{prompt}"
        system = f"Agent\n{self.system}\n{listing(self.skills, scenario)}"
        messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        while True:
            function = {"name": "bash", "parameters": tool("command")}
            body = {"model": self.model, "messages": messages, "tools": [{"type": "function", "function": function}]}
            answer = post(f"{self.url}/chat/completions", self.key, body)["choices"][0]["message"]
            if not answer.get("tool_calls"):
                return answer["content"] or ""
            messages.append(answer)
            for call in answer["tool_calls"]:
                output = run(json.loads(call["function"]["arguments"])["command"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})


def show(agent: str, name: str, answer: str, scenario: str) -> None:
    """Print the recorded stream of a scenario, with this answer."""
    lines = (STREAMS / f"{agent}-{name}.jsonl").read_text().splitlines()
    if scenario == "silent":
        lines = lines[:-1]
    if scenario == "huge":
        lines.insert(1, json.dumps({"type": "user", "message": {"content": "x" * 1_000_000}}))
    if scenario == "garbage":
        lines = [part for line in lines for part in ("warning: {not json", line, '{"half": ', "[1, 2]", "\x00\xff")]
    for line in lines:
        print(line.replace("ANSWER 42", json.dumps(answer)[1:-1]))


def acp(argv: list[str]) -> None:
    """An agent of the Agent Client Protocol on stdin and stdout."""

    def send(**message: Any) -> None:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

    def update(**fields: Any) -> None:
        send(method="session/update", params={"sessionId": "s", "update": fields})

    def heard() -> dict[str, Any]:
        return json.loads(sys.stdin.readline())

    print("a warning on stdout", flush=True)
    send(id=heard()["id"], result={"protocolVersion": 1, "agentCapabilities": {}})
    send(id=heard()["id"], result={"sessionId": "s"})
    asked = heard()
    prompt = asked["params"]["prompt"][0]["text"]
    scenario = scenario_of(prompt)
    if scenario == "wrong-key":
        send(id=asked["id"], error={"code": -32000, "message": "Authentication required"})
        return
    begin(scenario)
    answer = "" if scenario == "wordless" else Chat(argv).ask(prompt, scenario)
    update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": "I look."})
    options = [{"optionId": "yes", "kind": "allow_once"}, {"optionId": "no", "kind": "reject_once"}]
    options = options[1:] if scenario == "denied" else options
    params = {"sessionId": "s", "toolCall": {"toolCallId": "t", "title": "Write"}, "options": options}
    send(id=99, method="session/request_permission", params=params)
    outcome = heard()["result"]["outcome"]
    assert outcome["outcome"] == ("cancelled" if scenario == "denied" else "selected"), outcome
    send(id=100, method="fs/read_text_file", params={"path": "x"})
    assert heard()["error"]["code"] == -32601
    update(sessionUpdate="tool_call", toolCallId="t", title="Write", status="completed")
    for piece in (answer[:3], answer[3:] + ("?" if scenario == "lies" else "")):
        update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": piece})
    if scenario != "silent":
        reason = {"max-turns": "max_turn_requests"}.get(scenario, "end_turn")
        send(id=asked["id"], result={"stopReason": reason})


def scenario_of(prompt: str) -> str:
    found = re.search(r"\[([a-z-]+)\]", prompt)
    return found[1] if found else "ok"


def begin(scenario: str) -> None:
    if scenario == "hang":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        time.sleep(600)
    if scenario == "survivor":
        subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    if scenario == "spy":
        Path("spied.json").write_text(json.dumps(dict(os.environ)))
    if scenario == "crash":
        print("something broke", file=sys.stderr)
        sys.exit(3)


def main() -> int:
    kind, argv = sys.argv[1], sys.argv[2:]
    if "--version" in argv:
        print(VERSIONS[kind])
        return 0
    if kind == "acp":
        acp(argv)
        return 0
    prompt = sys.stdin.read()
    scenario = scenario_of(prompt)
    begin(scenario)
    agent = {"claude": Claude, "codex": Codex}.get(kind, Chat)(argv)
    name = {"claude": "claude-code"}.get(kind, kind)
    try:
        answer = "nothing" if scenario == "wordless" else agent.ask(prompt, scenario)
    except urllib.error.HTTPError as error:
        if kind == "script":
            print(error.read().decode(), file=sys.stderr)
            return 1
        show(name, "api-error", "", scenario)
        return 1
    if scenario == "lies":
        answer = "I have no idea."
    if kind == "script":
        print(answer)
        return 0
    recorded = scenario if (STREAMS / f"{name}-{scenario}.jsonl").exists() else "ok"
    show(name, recorded, answer, scenario)
    return 0 if recorded in ("ok", "denied") else 1


if __name__ == "__main__":
    sys.exit(main())
