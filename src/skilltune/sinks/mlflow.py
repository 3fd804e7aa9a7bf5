"""MLflow: one MLflow run per run folder, in RUN/mlflow.db unless MLFLOW_TRACKING_URI names a server or another store.

The run is found again by a tag, and the rows that it holds are asked for, so that a resumed run goes on in it. The
store is SQLite: MLflow's plain file store is at its end and refuses to open without a switch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from skilltune.journal.run import flatten
from skilltune.sinks import RunInfo
from skilltune.sinks.metrics import Row

TAG = "skilltune.journal.run"
PARAMS = 100  # MLflow's bound for one request
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # seven, as is usual, take minutes to find out that a server is gone
}


class Mlflow:
    """Logs the configuration as parameters, every row as a step, and the best skill as artifact "skill".

    MLflow's own environment variables hold, such as MLFLOW_TRACKING_URI and MLFLOW_TRACKING_TOKEN.
    """

    def __init__(self, info: RunInfo) -> None:
        for name, value in _QUIET.items():  # read while it is imported
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
            self._client.log_batch(self._run, metrics=metrics)  # whole or not at all

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
        # In this URI, which is read by SQLAlchemy, only these two mean something.
        local = str(info.folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")
        client = self._client = self._connect(tracking_uri=uri or f"sqlite:///{local}")
        known = client.get_experiment_by_name(info.project)
        experiment = known.experiment_id if known else client.create_experiment(info.project, artifact_location=place)
        found = client.search_runs([experiment], f"tags.`{TAG}` = '{info.id}'", max_results=1)
        run = found[0] if found else client.create_run(experiment, tags={TAG: info.id}, run_name=info.name)
        id = run.info.run_id
        self._shown = run.info.status
        self._held = {metric.step for metric in client.get_metric_history(id, "calls")}  # every row has its calls
        self._log_config(id, run.data.params)
        self._run = id

    def _log_config(self, id: str, known: dict[str, str]) -> None:
        """The configuration as the run was started with: MLflow lets nothing change a parameter."""
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
