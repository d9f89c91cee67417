"""Compare the places of a dataset: their classes, and how bright they are. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from sgdata.audits.evidence import AuditEvidence, SampleFacts
from sgdata.audits.findings import SHOWN, CheckResult, State

NAME = "places"
LEAST_SHARE = 0.01
"""Share of the pixels of a place from which its class must be in the training samples."""
BRIGHTER = 0.08
"""Difference of mean reflectance from the other places that an offset of 0.1 causes, and seasons and ground do not."""


def check_places(evidence: AuditEvidence) -> tuple[CheckResult, ...]:
    """Compare places with each other; nothing for samples of fewer than two places.

    It is a finding if a place that is held out has a class that no training sample has, or if a place is as much
    brighter or darker than the others as one with a wrong offset.
    """
    places: dict[str, list[SampleFacts]] = defaultdict(list)
    for facts in evidence.facts:
        if facts.place:
            places[facts.place].append(facts)
    if len(places) < 2:
        return ()
    shares = {place: _shares(evidence, facts) for place, facts in sorted(places.items())}
    brightness = {
        place: float(np.mean([facts.brightness for facts in places[place]])) * evidence.contract.scale
        for place in sorted(places)
    }
    untrained = _untrained(places, shares)
    odd = _odd(brightness)
    figures = {
        "places": {
            place: {
                "samples": len(places[place]),
                "splits": dict(sorted(Counter(facts.split for facts in places[place]).items())),
                "reflectance": round(brightness[place], 4),
                "classes": {str(label): round(share, 4) for label, share in sorted(shares[place].items())},
            }
            for place in shares
        }
    }
    texts = [f"{place} has class {name}, which no training sample has" for place, name in untrained]
    texts += [f"mean reflectance of {place} is {brightness[place]:.3f}: check its offsets" for place in odd]
    names = {place for place, _ in untrained} | set(odd)
    keys = tuple(facts.key for place in sorted(names) for facts in places[place])[:SHOWN]
    state: State = "finding" if texts else "pass"
    message = "; ".join(texts) or _describe(shares)
    return (CheckResult(name=NAME, state=state, message=message, figures=figures, where=keys),)


def _shares(evidence: AuditEvidence, facts: list[SampleFacts]) -> dict[int, float]:
    """Return the share of each class among the labelled pixels, or labels, of samples."""
    counts: Counter[int] = Counter()
    for each in facts:
        counts.update(each.classes)
    labelled = {label: count for label, count in counts.items() if label in evidence.contract.label_space.ids and count}
    return {label: count / sum(labelled.values()) for label, count in labelled.items()}


def _untrained(places: dict[str, list[SampleFacts]], shares: dict[str, dict[int, float]]) -> list[tuple[str, int]]:
    """Return held-out places with a class that is in no training sample."""
    trained = {label for facts in places.values() for one in facts if one.split == "train" for label in one.classes}
    held_out = [place for place, facts in sorted(places.items()) if not any(one.split == "train" for one in facts)]
    if not trained:
        return []
    return [
        (place, label)
        for place in held_out
        for label, share in sorted(shares[place].items())
        if share >= LEAST_SHARE and label not in trained
    ]


def _odd(brightness: dict[str, float]) -> list[str]:
    """Return places whose mean reflectance differs from the median of the others."""
    return [
        place
        for place, value in brightness.items()
        if abs(value - float(np.median([other for name, other in brightness.items() if name != place]))) > BRIGHTER
        and len(brightness) > 2
    ]


def _describe(shares: dict[str, dict[int, float]]) -> str:
    """Return which place differs most from the mean of all in its classes."""
    labels = sorted({label for one in shares.values() for label in one})
    table = np.array([[one.get(label, 0.0) for label in labels] for one in shares.values()])
    apart = np.abs(table - table.mean(axis=0)).sum(axis=1) / 2 if table.size else np.zeros(len(shares))
    most = int(apart.argmax())
    return f"{len(shares)} places; {list(shares)[most]} differs most in its classes, by {apart[most]:.0%} of the pixels"
