"""A client of the Agent Client Protocol as a program of its own: python -I -S acp_client.py < task.json

It reads {"argv", "cwd", "prompt"}, runs one turn, and prints {"update": …} for everything that the agent reports, then
{"stopped": REASON} or {"failed": ERROR}. It uses the standard library only, because it starts once per rollout.
"""

import json
import subprocess
import sys

VERSION = 1
NOT_STARTED = "not started"
ALLOWED = ("allow_once", "allow_always")


class Conversation:
    """JSON-RPC 2.0 over the agent's stdin and stdout, one message per line."""

    def __init__(self, argv, cwd):
        self.process = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to_agent, self.from_agent = self.process.stdin, self.process.stdout
        self.asked = 0

    def send(self, **message):
        line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        self.to_agent.write(line.encode())
        self.to_agent.flush()

    def ask(self, method, **params):
        """The result of a request. What the agent reports and asks meanwhile is handled on the way."""
        self.asked += 1
        number = self.asked
        self.send(id=number, method=method, params=params)
        for line in self.from_agent:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a warning on stdout
            if not isinstance(message, dict):
                continue
            if "method" in message:
                self.handle(message)
            elif message.get("id") == number:
                if "error" in message:
                    raise Failed(message["error"])
                return message.get("result") or {}
        raise Failed({"message": f"the agent ended during {method} with exit code {self.process.wait()}"})

    def handle(self, message):
        method, params = message["method"], message.get("params") or {}
        if method == "session/update":
            show(update=params.get("update"))
        if "id" not in message:
            return
        if method == "session/request_permission":
            options = {option.get("kind"): option.get("optionId") for option in params.get("options", ())}
            chosen = next((options[kind] for kind in ALLOWED if kind in options), None)
            if chosen is None:
                show(denied=(params.get("toolCall") or {}).get("title") or "a tool")
                outcome = {"outcome": "cancelled"}
            else:
                outcome = {"outcome": "selected", "optionId": chosen}
            self.send(id=message["id"], result={"outcome": outcome})
        else:
            error = {"code": -32601, "message": f"{method} is not offered by this client"}
            self.send(id=message["id"], error=error)


class Failed(Exception):
    pass


def show(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main():
    task = json.load(sys.stdin)
    try:
        agent = Conversation(task["argv"], task["cwd"])
    except OSError as error:
        show(failed={"code": NOT_STARTED, "message": f"{task['argv'][0]} cannot start: {error.strerror}"})
        return 1
    try:
        can = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        agent.ask("initialize", protocolVersion=VERSION, clientCapabilities=can)
        session = agent.ask("session/new", cwd=task["cwd"], mcpServers=[])
        prompt = [{"type": "text", "text": task["prompt"]}]
        end = agent.ask("session/prompt", sessionId=session.get("sessionId"), prompt=prompt)
        show(stopped=end.get("stopReason", "end_turn"))
    except Failed as failure:
        show(failed=failure.args[0])
        return 1
    except OSError as error:
        show(failed={"message": f"the agent closed its input: {error.strerror}"})
        return 1
    finally:
        agent.to_agent.close()
        try:
            agent.process.wait(2)
        except subprocess.TimeoutExpired:
            agent.process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
