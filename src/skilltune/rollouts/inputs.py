"""What a run was made of, written down once: enough to find all of its evidence again with neither target nor samples.

The journal's keys are hashes. These are the parts that they are made of, so that a verdict can be recomputed, and the
rollouts of this run told from those that a fork brought along, from the journal alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from skilltune.errors import RunError
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.rollout import Rollout, rollout_from_json
from skilltune.rollouts.roller import Roller, rollout_key
from skilltune.samples import SPLITS, Sample
from skilltune.skill import Skill

KEY, TEST = "pins", "pins of test"
CONTENTS = "sample contents"
KEPT = "samples", "samples of test"  # names of blobs
DROPPED = "dropped"  # event: a sample was taken out of the run


def pin(run: Run, skill: Skill, roll: Roller, looks_back: bool, samples: Iterable[Sample]) -> None:
    """Write down the parts of a run, once; `samples` without those of `test`, which are not read before their time."""

    def parts() -> dict[str, Any]:
        known = list(samples)
        run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        files = {name: sha256(data).hexdigest() for name, data in skill.files.items()}
        for name, data in skill.files.items():
            run.put_blob(files[name], data)
        return {
            "skill": {"hash": skill.hash, "name": skill.name, "folder": skill.folder, "files": files},
            "target": roll.target.fingerprint,
            "env": roll.env.fingerprint,
            "looks_back": looks_back,
            "contents": {sample.id: roll.content(sample) for sample in known},
            "groups": {sample.id: sample.group for sample in known if sample.group is not None},
        }

    run.decide(KEY, parts)


def pin_test(run: Run, roll: Roller, test: Iterable[Sample]) -> None:
    """The same of the samples of `test`, when they are read."""
    samples = list(test)
    keep_samples(run, samples, KEPT[1])
    run.decide(TEST, lambda: {sample.id: roll.content(sample) for sample in samples})
    tied = {sample.id: sample.group for sample in samples if sample.group is not None}
    run.decide(f"{TEST} groups", lambda: tied)


def keep_samples(run: Run, samples: Iterable[Sample], name: str = KEPT[0]) -> None:
    """Keep samples as they are: what was decided on one can be replayed after it was dropped from the file."""
    run.put_blob(name, json.dumps({sample.id: sample.model_dump(mode="json") for sample in samples}).encode())


def kept_sample(run: Run, sample: str) -> Sample | None:
    """A sample as it was kept; None for one that the run has not used."""
    for name in KEPT:
        known = json.loads(run.blob(name) or "{}")
        if sample in known:
            return Sample.model_validate(known[sample])
    return None


def content_of(sample: Sample) -> str:
    """Hash of all that the sample file says of a sample."""
    return digest(sample.model_dump(mode="json"))


def drop(run: Run, sample: str) -> None:
    """Take a sample out of a run for good, without a change to what was decided.

    Before the first decision it leaves all splits, later the split `test` while nobody has read it. Otherwise it stays
    where it is: its rollouts are replayed, and no new one is made. So no drop can improve a certificate that was seen.
    """
    if sample in dropped(run):
        return
    out_of: Sequence[str] = SPLITS
    if run.events("start"):
        out_of = [] if run.events("certify") else ["test"]
    run.record(DROPPED, sample=sample, out_of=list(out_of))


def dropped(run: Run) -> dict[str, Sequence[str]]:
    """The samples that were dropped, each with the splits that it left."""
    found: dict[str, Sequence[str]] = {}
    for _, _, event in run.events(DROPPED):
        found.setdefault(event["sample"], event["out_of"])
    return found


def split_ids(run: Run) -> dict[str, list[str]] | None:
    """The ids of the samples of each split, without those that were taken out of it; None before the split."""
    known = run.recall("split")
    if known is None:
        return None
    left = dropped(run)
    return {name: [id for id in ids if name not in left.get(id, ())] for name, ids in known[0].items()}


def pinned_contents(run: Run, samples: Collection[str]) -> dict[str, str]:
    """The hashes in the keys of the rollouts of some samples, as far as they were written down."""
    known, test = run.recall(KEY), run.recall(TEST)
    contents = (known[0]["contents"] if known else {}) | (test[0] if test else {})
    return {sample: contents[sample] for sample in samples if sample in contents}


@dataclass(frozen=True, slots=True)
class Pins:
    """The parts of a run: the input skill, the fingerprints of target and env, hash and group of each sample."""

    skill: Skill
    target: str
    env: str
    looks_back: bool
    contents: Mapping[str, str]
    groups: Mapping[str, str]

    @classmethod
    def of(cls, run: Run) -> Pins:
        """As the journal holds them. Raises `RunError` for a journal that does not."""
        known, test = run.recall(KEY), run.recall(TEST)
        if known is None:
            raise RunError(
                f"the journal in {run.folder} does not say what the run was made of: it has not begun, or an older "
                "skilltune wrote it. The same `skilltune train` command completes it."
            )
        parts, tied = known[0], run.recall(f"{TEST} groups")
        with run.reading():
            start = parts["skill"]
            files = {name: _kept(run, hash) for name, hash in start["files"].items()}
            text = _kept(run, start["hash"]).decode("utf-8", "surrogatepass")
            skill = Skill(text, start["name"], files, start["folder"])
            contents = parts["contents"] | (test[0] if test else {})
            groups = parts["groups"] | (tied[0] if tied else {})
            return cls(skill, parts["target"], parts["env"], parts["looks_back"], contents, groups)

    def rollouts(self, run: Run) -> Iterator[Rollout]:
        """Every rollout of this run in its journal; not what a fork brought along from another target or scorer."""
        for key, value, _ in run.each_memo("rollout"):
            content = self.contents.get(value["sample"])
            if content and key == rollout_key(self.target, value["skill"], content, self.env, value["attempt"]):
                yield rollout_from_json(value)


def _kept(run: Run, hash: str) -> bytes:
    data = run.blob(hash)
    if data is None:
        raise RunError(f"the journal in {run.folder} no longer holds the text or file {hash}")
    return data


def require_unchanged(run: Run, name: str, what: str, fingerprint: str) -> None:
    """Refuse to resume over another input than the one that the run's decisions were made on."""
    if run.decide(f"input {name}", lambda: fingerprint) != fingerprint:
        raise RunError(
            f"{what} changed since the run in {run.folder} was started: restore the old content to resume it, "
            "`--fork` to start a new run that reuses every rollout that still applies, or `--run DIR` for a fresh one."
        )
