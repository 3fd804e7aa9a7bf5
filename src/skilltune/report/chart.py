"""The score of each version with its interval, as SVG: shapes tell the splits apart, not colours alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skilltune.report.markup import Html, el

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 40  # margins
MARK = 5  # half the size of a mark


@dataclass(frozen=True, slots=True)
class Point:
    """A mark over version number `at` (its place on the axis); scores in [0, 1]."""

    at: int
    score: float
    low: float
    high: float
    split: str  # "select" is drawn as a dot, "test" as a square beside it


def chart(points: Iterable[Point], labels: list[str], title: str) -> Html:
    """Versions from left to right, scores from 0 to 100 %, each with its 95 % interval."""
    step = (WIDTH - LEFT - RIGHT) / max(1, len(labels))

    def x(place: float) -> float:
        return round(LEFT + (place + 0.5) * step, 1)

    def y(score: float) -> float:
        return round(HEIGHT - BOTTOM - score * (HEIGHT - TOP - BOTTOM), 1)

    parts = [el("title", title, id="chart-title")]
    for percent in range(0, 101, 25):
        level = y(percent / 100)
        parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=level, y2=level, class_="rule"))
        parts.append(el("text", f"{percent} %", x=LEFT - 8, y=level + 4, class_="tick end"))
    every = -(-len(labels) // 16)  # so that they never overlap
    for place, label in enumerate(labels):
        if place % every == 0 or place == len(labels) - 1:
            parts.append(el("text", label, x=x(place), y=HEIGHT - BOTTOM + 22, class_="tick middle"))
    aside = min(14.0, step / 4)
    for point in points:
        middle = x(point.at) + (aside if point.split == "test" else -aside)
        parts.append(_mark(point, middle, y(point.score), y(point.low), y(point.high)))
    return el("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_labelledby="chart-title", class_="chart")


def _mark(point: Point, x: float, y: float, low: float, high: float) -> Html:
    cap = MARK - 1
    bars = [
        el("line", x1=x, x2=x, y1=low, y2=high),
        *(el("line", x1=x - cap, x2=x + cap, y1=end, y2=end) for end in (low, high)),
    ]
    if point.split == "test":
        shape = el("rect", x=x - MARK, y=y - MARK, width=2 * MARK, height=2 * MARK)
    else:
        shape = el("circle", cx=x, cy=y, r=MARK)
    said = el("title", f"{point.split}: {100 * point.score:.1f} % ({100 * point.low:.1f} to {100 * point.high:.1f})")
    return el("g", said, *bars, shape, class_=f"point {point.split}")
