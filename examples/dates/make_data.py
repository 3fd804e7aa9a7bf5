"""Write data.jsonl: sentences that mention one date, and that date as YYYY-MM-DD.

Each split has sentence templates of its own (the `group`), so that the certificate is about sentences never seen.
"""

import json
import random
from datetime import date
from pathlib import Path

TEMPLATES = {
    "train": [
        "The meeting is on {}.",
        "She was born on {} in a small town.",
        "The parcel left the depot on {} and is on its way.",
        "Our lease ends on {}.",
        "They opened the new bridge on {}.",
        "The course starts on {} at nine.",
        "He signed the contract on {}.",
        "The shop closed for good on {}.",
        "We last spoke on {}.",
        "The concert was moved to {}.",
    ],
    "select": [
        "The invoice is dated {}.",
        "The train strike began on {}.",
        "Please reply before {}.",
        "The storm reached the coast on {}.",
        "My passport expires on {}.",
        "The first issue appeared on {}.",
        "Maria moved to Porto on {}.",
        "The warranty runs until {}.",
        "The vote was held on {}.",
        "The team met for the first time on {}.",
    ],
    "test": [
        "The ship sailed on {}.",
        "The report was published on {}.",
        "Tickets go on sale on {}.",
        "The old mill burned down on {}.",
        "Your appointment is on {} at ten.",
        "The law came into force on {}.",
        "Ben and Ida got married on {}.",
        "The deadline was set for {}.",
        "The satellite was launched on {}.",
        "The exhibition ended on {}.",
    ],
}
SIZES = {"train": 80, "select": 80, "test": 120}


def month_day(day: date) -> str:
    return f"{day:%B} {day.day}, {day.year}"


def day_month(day: date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def ordinal(day: date) -> str:
    return f"{day:%B} {day.day}{_suffix(day.day)}, {day.year}"


def day_of_month(day: date) -> str:
    return f"the {day.day}{_suffix(day.day)} of {day:%B} {day.year}"


def short_month(day: date) -> str:
    return f"{day.day} {day:%b} {day.year}"


def _suffix(n: int) -> str:
    return "th" if 10 < n < 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")


KINDS = (month_day, day_month, ordinal, day_of_month, short_month)


def samples(seed: int = 2) -> list[dict[str, object]]:
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for split, size in SIZES.items():
        seen: set[date] = set()
        while len(seen) < size:
            at = len(seen)
            day = date(rng.randint(1950, 2029), rng.randint(1, 12), rng.randint(1, 28))
            if day in seen:
                continue
            seen.add(day)
            kind, template = KINDS[at % len(KINDS)], rng.randrange(len(TEMPLATES[split]))
            rows.append(
                {
                    "id": f"{split}-{at:03d}",
                    "input": TEMPLATES[split][template].format(kind(day)),
                    "target": day.isoformat(),
                    "group": f"{split}-{template}",
                    "split": split,
                    "metadata": {"kind": kind.__name__},
                }
            )
    return rows


if __name__ == "__main__":
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples())
    Path(__file__).with_name("data.jsonl").write_text("".join(lines), encoding="utf-8")
