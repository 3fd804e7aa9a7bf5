"""Measures the page of a large run: its size, the time to make it, its first paint, and how it scrolls.

    python bench/page.py [--samples 10000] [--versions 12]

It writes a journal with that many samples under that many versions, and opens the report in headless Chromium. Times of
the data are those of the processor; those of the browser are of the clock, so nothing else should run. A long
task is one of more than 50 ms, by the browser's own count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Page, browser
from journals import a_run
from skilltune.history.page import page
from skilltune.history.record import Rollouts
from skilltune.journal.run import Run
from skilltune.report.html import report

SCROLL = """
new Promise((done) => {
  const grid = document.querySelector(".grid");
  const frames = [];
  const long = [];
  const watch = (list) => long.push(...list.getEntries().map((each) => each.duration));
  new PerformanceObserver(watch).observe({type: "longtask"});
  let last = performance.now();
  const end = () => {
    const rows = document.querySelectorAll(".grid .row").length;
    done(JSON.stringify({frames: frames.slice(1), long, rows}));
  };
  const step = (now) => {
    frames.push(now - last);
    last = now;
    grid.scrollTop += 900;
    if (frames.length < 120) requestAnimationFrame(step);
    else setTimeout(end, 200);
  };
  requestAnimationFrame(step);
})
"""
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = asked.samples // 10
        sizes = {"train": 4 * part, "select": 2 * part, "test": asked.samples - 6 * part}
        samples = {split: [f"{split}-{i:05}" for i in range(n)] for split, n in sizes.items()}
        texts = [f"# Desk\n\n- rule {i}\n" for i in range(asked.versions)]
        text = "Which code does the desk enter for this ticket? " * 10
        a_run(folder / "run", texts, samples, text).close()
        with Run.read(folder / "run") as run:
            known = Rollouts()
            size, first = timed(lambda: len(json.dumps(page(run, known), ensure_ascii=False).encode()))
            _, again = timed(lambda: page(run, known))
            made, took = timed(lambda: report(run))
        path = folder / "report.html"
        path.write_text(made)
        print(f"{asked.samples:,} samples x {asked.versions} versions, {os.cpu_count()} processors")
        print(f"data of the page   {size / 1e6:.2f} MB in {first:.1f} s; {again:.1f} s if the rollouts are known")
        print(f"report.html        {len(made.encode()) / 1e6:.2f} MB in {took:.1f} s")
        with browser(folder / "profile") as tab:
            tab.size(1280, 900)
            paints = [measure_paint(tab, path) for _ in range(3)]
            found = json.loads(tab.promised(SCROLL))
        frames = sorted(found["frames"])
        slow = frames[int(0.95 * len(frames))]
        print(f"first paint        {min(paints):.0f} ms, the best of {len(paints)}; {max(paints):.0f} ms the worst")
        print(f"scroll             {median(frames):.1f} ms a frame, {slow:.1f} ms at 95 % of {len(frames)} frames")
        print(f"                   {len(found['long'])} long tasks; {found['rows']} rows in the document")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of some work, and the seconds of the processor that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


def measure_paint(tab: Page, path: Path) -> float:
    """Milliseconds from the navigation to the first contentful paint."""
    tab.open(path)
    tab.until("document.querySelector('.grid .row')")
    tab.until("performance.getEntriesByName('first-contentful-paint').length")
    return tab.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")


if __name__ == "__main__":
    main()
