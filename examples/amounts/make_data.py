"""Write data.jsonl: sentences that mention one amount of money, and that amount as a plain number.

Each split has sentence templates of its own (the `group`), so that the certificate is about sentences never seen.
"""

import json
import random
from pathlib import Path

TEMPLATES = {
    "train": [
        "We paid {} for the tickets.",
        "The repair cost {} in the end.",
        "She still owes him {} from last week.",
        "Tom sold his old bike for {}.",
        "A night at the hotel is {} per person.",
        "The waiter got a tip of {}.",
        "They raised {} for the new roof.",
        "I found {} in my coat pocket.",
        "The library asked for a fine of {}.",
        "My aunt sent me {} for my birthday.",
    ],
    "select": [
        "The bill came to {} with tax.",
        "He lent his brother {} until Friday.",
        "Lunch was {} for the two of us.",
        "The lamp is on sale for {} today.",
        "Our club charges {} a month.",
        "The taxi to the airport was {} this time.",
        "Anna saved {} over the summer.",
        "The deposit for the flat is {} now.",
        "You get {} back when you return the bottle crate.",
        "The museum takes {} at the door.",
    ],
    "test": [
        "The plumber asked for {} in cash.",
        "I bought the whole set for {} online.",
        "Her new glasses were {} after the discount.",
        "Parking here is {} a day.",
        "The school spent {} on paint.",
        "He won {} at the fair.",
        "Please send {} to the landlord.",
        "The farmer wants {} for the hay.",
        "That jacket was marked down to {} yesterday.",
        "We split the fuel and each gave {} to Sam.",
    ],
}
SIZES = {"train": 80, "select": 80, "test": 120}

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def words(n: int) -> str:
    """`n` below 100 in English words."""
    if n < 20:
        return ONES.split()[n]
    return TENS.split()[n // 10 - 2] + (f"-{ONES.split()[n % 10]}" if n % 10 else "")


def round_symbol(rng: random.Random) -> tuple[str, float]:
    n = rng.randint(2, 999)
    return f"${n}", n


def digits(rng: random.Random) -> tuple[str, float]:
    n = rng.randint(2, 999)
    return f"{n} dollars", n


def in_words(rng: random.Random) -> tuple[str, float]:
    n = rng.choice((rng.randint(2, 20), rng.randint(21, 99)))
    return f"{words(n)} dollars", n


def digits_and_cents(rng: random.Random) -> tuple[str, float]:
    n, cents = rng.randint(2, 99), rng.choice(range(10, 100, 5))
    return f"{n} dollars and {cents} cents", n + cents / 100


KINDS = {round_symbol: 2, digits: 3, in_words: 4, digits_and_cents: 1}


def samples(seed: int = 1) -> list[dict[str, object]]:
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]
    for split, size in SIZES.items():
        seen: set[float] = set()
        while len(seen) < size:
            at = len(seen)
            text, value = kinds[at % len(kinds)](rng)
            if value in seen:
                continue
            seen.add(value)
            template = rng.randrange(len(TEMPLATES[split]))
            rows.append(
                {
                    "id": f"{split}-{at:03d}",
                    "input": TEMPLATES[split][template].format(text),
                    "target": f"{value:.2f}",
                    "group": f"{split}-{template}",
                    "split": split,
                    "metadata": {"kind": kinds[at % len(kinds)].__name__},
                }
            )
    return rows


if __name__ == "__main__":
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples())
    Path(__file__).with_name("data.jsonl").write_text("".join(lines), encoding="utf-8")
