"""Weights & Biases: one W&B run per run folder, offline if there is no key.

Without a key, or with WANDB_MODE=offline, W&B stores everything in RUN/wandb, and `wandb sync` uploads it. Offline
there is no server to query for logged rows, so a file beside W&B's own files counts them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skilltune.files import write_atomic
from skilltune.sinks import RunInfo, only_secrets_of
from skilltune.sinks.metrics import Row

if TYPE_CHECKING:
    import wandb

START_S = 20.0  # time after which a server that does not answer is given up
_QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


class Wandb:
    """Logs the configuration, every row as a step, and the best skill as an artifact of type "skill".

    W&B's own environment variables apply: WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL, WANDB_DIR, WANDB_SILENT, …
    """

    def __init__(self, info: RunInfo) -> None:
        for name, value in _QUIET.items():  # read at import
            os.environ.setdefault(name, value)
        import wandb

        self._info, self._sdk = info, wandb
        with only_secrets_of("WANDB_"):  # this starts W&B's service process
            settings = wandb.setup().settings
        self._mode = settings.mode if settings.mode != "online" or _logged_in(settings) else "offline"
        self._counter = info.folder / "wandb" / f"{info.id}.rows"
        self._run: wandb.Run | None = None
        self._finished = False

    def log(self, rows: Sequence[Row]) -> None:
        offline = self._mode in ("offline", "dryrun")
        held = int(self._counter.read_text()) if offline and self._counter.exists() else 0
        for row in rows:
            self._finished = row.event == "finish"
            if row.number < held:
                continue
            run = self._open()
            if row.number < run.step:  # the server has it already
                continue
            if row.event == "finish":
                self._finish(run, row)
            run.log(row.numbers, step=row.number, commit=True)
            if offline:
                write_atomic(self._counter, str(row.number + 1))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if self._finished else 1)

    def _open(self) -> wandb.Run:
        """The W&B run, resumed if it exists. It gets metrics but nothing about this machine: no hardware, packages,
        command line, git state or console output."""
        if self._run is not None:
            return self._run
        settings = self._sdk.Settings(
            console="off",
            init_timeout=START_S,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        run = self._run = self._sdk.init(
            project=self._info.project,
            id=self._info.id,
            name=self._info.name,
            config=dict(self._info.config),
            dir=os.environ.get("WANDB_DIR") or self._info.folder,
            mode=self._mode,
            resume="allow",
            reinit="create_new",  # do not replace another W&B run of this process
            settings=settings,
        )
        return run

    def _finish(self, run: wandb.Run, row: Row) -> None:
        """Log the texts of the last row as summary, and the skill as an artifact.

        W&B may read the files much later (`wandb sync`), so they are copied to a place where they do not change.
        """
        run.summary.update({name: value for name, value in row.figures.items() if isinstance(value, str)})
        best = self._info.folder / row.figures["file"]
        copy = self._info.folder / "wandb" / f"{self._info.id}-skill-{row.number}"
        _copy(best, copy / best.name)
        artifact = self._sdk.Artifact(f"skill-{self._info.id}", type="skill", metadata={"hash": row.figures["best"]})
        for path in sorted(path for path in copy.rglob("*") if path.is_file()):
            name = path.relative_to(copy).as_posix()
            artifact.add_file(str(path), name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def _logged_in(settings: wandb.Settings) -> bool:
    """True if there is a key, in the environment or from `wandb login`."""
    from wandb.sdk.lib.wbauth import read_netrc_auth  # it knows under which names the server went and goes

    return bool(settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url))


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to)
