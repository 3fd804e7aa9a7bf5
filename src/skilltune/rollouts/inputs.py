"""The inputs of a run, written down once. With them, all rollouts of a run are found without its target or samples.

The journal's keys are hashes, and these are the parts that they hash. From the journal alone, a verdict can be
recomputed, and the rollouts of this run can be told from rollouts that a fork copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    """Journal the inputs of a run once. `samples` must not contain `test`, which is read later."""

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
    """Journal the inputs of the split `test`, when it is read."""
    samples = list(test)
    keep_samples(run, samples, KEPT[1])
    run.decide(TEST, lambda: {sample.id: roll.content(sample) for sample in samples})
    tied = {sample.id: sample.group for sample in samples if sample.group is not None}
    run.decide(f"{TEST} groups", lambda: tied)


def keep_samples(run: Run, samples: Iterable[Sample], name: str = KEPT[0]) -> None:
    """Store samples unchanged, so that decisions can be replayed after a sample was removed from the file."""
    run.put_blob(name, json.dumps({sample.id: sample.model_dump(mode="json") for sample in samples}).encode())


def kept_sample(run: Run, sample: str) -> Sample | None:
    """A stored sample, or None if the run has not used it."""
    for name in KEPT:
        known = json.loads(run.blob(name) or "{}")
        if sample in known:
            return Sample.model_validate(known[sample])
    return None


def content_of(sample: Sample) -> str:
    """Hash of everything that the sample file states about a sample."""
    return digest(sample.model_dump(mode="json"))


def drop(run: Run, sample: str) -> None:
    """Take a sample out of a run for good, without changing past decisions.

    Before the first decision, the sample leaves all splits. Later it leaves only `test`, and only while nobody has read
    `test`. Otherwise it stays in its split: its rollouts are replayed, and no new ones are made. So dropping a sample
    cannot improve a certificate that somebody has seen.
    """
    if sample in dropped(run):
        return
    out_of: Sequence[str] = SPLITS
    if run.events("start"):
        out_of = [] if run.events("certify") else ["test"]
    run.record(DROPPED, sample=sample, out_of=list(out_of))


def dropped(run: Run) -> dict[str, Sequence[str]]:
    """The dropped samples, each with the splits that it left."""
    found: dict[str, Sequence[str]] = {}
    for _, _, event in run.events(DROPPED):
        found.setdefault(event["sample"], event["out_of"])
    return found


def split_ids(run: Run) -> dict[str, list[str]] | None:
    """Sample ids by split, without dropped samples. None before the samples are split."""
    known = run.recall("split")
    if known is None:
        return None
    left = dropped(run)
    return {name: [id for id in ids if name not in left.get(id, ())] for name, ids in known[0].items()}


def pinned_contents(run: Run, samples: Collection[str] | None = None) -> dict[str, str]:
    """Content hashes of samples (None: of all), as used in the keys of their rollouts. Samples without one are
    missing."""
    known, test = run.recall(KEY), run.recall(TEST)
    contents = (known[0]["contents"] if known else {}) | (test[0] if test else {})
    return contents if samples is None else {sample: contents[sample] for sample in samples if sample in contents}


@dataclass(frozen=True, slots=True)
class Pins:
    """The inputs of a run: input skill, fingerprints of target and env, content hash and group of each sample."""

    skill: Skill
    target: str
    env: str
    looks_back: bool
    contents: Mapping[str, str]
    groups: Mapping[str, str]

    @classmethod
    def of(cls, run: Run) -> Pins:
        """Read them from the journal. Raises `RunError` if the journal does not hold them."""
        known, test = run.recall(KEY), run.recall(TEST)
        if known is None:
            raise RunError(
                f"the journal in {run.folder} does not hold the run's inputs: the run has not begun, or an older "
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
        """Every rollout of this run in its journal, without those that a fork copied from another target or scorer."""
        for key, value, _ in run.each_memo("rollout"):
            content = self.contents.get(value["sample"])
            if content and key == rollout_key(self.target, value["skill"], content, self.env, value["attempt"]):
                yield rollout_from_json(value)


def own_keys(run: Run) -> Callable[[str, str, str, int], bool]:
    """A test of (key, skill hash, sample id, attempt): False if the rollout with that key was copied by a fork from
    another target or scorer. True for all if the journal does not hold the run's inputs."""
    known = run.recall(KEY)
    if known is None:
        return lambda key, skill, sample, attempt: True
    target, env, contents = known[0]["target"], known[0]["env"], pinned_contents(run)

    def is_own(key: str, skill: str, sample: str, attempt: int) -> bool:
        content = contents.get(sample)
        return content is not None and key == rollout_key(target, skill, content, env, attempt)

    return is_own


def _kept(run: Run, hash: str) -> bytes:
    data = run.blob(hash)
    if data is None:
        raise RunError(f"the journal in {run.folder} no longer holds the text or file {hash}")
    return data


def require_unchanged(run: Run, name: str, what: str, fingerprint: str) -> None:
    """Raise `RunError` if an input differs from the one that the run's decisions were based on."""
    if run.decide(f"input {name}", lambda: fingerprint) != fingerprint:
        raise RunError(
            f"{what} changed since the run in {run.folder} was started: restore the old content to resume it, "
            "`--fork` to start a new run that reuses every rollout that still applies, or `--run DIR` for a fresh one."
        )
