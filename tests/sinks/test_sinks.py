"""Where the figures go: metrics.jsonl as the run goes, W&B and MLflow for real, and sinks that fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.config import MAY_DIFFER, make_config
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.sinks import Row, find_sink, recording
from skilltune.sinks.metrics import Rows
from training import events, prepare, small, train

pytestmark = pytest.mark.anyio
Json = dict[str, Any]
TRAINING = Path(__file__).parents[1] / "training.py"
UNTIL_STOPPED = 100  # calls: the start is measured with them, and the training is not over (48 are held back)
FIGURES = ("score", "score_sd", "step", "lr", "accepted", "edits", "gain", "p_better", "calls", "tokens", "usd")


def rows_of(folder: Path) -> list[Json]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def past(folder: Path) -> list[Json]:
    run = Run.read(folder)
    try:
        return [row.to_json() for row in Rows(run).past]
    finally:
        run.close()


# -- metrics.jsonl


@pytest.mark.slow
async def test_every_verdict_is_a_row_with_what_was_spent_by_then(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        trained = await train(world, tmp_path)
    rows, verdicts = trained.rows("metrics.jsonl"), trained.verdicts
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert [row["event"] for row in rows] == ["start", *["verdict"] * len(verdicts), "finish"]
    start, *middle, finish = rows
    assert (start["step"], start["version"], start["score"]) == (0, 0, 0.0)
    assert start["calls"] >= 16  # the select split was measured for it
    for row, verdict in zip(middle, verdicts, strict=True):
        for key in ("step", "epoch", "lr", "version", "accepted", "score", "score_sd", "reason"):
            assert row[key] == verdict[key]
        assert row["edits"] == sum(edit["status"] == "applied" for edit in verdict["edits"])
    raced = [row for row in middle if row["accepted"]]
    assert raced
    assert all(row["p_better"] > 0.9 and row["gain"] > 0 for row in raced)
    spent = [row["calls"] for row in rows]
    assert spent == sorted(spent)
    run = Run.read(trained.folder)
    total = run.usage
    run.close()
    assert finish["calls"] == sum(usage.calls for usage in total.values())
    assert finish["tokens"] == sum(usage.tokens for usage in total.values())
    assert trained.result.certificate is not None
    assert finish["certificate"]["gain"] == trained.result.certificate.gain
    assert finish["best"] == trained.result.best.hash
    assert (trained.folder / finish["file"]).read_bytes().decode() == trained.result.best.text


@pytest.mark.slow
async def test_a_paired_gate_states_its_gain_and_no_probability(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        trained = await train(world, tmp_path, {"train.epochs": 1}, preset="paper")
    judged = [row for row in trained.rows("metrics.jsonl") if row["event"] == "verdict" and row["gain"] is not None]
    assert judged
    for row in judged:
        assert row["p_better"] is None
        assert (row["gain"] > 0) == row["accepted"]


@pytest.mark.slow
async def test_a_killed_run_has_its_rows_and_a_resumed_one_keeps_them(tmp_path: Path) -> None:
    longer = {"train.epochs": 3}
    with small(q=0.9, p=0.1, latency=0.01) as world:
        prepare(world, tmp_path)
        given = {"url": world.url, "folder": str(tmp_path), "settings": longer}
        program = [sys.executable, str(TRAINING), json.dumps(given)]
        process = subprocess.Popen(program, stderr=subprocess.PIPE)
        file = tmp_path / "run" / "metrics.jsonl"
        while not (file.exists() and len(rows_of(tmp_path / "run")) >= 2) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() != 0, "it ended before it was killed"
        before = rows_of(tmp_path / "run")
        resumed = await train(world, tmp_path, longer)
    after = resumed.rows("metrics.jsonl")
    assert after[: len(before)] == before
    assert len(after) == len(resumed.verdicts) + 2 > len(before)


@pytest.mark.slow
async def test_a_replay_changes_no_row_and_writes_a_deleted_file_again(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        first = (await train(world, tmp_path)).rows("metrics.jsonl")
        (tmp_path / "run" / "metrics.jsonl").unlink()
        again = await train(world, tmp_path)
    assert again.rows("metrics.jsonl") == first
    assert again.rows("metrics.jsonl") == past(again.folder)


async def test_a_run_that_was_stopped_goes_on_in_the_same_rows(tmp_path: Path) -> None:
    with small(q=0.9) as world:
        stopped = await train(world, tmp_path, preset="paper", budget={"calls": 130})
        before = stopped.rows("metrics.jsonl")
        after = (await train(world, tmp_path, preset="paper")).rows("metrics.jsonl")
    assert before[-1]["event"] == "finish"
    assert before[-1]["stopped"]
    assert before[-1]["certificate"]
    assert "verdict" in {row["event"] for row in before}
    assert after[: len(before)] == before
    assert after[-1]["event"] == "finish"
    assert len(after) > len(before)


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("start"),
            st.fixed_dictionaries({"skill": st.just("a"), "score": st.none() | st.floats(0, 1), "score_sd": st.none()}),
        ),
        st.tuples(st.just("stopping"), st.fixed_dictionaries({"reason": st.text(max_size=3)})),
        st.tuples(
            st.just("finish"),
            st.fixed_dictionaries(
                {
                    "exit_code": st.integers(0, 5),
                    "stopped": st.none() | st.text(max_size=3),
                    "start": st.just("a"),
                    "best": st.text("abc", max_size=2),
                    "name": st.just("desk"),
                    "certificate": st.none(),
                }
            ),
        ),
    ),
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 8), max_size=3))
def test_however_often_it_is_killed_and_replayed_each_event_is_one_row(given: list[Any], kills: list[int]) -> None:
    heard: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kill in [*kills, len(given)]:
            with Run.open(Path(folder)) as run:
                rows = Rows(run)
                assert rows.past == heard
                for type, data in given[:kill]:
                    run.record(type, **data)
                    heard += rows.hear(type)
    assert [row.event for row in heard] == [type for type, _ in given if type != "stopping"]
    assert [row.number for row in heard] == list(range(len(heard)))


# -- plug-ins, and sinks that fail


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a distribution whose entry point `seen` is the class `Seen` of the given source; gives its module."""
    site = tmp_path / "site"
    info = site / "seen_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seen-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[skilltune.sinks]\nseen = seen_sink:Seen\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr("skilltune.plugins._found", {})

    def install(source: str) -> Any:
        (site / "seen_sink.py").write_text(textwrap.dedent(source))
        import seen_sink  # pyright: ignore[reportMissingImports]

        return seen_sink

    yield install
    sys.modules.pop("seen_sink", None)


RECORDS = """
    made, told, closed = [], [], []

    class Seen:
        def __init__(self, info):
            made.append(info)

        def log(self, rows):
            told.append([row.to_json() for row in rows])

        def close(self):
            closed.append(len(told))
"""


@pytest.mark.slow
async def test_an_installed_sink_hears_every_row_in_every_life(tmp_path: Path, plug_in: Any) -> None:
    seen = plug_in(RECORDS)
    with small(q=0.9) as world:
        await train(world, tmp_path, budget={"calls": UNTIL_STOPPED})  # a sink may join later
        asked = {"log.sinks": ["seen"], "log.project": "desk"}
        trained = await train(world, tmp_path, asked)
        first = [row for batch in seen.told for row in batch]
        await train(world, tmp_path, asked)
        forked = await train(world, tmp_path, {**asked, "train.epochs": 1}, fork=True)
    assert first == trained.rows("metrics.jsonl")
    assert len(seen.told[0]) > 1  # what the journal held came at once
    assert len(seen.closed) == 3
    info, again, other = seen.made
    assert (info.name, info.folder, info.project) == ("run", trained.folder.resolve(), "desk")
    assert info.id == again.id != other.id
    assert info.config["train"]["epochs"] == 2
    assert events(forked.folder, "warning") == []


@pytest.mark.parametrize("member", ["log", "close"])
async def test_a_sink_that_fails_is_off_with_one_warning_and_the_training_goes_on(
    tmp_path: Path, plug_in: Any, member: str
) -> None:
    seen = plug_in(f"{RECORDS}\n        def {member}(self, *_):\n            raise OSError(28, 'No space left')\n")
    with small(q=0.9) as world:
        trained = await train(world, tmp_path, {"log.sinks": "seen"})
    assert trained.result.exit_code == 0
    (warning,) = events(trained.folder, "warning")
    assert warning["about"] == "log to seen"
    assert "No space left" in warning["why"]
    assert len(trained.rows("metrics.jsonl")) == len(trained.verdicts) + 2
    if member == "log":
        assert seen.closed == [0]


async def test_a_sink_that_cannot_start_is_an_error_before_anything_is_spent(tmp_path: Path, plug_in: Any) -> None:
    plug_in("def Seen(info):\n    raise PermissionError('no entry')\n")
    with small() as world:
        with pytest.raises(UsageError, match=r"log\.sinks: seen cannot start \(PermissionError: no entry\)"):
            await train(world, tmp_path, {"log.sinks": ["seen"]})
        assert not world.requests


async def test_a_sink_that_blocks_does_not_hold_up_the_training(tmp_path: Path, plug_in: Any) -> None:
    plug_in("""
        import time

        class Seen:
            def __init__(self, info):
                self.file = info.folder / "metrics.jsonl"

            def log(self, rows):
                until = time.monotonic() + 20
                while '"finish"' not in (self.file.read_text() if self.file.exists() else ""):
                    if time.monotonic() > until:
                        raise TimeoutError("the training waits for me")
                    time.sleep(0.01)

            def close(self):
                pass
    """)
    with small(q=0.9) as world:
        trained = await train(world, tmp_path, {"log.sinks": ["seen"]})
    assert events(trained.folder, "warning") == []


async def test_an_unknown_sink_or_a_missing_extra_costs_nothing(
    tmp_path: Path, plug_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(RECORDS)
    monkeypatch.setattr("skilltune.sinks.find_spec", lambda name: None)
    with small() as world:
        with pytest.raises(UsageError, match='unknown sink "wandbb"; known: wandb, mlflow, seen'):
            await train(world, tmp_path, {"log.sinks": ["seen", "wandbb"]})
        for name in ("wandb", "mlflow"):
            with pytest.raises(UsageError, match=rf"pip install 'skilltune\[{name}\]'"):
                await train(world, tmp_path, {"log.sinks": [name]})
        assert not world.requests


def test_sinks_may_change_on_resume_and_are_written_as_a_list_or_a_word(tmp_path: Path) -> None:
    assert make_config({}).log.sinks == ()
    assert make_config({}, ["log.sinks=wandb, mlflow"]).log.sinks == ("wandb", "mlflow")
    assert make_config({"log": {"sinks": ["wandb"]}}).log.sinks == ("wandb",)
    with Run.open(tmp_path, make_config({}).to_json(), may_differ=MAY_DIFFER) as run:
        run.put("paid", "rollout", _paid())
    Run.open(tmp_path, make_config({"log": {"project": "x"}}).to_json(), may_differ=MAY_DIFFER).close()


def _paid() -> Any:
    from skilltune.journal.run import Paid
    from skilltune.usage import Usage

    return Paid("answer", Usage(calls=1))


def test_the_tag_of_a_run_stays_the_same_so_that_a_resumed_run_is_found() -> None:
    from skilltune.sinks import mlflow

    assert mlflow.TAG == "skilltune.run"


def test_no_client_library_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, skilltune.cli.main, skilltune.api; sys.exit(bool({'wandb', 'mlflow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- Weights & Biases, for real


def installed(*names: str) -> pytest.MarkDecorator:
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_wandb, needs_mlflow = installed("wandb"), installed("mlflow", "sqlalchemy", "alembic")


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, chunks of a 7-byte header and a part of a
    record) after a header of 7 bytes; each record is a protocol buffer."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little for a header: the rest of the block is filled up
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            record = b""


def train_apart(world: Any, folder: Path, environment: dict[str, str], **given: Any) -> None:
    """Train in a process of its own, whose home and environment are the test's."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    arguments = json.dumps({"url": world.url, "folder": str(folder), **given})
    done = subprocess.run(
        [sys.executable, str(TRAINING), arguments],
        env={**keep, "HOME": str(folder / "home"), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.slow
@needs_wandb
async def test_wandb_offline_goes_on_in_the_same_run_and_logs_no_row_twice(tmp_path: Path) -> None:
    chosen = {"log.sinks": ["wandb"], "log.project": "desk"}
    with small(q=0.9) as world:
        prepare(world, tmp_path)
        for budget in ({"calls": UNTIL_STOPPED}, {}, {}):  # stopped, finished, and finished already
            train_apart(world, tmp_path, {"OPENAI_API_KEY": "sk-of-openai"}, settings=chosen, budget=budget)
    folder = tmp_path / "run"
    rows = rows_of(folder)
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # the third had nothing to add
    assert len({file.name for file in files}) == 1
    lives = [list(records(file)) for file in files]

    logged = [r.history for life in lives for r in life if r.WhichOneof("record_type") == "history"]
    assert [history.step.num for history in logged] == [row["row"] for row in rows]
    for history, row in zip(logged, rows, strict=True):
        figures = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
        for key in FIGURES:
            if row.get(key) is not None:
                assert figures[key] == float(row[key])
    begun = [r.run for life in lives for r in life if r.WhichOneof("record_type") == "run"]
    assert {(run.project, run.run_id) for run in begun} == {("desk", files[0].stem.removeprefix("run-"))}
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["train"]["batch_size"] == 16
    saved = [r.request.log_artifact.artifact for life in lives for r in life if r.request.HasField("log_artifact")]
    saved += [r.artifact for life in lives for r in life if r.WhichOneof("record_type") == "artifact"]
    assert {artifact.type for artifact in saved} == {"skill"}
    best = Path(saved[-1].manifest.contents[0].local_path)
    assert best.read_bytes() == (folder / "best_skill.md").read_bytes()
    assert [r.exit.exit_code for life in lives for r in life if r.WhichOneof("record_type") == "exit"] == [0, 0]
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"sk-of-openai" not in file.read_bytes()
    assert events(folder, "warning") == []


@pytest.mark.slow
@needs_wandb
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_wandbs_own_process_gets_no_key_but_its_own(tmp_path: Path) -> None:
    code = """
        import os
        from pathlib import Path
        from skilltune.sinks import Row, RunInfo, find_sink

        sink = find_sink("wandb")(RunInfo("0a1b2c3d", "desk", Path.cwd(), "desk", {}))
        sink.log([Row(0, 0.0, "start", {"score": 0.5})])
        for process in Path("/proc").iterdir():
            try:
                if f"--pid\\0{os.getpid()}\\0" in (process / "cmdline").read_text():
                    print((process / "environ").read_text().replace("\\0", "\\n"))
            except OSError:
                pass
        sink.close()
        print("own=" + os.environ["OPENAI_API_KEY"])
    """
    keys = {"OPENAI_API_KEY": "sk-1", "GITHUB_TOKEN": "sk-2", "MY_PASSWORD": "sk-3", "WANDB_API_KEY": "k" * 40}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WANDB_MODE": "offline", **keys}
    environment |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    seen = done.stdout.splitlines()
    assert "WANDB_API_KEY=" + "k" * 40 in seen, done.stderr
    assert "WANDB_ERROR_REPORTING=false" in seen
    assert [line for line in seen if "sk-" in line] == ["own=sk-1"]


# -- MLflow, for real


@pytest.fixture
def mlflow_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    for name, value in (("DISABLE_TELEMETRY", "true"), ("LOGGING_LEVEL", "ERROR"), ("HTTP_REQUEST_MAX_RETRIES", "0")):
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    return monkeypatch


def same_in_mlflow(uri: str, folder: Path, project: str) -> Any:
    """Assert that the store holds one run, with the rows of metrics.jsonl each once; gives (client, run)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    rows = rows_of(folder)
    for key in FIGURES:
        history = sorted(client.get_metric_history(run.info.run_id, key), key=lambda metric: metric.step)
        stated = [(row["row"], float(row[key])) for row in rows if row.get(key) is not None]
        assert [(metric.step, metric.value) for metric in history] == stated
    return client, run


@pytest.mark.slow
@needs_mlflow
async def test_mlflow_goes_on_in_the_same_run_and_logs_no_row_twice(
    tmp_path: Path, mlflow_env: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "100 % näher?"  # signs that mean something in a URI
    place.mkdir()
    mlflow_env.chdir(tmp_path)
    chosen = {"log.sinks": ["mlflow"], "log.project": "desk"}
    with small(q=0.9) as world:
        for budget in ({"calls": UNTIL_STOPPED}, {"calls": 10_000}, {}):
            trained = await train(world, place, chosen, budget=budget)
    assert events(trained.folder, "warning") == []
    assert not (tmp_path / "mlruns").exists()
    local = str(trained.folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    client, run = same_in_mlflow(f"sqlite:///{local}", trained.folder, "desk")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["train.batch_size"] == "16"
    assert run.data.params["budget.calls"] == str(UNTIL_STOPPED)  # as it was started
    assert run.data.tags["skilltune.best"] == trained.result.best.hash
    proof = trained.result.certificate
    assert proof is not None
    assert run.data.metrics["certificate/p"] == proof.p
    assert run.data.metrics["certificate/certified"] == 1.0
    saved = client.download_artifacts(run.info.run_id, "skill/best_skill.md", str(tmp_path))
    assert Path(saved).read_bytes().decode() == trained.result.best.text


@pytest.mark.slow
@needs_mlflow
async def test_mlflow_takes_the_store_that_its_own_variable_names(
    tmp_path: Path, mlflow_env: pytest.MonkeyPatch
) -> None:
    mlflow_env.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow_env.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    with small(q=0.9) as world:
        trained = await train(world, tmp_path, {"log.sinks": ["mlflow"]})
    same_in_mlflow((tmp_path / "elsewhere").as_uri(), trained.folder, "skilltune")
    assert not (trained.folder / "mlflow.db").exists()


@pytest.mark.slow
@needs_mlflow
async def test_a_server_that_is_gone_costs_its_figures_and_nothing_else(
    tmp_path: Path, mlflow_env: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        mlflow_env.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    with small(q=0.9) as world:
        trained = await train(world, tmp_path, {"log.sinks": ["mlflow"]})
    assert trained.result.exit_code == 0
    (warning,) = events(trained.folder, "warning")
    assert warning["about"] == "log to mlflow"


async def test_a_session_that_breaks_off_closes_its_sinks(tmp_path: Path, plug_in: Any) -> None:
    seen = plug_in(RECORDS)
    with Run.open(tmp_path / "run") as run:
        with pytest.raises(KeyError):
            async with recording(make_config({"log": {"sinks": ["seen"]}}), run):
                run.record("start", skill="a", score=0.5, score_sd=None)
                raise KeyError
        run.record("start", skill="a", score=0.6, score_sd=None)
    assert [row["score"] for batch in seen.told for row in batch] == [0.5]
    assert seen.closed == [1]


@pytest.mark.slow
def test_the_known_sinks_are_found_without_importing_their_clients() -> None:
    code = "import sys; from skilltune.sinks import find_sink; find_sink('wandb'); find_sink('mlflow')"
    if any(mark.args[0] for mark in (needs_wandb.mark, needs_mlflow.mark)):
        pytest.skip(needs_wandb.mark.kwargs["reason"])
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('wandb' in sys.modules)"], check=True)
    assert find_sink("wandb").__name__ == "Wandb"
