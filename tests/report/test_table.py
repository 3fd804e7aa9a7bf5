"""The table of runs: figures of the certificates, cells by target and benchmark, runs without figures by name."""

from __future__ import annotations

import asyncio
import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.history.record import Record
from skilltune.journal.run import Run
from skilltune.report.table import Line, lines_of, write_table
from training import Trained, small, train


def line(run: str, **facts: object) -> Line:
    known = {"benchmark": "searchqa", "data": "aaaa", "target": "openai/a", "optimizer": "openai/b", "seed": 1}
    figures = {"before": 0.5, "after": 0.75, "low": 0.1, "high": 0.4, "n": 40, "certified": True, "tokens": 12.0}
    return Line(**{"run": run, "calls": 1200, "usd": 0.5, **known, **figures, **facts})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with small(p=0.0) as world:
        return asyncio.run(train(world, tmp_path_factory.mktemp("table")))


def test_a_real_run_gives_the_figures_of_its_certificate(trained: Trained):
    with Run.read(trained.folder) as run:
        [found] = lines_of([Record.of(run)])
    proof = trained.result.certificate
    assert proof is not None
    assert (found.before, found.after, found.low, found.n) == (proof.before, proof.after, proof.low, proof.n)
    assert found.calls == trained.result.spent.calls
    assert len(found.data) == 8
    text = CliRunner().invoke(app, ["table", str(trained.folder)]).output
    assert f"{100 * proof.before:.1f}" in text
    assert f"{100 * proof.after:.1f}" in text
    assert found.benchmark == trained.folder.parent.name  # because the samples' file has a general name


def test_seeds_share_a_cell_and_other_samples_do_not():
    runs = [line("a"), line("b", seed=2, after=0.85), line("c", benchmark="docvqa"), line("d", data="bbbb", seed=3)]
    text = write_table(runs, "markdown")
    assert "| target | skill | searchqa (aaaa) | docvqa | searchqa (bbbb) |" in text
    assert "| openai/a | with | 80.0 ± 7.1 (2 runs) | 75.0 | 75.0 |" in text
    assert "2 different sets of samples (aaaa, bbbb)" in text


def test_a_run_without_figures_is_listed_with_its_reason():
    stopped = Line("r1", "bbh", "aaaa", "t", "o", 1, 10, None, note="stopped before the certificate: budget")
    text = write_table([stopped, line("x", certified=False, target="t", benchmark="bbh")], "text")
    assert "r1: stopped before the certificate: budget." in text
    assert "unknown" in text
    assert "+25.0 (not certified)" in text
    assert "nan" not in text.lower()


def test_csv_holds_unrounded_figures():
    [row] = csv.DictReader(io.StringIO(write_table([line("a", after=2 / 3)], "csv")))
    assert float(row["after"]) == 2 / 3
    assert row["run"] == "a"


def test_html_escapes_the_names_of_models():
    page = write_table([line("a", target="openai/<script>alert(1)</script>|x")], "html")
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert "\\|x" in write_table([line("a", target="a|x")], "markdown")


def test_mistakes_are_named(tmp_path: Path, trained: Trained):
    run = str(trained.folder)
    cases = {
        (run, run): "named twice",
        (run, "-o", str(tmp_path / "t.xlsx")): "unknown ending",
        (str(tmp_path / "none"),): "none",
        (run, "-o", str(tmp_path)): "cannot write",
    }
    for arguments, message in cases.items():
        found = CliRunner().invoke(app, ["table", *arguments])
        assert found.exit_code == 2, arguments
        assert message in found.output
    made = CliRunner().invoke(app, ["table", run, "-o", str(tmp_path / "t.csv")])
    assert made.exit_code == 0
    assert (tmp_path / "t.csv").read_text().startswith("run,benchmark,data,target")
