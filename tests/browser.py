"""A real browser for the tests: headless Chromium, driven over a pipe by its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/: JSON messages, each ended by a null byte, on the browser's file
descriptors 3 (in) and 4 (out).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 30.0
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Navigated(Exception):
    """The page was left before it answered."""


def executable() -> str:
    """The browser's path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}")
    return found


class Page:
    """One tab. `console` holds the errors that page and browser reported since it was opened, `requests` the URLs."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer, self._count = read, write, b"", 0
        self._session: str | None = None
        self.console: list[str] = []
        self._asked: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        return list(self._asked.values())

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, place: Path | str, hash: str = "") -> None:
        """Load a file or a URL afresh and wait until it is there."""
        url = place.as_uri() if isinstance(place, Path) else place
        self.call("Page.navigate", url="about:blank")
        self.console.clear()
        self._asked.clear()
        self.call("Page.navigate", url=url + hash)
        self.until(f"location.href.startsWith({json.dumps(url[:5])}) && document.readyState === 'complete'")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with suppress(Navigated):
                if self.value(f"Boolean({expression})"):
                    return
            assert time.monotonic() < end, f"never true: {expression}\n{self.console}"
            time.sleep(0.01)

    def promised(self, expression: str) -> Any:
        """The value of the promise that a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a named key ("Tab", "ArrowDown") or type a character."""
        if len(key) > 1:
            code = KEYS[key]
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        else:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        for key in text:
            self.press(key)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_S)
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser is gone"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.console.append(json.dumps(params))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.console.append(json.dumps(params))
            case "Network.requestWillBeSent":
                self._asked[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed" if params.get("blockedReason") == "csp":
                del self._asked[params["requestId"]]  # announced, and stopped before it left
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh browser with its profile in the given folder."""
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    script = f'exec "$@" 3<&{its_in} 4>&{its_out} 2>/dev/null'
    command = ["bash", "-c", script, "bash", executable(), *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, pass_fds=(its_in, its_out))
    os.close(its_in)
    os.close(its_out)
    try:
        yield Page(our_in, our_out)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)
        os.close(our_in)
        os.close(our_out)
