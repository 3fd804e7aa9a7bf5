"""Write data.jsonl: a sentence and a question about it, answered as `ANSWER: x`.

The answer always stands in the sentence, so a small model can find it; what a skill has to teach is the form. Each
split has templates of its own (the `group`), so that the certificate is about kinds of question never seen.
"""

import json
import random
from pathlib import Path

WORDS = {
    "name": "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tina Walter",
    "city": "Porto Rome Lyon Oslo Boston Dublin Vienna Madrid Kyoto Athens Bergen Zurich Chicago Geneva Naples Seville",
    "color": "red blue green yellow black white brown orange purple gray pink",
    "thing": "bike lamp chair coat boat house door cup box car hat table bag kite tent",
    "food": "soup rice bread cheese cake salad pasta fish pizza eggs apples beans",
    "animal": "dog cat horse rabbit parrot goat turtle hamster pony duck",
    "job": "baker nurse teacher pilot farmer painter plumber lawyer dentist barber singer tailor",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "number": "3 4 5 6 7 8 9 10 11 12 15 20 25 30 45",
}
# sentence, question, which of the blanks is the answer
TEMPLATES = {
    "train": [
        ("{name} lives in {city}.", "Where does {name} live?", "city"),
        ("The {thing} of {name} is {color}.", "What color is the {thing}?", "color"),
        ("{name} ate {food} on {day}.", "What did {name} eat?", "food"),
        ("{name} is a {job} in {city}.", "What is the job of {name}?", "job"),
        ("{name} has {number} books and a {animal}.", "How many books does {name} have?", "number"),
        ("The {animal} belongs to {name}.", "Who owns the {animal}?", "name"),
        ("The shop in {city} is closed on {day}.", "On which day is the shop closed?", "day"),
        ("{name} painted the {thing} {color}.", "Who painted the {thing}?", "name"),
    ],
    "select": [
        ("{name} moved to {city} in spring.", "To which city did {name} move?", "city"),
        ("{name} bought a {color} {thing}.", "What color is the {thing}?", "color"),
        ("{name} cooked {food} for the guests.", "What did {name} cook?", "food"),
        ("{name} works as a {job}.", "What does {name} work as?", "job"),
        ("There are {number} chairs in the room of {name}.", "How many chairs are there?", "number"),
        ("{name} feeds the {animal} every morning.", "Who feeds the {animal}?", "name"),
        ("The train to {city} leaves on {day}.", "When does the train leave?", "day"),
        ("{name} keeps a {animal} in the garden.", "Which animal does {name} keep?", "animal"),
    ],
    "test": [
        ("{name} was born in {city}.", "Where was {name} born?", "city"),
        ("The {color} {thing} stands outside.", "What color is the {thing}?", "color"),
        ("{name} ordered {food} for lunch.", "What did {name} order?", "food"),
        ("{name} wants to become a {job}.", "What does {name} want to become?", "job"),
        ("{name} waited {number} minutes for the bus.", "How many minutes did {name} wait?", "number"),
        ("{name} walks the {animal} at night.", "Who walks the {animal}?", "name"),
        ("The market in {city} is held on {day}.", "On which day is the market?", "day"),
        ("{name} found a {animal} in the barn.", "What did {name} find?", "animal"),
    ],
}
SIZES = {"train": 80, "select": 80, "test": 120}


def samples(seed: int = 3) -> list[dict[str, object]]:
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for split, size in SIZES.items():
        seen: set[str] = set()
        while len(seen) < size:
            at = len(seen)
            template = at % len(TEMPLATES[split])
            sentence, question, answer = TEMPLATES[split][template]
            words = {kind: rng.choice(choices.split()) for kind, choices in WORDS.items()}
            text = f"{sentence} {question}".format(**words)
            if text in seen:
                continue
            seen.add(text)
            rows.append(
                {
                    "id": f"{split}-{at:03d}",
                    "input": text,
                    "target": f"ANSWER: {words[answer]}",
                    "group": f"{split}-{template}",
                    "split": split,
                    "metadata": {"kind": answer},
                }
            )
    return rows


if __name__ == "__main__":
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in samples())
    Path(__file__).with_name("data.jsonl").write_text("".join(lines), encoding="utf-8")
