"""Plays one TextWorld game: `python textworld_engine.py GAME`. It runs without the rest of skilltune, as a process of
its own, so that a game can be killed and shares no state with another.

Each line of its standard input is a command. It answers each, and the beginning, by one line of JSON: "text",
"commands" (those that the game admits now), "won", "lost", "score", "most" (the highest score), or "fault".
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def main(game: str) -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the engine prints is no answer

    def tell(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        env = started(game)
        state = env.reset()
        tell(seen(state))
        for line in sys.stdin:
            state, _, _ = env.step(line.rstrip("\n"))
            tell(seen(state))
    except Exception as error:
        traceback.print_exc()
        tell({"fault": f"{type(error).__name__}: {error}"})


def started(game: str) -> Any:
    import textworld  # type: ignore[import-not-found]

    infos = textworld.EnvInfos(
        admissible_commands=True, won=True, lost=True, score=True, max_score=True, objective=True, feedback=True
    )
    wrappers = []
    if game.endswith(".tw-pddl"):  # ALFWorld's objects have machine names until its own wrapper translates them
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler  # type: ignore[import-not-found]

        infos = textworld.EnvInfos(admissible_commands=True, won=True, feedback=True)
        wrappers = [AlfredDemangler]
    return textworld.start(game, infos, wrappers=wrappers)


def seen(state: Any) -> dict[str, Any]:
    commands = state["admissible_commands"]
    if commands is None:
        raise ValueError("the game does not list its admissible commands")
    return {
        "text": plain(str(state["feedback"] or "")),
        "goal": str(state.get("objective") or ""),
        "commands": [str(command) for command in commands],
        "won": bool(state.get("won")),
        "lost": bool(state.get("lost")),
        "score": state.get("score") or 0,
        "most": state.get("max_score") or 0,
    }


def plain(text: str) -> str:
    """The text without the engine's banner, which has no letters, and without its prompt and status line."""
    lines = [line.rstrip() for line in text.replace("\r", "").split("\n")]
    lines = [line for line in lines if not line or any(map(str.isalnum, line))]
    if lines and lines[-1].startswith(">"):
        lines.pop()
    return "\n".join(lines).strip()


if __name__ == "__main__":
    main(sys.argv[1])
