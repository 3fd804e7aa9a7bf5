"""MLflow: one MLflow run per run folder, in RUN/mlflow.db unless MLFLOW_TRACKING_URI names a server or another store.

A tag identifies the MLflow run, and its logged rows are queried, so that a resumed run continues it. The store is
SQLite, because MLflow's plain file store is deprecated and refuses to open without a switch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from skilltune.journal.run import flatten
from skilltune.sinks import RunInfo
from skilltune.sinks.metrics import Row

TAG = "skilltune.run"
PARAMS = 100  # MLflow's limit per request
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default of seven takes minutes to notice that a server is gone
}


class Mlflow:
    """Logs the configuration as parameters, every row as a step, and the best skill as artifact "skill".

    MLflow's own environment variables apply, such as MLFLOW_TRACKING_URI and MLFLOW_TRACKING_TOKEN.
    """

    def __init__(self, info: RunInfo) -> None:
        for name, value in _QUIET.items():  # read at import
            os.environ.setdefault(name, value)
        import mlflow.tracking

        self._info = info
        self._connect = mlflow.tracking.MlflowClient
        self._run = ""
        self._held: set[int] = set()

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        if not self._run:
            self._open()
        for row in rows:
            self._status = "FINISHED" if row.event == "finish" else "KILLED"
            if row.number in self._held:
                continue
            self._set_status("RUNNING")
            if row.event == "finish":
                self._finish(row)
            t = int(1000 * row.t)
            metrics = [Metric(name, value, t, row.number) for name, value in row.numbers.items()]
            self._client.log_batch(self._run, metrics=metrics)  # atomic

    def close(self) -> None:
        if self._run:
            self._set_status(self._status)

    def _set_status(self, status: str) -> None:
        if status != self._shown:
            self._client.update_run(self._run, status=status)
            self._shown = status

    def _open(self) -> None:
        info = self._info
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place = None if uri else (info.folder / "mlflow").as_uri()
        # SQLAlchemy reads this URI; only these two characters need escapes.
        local = str(info.folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")
        client = self._client = self._connect(tracking_uri=uri or f"sqlite:///{local}")
        known = client.get_experiment_by_name(info.project)
        experiment = known.experiment_id if known else client.create_experiment(info.project, artifact_location=place)
        found = client.search_runs([experiment], f"tags.`{TAG}` = '{info.id}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, tags={TAG: info.id}, run_name=info.name)
        id = run.info.run_id
        self._shown = run.info.status
        self._held = {metric.step for metric in client.get_metric_history(id, "calls")}  # every row logs "calls"
        self._log_config(id, run.data.params)
        self._run = id

    def _log_config(self, id: str, known: dict[str, str]) -> None:
        """Log the configuration of the run's start, because MLflow parameters cannot be changed."""
        from mlflow.entities import Param

        values = {re.sub(r"[^\w.\- :/]", "_", key): str(v) for key, v in flatten(self._info.config).items()}
        params = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(id, params=params[start : start + PARAMS])

    def _finish(self, row: Row) -> None:
        best = self._info.folder / row.figures["file"]
        for name in ("best", "stopped"):
            self._client.set_tag(self._run, f"skilltune.{name}", row.figures[name] or "")
        if best.is_dir():
            self._client.log_artifacts(self._run, str(best), f"skill/{best.name}")
        else:
            self._client.log_artifact(self._run, str(best), "skill")
