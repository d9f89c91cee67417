"""Checks of an audit: from facts about every sample to findings. Pure; `collect_evidence` reads the pixels.

A finding is a defect that users should know before training, and that no clean dataset of the kind has. A check
without enough samples or data is undecided or not applicable, not passed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import combinations
from typing import Any

import numpy as np

from sgdata.audits import duplicates, place_checks
from sgdata.audits.evidence import NEARER, AuditEvidence, FootprintGroup, SampleFacts
from sgdata.audits.findings import SHOWN, AuditReport, CheckResult, State
from sgdata.shards import band_check
from sgdata.splits import shared_ground
from sgdata.splits.shared_ground import Footprint
from sgdata.types import DISPLAY, TASKS

# A 60 m pixel resampled to 10 m reaches 60 m to either side: nearer samples share measurements.
REACH_M = 120.0
SHARED, SAME_PLACE, DISTANCE = "shared pixels", "same place, other date", "distance between splits"
SIDE_BY_SIDE, OVERLAP = "side by side", "overlapping footprints"
# Coordinates and pixel sizes of published datasets are uncertain by up to a fiftieth of a side.
OVERLAP_SHARE = 0.05
# With three expected samples a class is missing from a split by chance in 5 % of cases (Poisson).
EXPECTED = 3.0
# Single samples may show calm water in one band; a band that is constant in 5 % of them is broken.
DEAD_SHARE = 0.05
# Snow, cloud and desert have no dark pixels either, but are rarely a third of a dataset.
RAISED, SUSPECT = 0.3, 0.1
DARK_SHARE = 0.005
SHARED_WINDOWS = 2
CLIPPED_SHARE = 0.05
SATURATED_SHARE = 0.01
UNMAPPED_SHARE = 0.5
LABEL_GAP_DAYS = 365
ORDER_MARGIN = 0.1
VOTES, RARE_VOTES = 0.25, 0.05
# Vegetated pixels needed for a verdict, and the least share of them that is greener than red: real patches have 0.7 to
# 1, one of December 0.35; with the two bands swapped the share is 1 minus that.
LEAVES, RED_LEAVES = 2_000, 0.2
STRETCHED = "values for display have no reflectance"


def run_checks(evidence: AuditEvidence) -> AuditReport:
    """Run every check, in a fixed order.

    Args:
        evidence: The facts of the samples, as returned by `collect_evidence.collect_evidence`.

    Returns:
        The report, with one entry per check and the number of checks with findings.
    """
    checks = (
        check_readable(evidence),
        *check_ground(evidence),
        *check_copies(evidence),
        check_cropped(evidence),
        check_coverage(evidence),
        check_unmapped(evidence),
        check_dead(evidence),
        check_order(evidence),
        check_level(evidence),
        check_offset(evidence),
        check_saturation(evidence),
        check_label_date(evidence),
        *place_checks.check_places(evidence),
    )
    problems = sum(check.state == "finding" for check in checks)
    subject = f"{evidence.contract.dataset} {evidence.contract.version}"
    return AuditReport(
        subject=subject, kind=evidence.kind, samples=len(evidence.facts), checks=checks, findings=problems
    )


def check_readable(evidence: AuditEvidence) -> CheckResult:
    """Report files that cannot be used."""
    message = "; ".join(f"{name}: {reason}" for name, reason in evidence.unread[:3]) or "every sample can be read"
    names = [name for name, _ in evidence.unread]
    return _check("readable", bool(names), message, {"unread": len(names)}, names)


# --- leaks between splits ------------------------------------------------------------------


def check_ground(evidence: AuditEvidence) -> tuple[CheckResult, ...]:
    """Check for shared pixels, the same place on another date, distances between splits, and overlaps in all."""
    names = (SHARED, SAME_PLACE, DISTANCE, SIDE_BY_SIDE)
    placed = {split: _places(facts) for split, facts in evidence.splits.items()}
    if not all(placed.values()):
        return tuple(_check(name, "undecided", "not every split has coordinates") for name in (*names, OVERLAP))
    overlap = _check_overlap(placed)
    if len(placed) < 2:
        return (*(_check(name, "not applicable", "there is one split only") for name in names), overlap)
    keys: dict[str, set[str]] = {name: set() for name in names}
    distances: dict[str, dict[str, float]] = {}
    beside: dict[str, float] = {}
    for (one, first), (other, second) in combinations(placed.items(), 2):
        near = shared_ground.compare(_columns(first), _columns(second))
        for i, j in near.shared.tolist():
            keys[SHARED if _same_day(first[i].date, second[j].date) else SAME_PLACE].update(second[j].keys)
        for j in np.flatnonzero(near.nearest_m < REACH_M).tolist():
            keys[DISTANCE].update(second[j].keys)
        touching = shared_ground.find_side_by_side(_columns(first), _columns(second))
        neighbours = {key for j in np.flatnonzero(touching).tolist() for key in second[j].keys}
        keys[SIDE_BY_SIDE] |= neighbours
        beside[f"{one} to {other}"] = round(len(neighbours) / sum(len(group.keys) for group in second), 4)
        least, middle = float(near.nearest_m.min()), float(np.median(near.nearest_m))
        distances[f"{one} to {other}"] = {"nearest_m": round(least, 1), "median_m": round(middle, 1)}
    message = f"samples are within {REACH_M:.0f} m of another split, as far as a resampled 60 m pixel reaches"
    return (
        _found(
            SHARED,
            sorted(keys[SHARED]),
            "samples share ground, of the same day or of unknown ones, with another split",
            {},
        ),
        _found(SAME_PLACE, sorted(keys[SAME_PLACE]), "samples show ground that another split shows on another day", {}),
        _found(DISTANCE, sorted(keys[DISTANCE]), message, distances),
        _found(
            SIDE_BY_SIDE,
            sorted(keys[SIDE_BY_SIDE]),
            f"samples lie side by side with one of another split: {_shares(beside)}",
            {"shares": beside},
        ),
        overlap,
    )


def _shares(beside: dict[str, float]) -> str:
    return ", ".join(f"{share:.1%} from {pair}" for pair, share in beside.items())


def _check_overlap(placed: dict[str, list[FootprintGroup]]) -> CheckResult:
    """Check for samples of the whole dataset whose footprints overlap; within a split that is a remark."""
    groups = [(split, group) for split, several in placed.items() for group in several]
    first = {group.footprint: at for at, (_, group) in reversed(list(enumerate(groups)))}
    distinct = [groups[at][1] for at in sorted(first.values())]
    splits: dict[Footprint, set[str]] = defaultdict(set)
    keys: dict[Footprint, list[str]] = defaultdict(list)
    for split, group in groups:
        splits[group.footprint].add(split)
        keys[group.footprint] += group.keys
    pairs = shared_ground.find_overlaps(_columns(distinct), OVERLAP_SHARE)
    both = [(distinct[i].footprint, distinct[j].footprint) for i, j in pairs.tolist()]
    across = [pair for pair in both if len(splits[pair[0]] | splits[pair[1]]) > 1]
    samples = {key for footprint in {each for pair in both for each in pair} for key in keys[footprint]}
    message = (
        f"{len(both)} pairs of footprints share more than {OVERLAP_SHARE:.0%} of their ground "
        f"({len(samples)} samples), {len(across)} pairs across splits"
    )
    figures = {"pairs": len(both), "samples": len(samples), "pairs_across_splits": len(across)}
    return _check(OVERLAP, bool(across), message, figures, sorted(key for pair in across for key in keys[pair[1]]))


def _same_day(one: str | None, other: str | None) -> bool:
    # Unknown dates count as the same, the worse case.
    return one == other or one is None or other is None


def _columns(groups: Sequence[FootprintGroup]) -> shared_ground.Footprints:
    return shared_ground.to_columns([group.footprint for group in groups])


def _places(facts: Iterable[SampleFacts]) -> list[FootprintGroup]:
    """Group samples by footprint and date, so that a place with a hundred samples is compared once."""
    keys: dict[tuple[Footprint, str | None], list[str]] = defaultdict(list)
    for each in facts:
        if each.footprint:
            keys[each.footprint, each.date].append(each.key)
    return [
        FootprintGroup(footprint=footprint, date=date, keys=tuple(names)) for (footprint, date), names in keys.items()
    ]


def check_copies(evidence: AuditEvidence) -> tuple[CheckResult, ...]:
    """Check for samples with equal pixels, with rotated or mirrored pixels, and with nearly equal ones."""
    exact, turned = defaultdict(list), defaultdict(list)
    for facts in evidence.facts:
        exact[facts.pixels].append(facts)
        turned[facts.turned].append(facts)
    # One sample per group, or a thousand copies would make half a million pairs.
    distinct = [group[0] for group in turned.values() if group[0].thumbnail]
    pairs: list[tuple[int, int]] = []
    if len(distinct) > 1:
        thumbnails = np.array([np.frombuffer(facts.thumbnail, np.int8) for facts in distinct])
        pairs = duplicates.find_alike(thumbnails.reshape(len(distinct), -1, duplicates.CELLS, duplicates.CELLS))
    return (
        _copied("exact duplicates", [group for group in exact.values() if len(group) > 1]),
        # Without copies that are not rotated, which are reported above.
        _copied("turned copies", [group for group in turned.values() if len({f.pixels for f in group}) > 1]),
        _copied("near duplicates", [[distinct[i], distinct[j]] for i, j in pairs]),
    )


def check_cropped(evidence: AuditEvidence) -> CheckResult:
    """Check for samples of two splits that share pixels at other positions or rotated."""
    facts, shared = evidence.facts, Counter[tuple[int, int]]()
    owners = np.repeat(np.arange(len(facts)), [len(each.window_hashes) // 8 for each in facts])
    values = np.frombuffer(b"".join(each.window_hashes for each in facts), np.uint64)
    _, mark, count = np.unique(values, return_inverse=True, return_counts=True)
    again = np.flatnonzero(count[mark] > 1)
    again = again[np.argsort(mark[again], kind="stable")]
    for group in np.split(owners[again], np.flatnonzero(np.diff(mark[again])) + 1):
        for i, j in combinations(group.tolist(), 2):
            # Overlaps within a split are intended, and complete copies are reported above.
            if facts[i].split != facts[j].split and facts[i].turned != facts[j].turned:
                shared[i, j] += 1
    return _copied(
        "cropped copies", [[facts[i], facts[j]] for (i, j), n in sorted(shared.items()) if n >= SHARED_WINDOWS]
    )


def _copied(name: str, groups: Sequence[Sequence[SampleFacts]]) -> CheckResult:
    across = [group for group in groups if len({facts.split for facts in group}) > 1]
    # Those across splits first.
    keys = dict.fromkeys(facts.key for group in (*across, *groups) for facts in group)
    figures = {"groups": len(groups), "groups_across_splits": len(across)}
    return _found(name, list(keys), f"samples in {len(groups)} groups, {len(across)} of them across splits", figures)


# --- labels --------------------------------------------------------------------------------


def check_coverage(evidence: AuditEvidence) -> CheckResult:
    """Check for classes that a split lacks although its number of samples should contain some."""
    name, space = "class coverage", evidence.contract.label_space
    splits = evidence.splits
    # Samples with a class, by split.
    counts = {split: Counter(label for each in facts for label in each.classes) for split, facts in splits.items()}
    if len(splits) < 2 or not any(labels.keys() - {space.ignore} for labels in counts.values()):
        return _check(name, "not applicable", "there is one split only, or there are no labels")
    missing: list[str] = []
    rare: list[str] = []
    for label, title in zip(space.ids, space.names, strict=True):
        share = sum(counts[split][label] for split in splits) / len(evidence.facts)
        for split, facts in splits.items():
            if share and not counts[split][label]:
                expected = share * len(facts)
                (missing if expected >= EXPECTED else rare).append(f"{title} from {split}")
    message = f"missing: {', '.join(missing) or 'none'}"
    if rare:
        message += f"; too rare to decide: {', '.join(rare)}"
    titles = dict(zip(space.ids, space.names, strict=True))
    figures = {split: {titles[n]: labels[n] for n in space.ids if n in titles} for split, labels in counts.items()}
    return _check(name, bool(missing), message, figures)


def check_unmapped(evidence: AuditEvidence) -> CheckResult:
    """Check the share of pixels with the label to ignore."""
    name, ignore = "unmapped share", evidence.contract.label_space.ignore
    if ignore is None or TASKS[evidence.contract.label_space.task].answer != "pixel":
        return _check(name, "not applicable", "labels of these samples are complete by their kind")
    shares = {}
    for split, facts in evidence.splits.items():
        total = sum(sum(f.classes.values()) for f in facts)
        shares[split] = round(sum(f.classes.get(ignore, 0) for f in facts) / max(total, 1), 4)
    worst = max(shares.values(), default=0.0)
    empty = [f.key for f in evidence.facts if set(f.classes) == {ignore}]
    message = f"up to {worst:.1%} of the pixels of a split are not mapped, {len(empty)} samples wholly"
    return _check(name, worst > UNMAPPED_SHARE, message, shares | {"samples": len(empty)}, empty)


def check_label_date(evidence: AuditEvidence) -> CheckResult:
    """Check the time between labels and images."""
    name, days = "label date", evidence.days
    if days is None:
        return _check(name, "not applicable", "there is no lock with the days of images and labels")
    first, last, labels = (date.fromisoformat(text) for text in (days.first, days.last, days.labels))
    gap = max((first - labels).days, (labels - last).days, 0)
    message = f"labels of {labels}, images of {first} to {last}: {gap} days apart"
    return _check(name, gap > LABEL_GAP_DAYS, message, {"days": gap})


# --- pixels --------------------------------------------------------------------------------


def check_dead(evidence: AuditEvidence) -> CheckResult:
    """Check for constant bands and for bands that repeat another."""
    totals, names = evidence.totals, [band.name for band in evidence.contract.bands]
    flat = Counter(name for facts in evidence.facts for name in facts.dead)
    broken = {name: n for name, n in flat.items() if n > DEAD_SHARE * len(evidence.facts)}
    messages = [f"{name} has one value in {n} samples" for name, n in sorted(broken.items())]
    # Sums over a million values do not agree by chance.
    sums = np.stack([totals.count, totals.total, totals.equal, totals.low, totals.high])
    for i, j in combinations(range(len(names)), 2):
        if (sums[:, i] == sums[:, j]).all() and totals.low[i] < totals.high[i]:
            messages.append(f"{names[i]} and {names[j]} are the same")
    where = [facts.key for facts in evidence.facts if set(facts.dead) & set(broken)]
    figures = {"samples_by_band": dict(sorted(flat.items()))}
    return _check("dead bands", bool(messages), "; ".join(messages) or "every band varies", figures, where)


def check_order(evidence: AuditEvidence) -> CheckResult:
    """Check for swapped bands.

    By their means, by the resolution of their pixels if 20 m bands were upsampled by repetition, by the colour of
    vegetation, and by the correlation between bands.
    """
    if evidence.contract.level == DISPLAY:
        return _check("band order", "not applicable", STRETCHED)
    means, bands = _means(evidence), evidence.contract.bands
    messages = []
    equal = evidence.totals.equal / np.maximum(evidence.totals.pairs, 1)
    if "nearest" in evidence.contract.resampling and len({band.gsd_m for band in bands}) > 1:
        fine = max(((equal[i], band.name) for i, band in enumerate(bands) if band.gsd_m == 10), default=(0.0, ""))
        coarse = min(((equal[i], band.name) for i, band in enumerate(bands) if band.gsd_m > 10), default=(1.0, ""))
        # Repeated pixels equal a neighbour at least half of the time, measured ones rarely.
        if fine[0] > coarse[0] + ORDER_MARGIN:
            messages.append(f"{fine[1]} is coarser ({fine[0]:.2f} equal neighbours) than {coarse[1]} ({coarse[0]:.2f})")
    leaves, green = evidence.totals.leaves.tolist()
    # The means of green and red decide nothing, since haze and soil reverse them; chlorophyll absorbs red everywhere.
    if len(evidence.facts) >= band_check.LEAST_SAMPLES and leaves >= LEAVES and green < RED_LEAVES * leaves:
        messages.append(f"leaves are redder (B04) than green (B03) in {1 - green / leaves:.0%} of their pixels")
    messages += _misplaced_bands(evidence, bluer=means.get("B02", 0.0) > means.get("B04", 0.0))
    figures = {band.name: {"mean": round(means.get(band.name, 0.0), 1), "equal_neighbours": round(float(e), 4)}
               for band, e in zip(bands, equal, strict=True)}  # fmt: skip
    return _pooled("band order", "bands", evidence, band_check.bands(means), figures, messages)


def _misplaced_bands(evidence: AuditEvidence, *, bluer: bool) -> Iterator[str]:
    """Yield the triples of NEARER whose second band correlates more with the third than the first does."""
    for at, (band, other, third) in enumerate(NEARER):
        votes = [facts.nearer[at] for facts in evidence.facts if facts.nearer[at] is not None]
        share = votes.count(True) / max(len(votes), 1)
        # Pasture under haze votes for blue too, but its surface reflectance is not higher in blue than in red; top of
        # atmosphere (L1C) is.
        least = VOTES if band == "B8A" or (bluer and evidence.contract.level == "L2A") else RARE_VOTES
        if len(votes) >= band_check.LEAST_SAMPLES and share < least:
            yield f"{other} goes with {third} closer than {band} in {1 - share:.0%} of the samples"


def check_level(evidence: AuditEvidence) -> CheckResult:
    """Check the product level (top of atmosphere or surface) by the water vapour absorption in B09."""
    declared = evidence.contract.level
    if declared == DISPLAY:
        return _check("product level", "not applicable", STRETCHED)
    verdict = band_check.level(_means(evidence), declared)
    return _pooled("product level", "level", evidence, verdict, {"declared": declared})


def check_offset(evidence: AuditEvidence) -> CheckResult:
    """Check whether the +1000 of newer processing baselines was left in or subtracted twice."""
    if evidence.contract.level == DISPLAY:
        return _check("offset", "not applicable", STRETCHED)
    raised = [facts.key for facts in evidence.facts if facts.dark < DARK_SHARE]
    share = len(raised) / max(len(evidence.facts), 1)
    ones = float((evidence.totals.ones / np.maximum(evidence.totals.count, 1)).max(initial=0))
    message = f"{share:.1%} of the samples have no pixel under reflectance 0.1 in any band; {ones:.1%} of a band is 1"
    state: State | bool = share > RAISED or ones > CLIPPED_SHARE
    if len(evidence.facts) < band_check.LEAST_SAMPLES or (not state and share > SUSPECT):
        state = "undecided"
    figures = {"raised_share": round(share, 4), "clipped_share": round(ones, 4)}
    return _check("offset", state, message, figures, raised if state is True else ())


def check_saturation(evidence: AuditEvidence) -> CheckResult:
    """Check for saturated values."""
    shares = evidence.totals.saturated / np.maximum(evidence.totals.count, 1)
    names = [band.name for band in evidence.contract.bands]
    worst = int(shares.argmax())
    message = f"{shares[worst]:.2%} of {names[worst]} is saturated, the most of any band"
    figures = {name: round(float(share), 6) for name, share in zip(names, shares, strict=True)}
    return _check("saturation", bool(shares[worst] > SATURATED_SHARE), message, figures)


def _means(evidence: AuditEvidence) -> dict[str, float]:
    """Return the mean reflectance x 10000 of each band that has values."""
    contract, totals = evidence.contract, evidence.totals
    sums = zip(contract.bands, totals.count.tolist(), totals.total.tolist(), strict=True)
    return {band.name: (s / n + contract.offset) * contract.scale / 1e-4 for band, n, s in sums if n}


def _pooled(
    name: str, what: str, evidence: AuditEvidence, verdict: str, figures: dict[str, Any], messages: Sequence[str] = ()
) -> CheckResult:
    """Combine the messages with the verdict on the means, if there are enough samples for means."""
    few = len(evidence.facts) < band_check.LEAST_SAMPLES
    problems = [*messages, *([] if few or verdict in ("as named", "undecided") else [verdict])]
    why = (
        f"{len(evidence.facts)} samples, fewer than the {band_check.LEAST_SAMPLES} that a mean needs"
        if few
        else verdict
    )
    state: State | bool = bool(problems) or ("undecided" if few or verdict == "undecided" else False)
    return _check(name, state, f"{what}: {'; '.join(problems) or why}", figures)


def _found(name: str, keys: Sequence[str], message: str, figures: dict[str, Any]) -> CheckResult:
    """Create a check that counts samples; one or more is a finding."""
    return _check(name, bool(keys), f"{len(keys)} {message}", {"samples": len(keys), **figures}, keys)


def _check(
    name: str, state: State | bool, message: str, figures: dict[str, Any] | None = None, where: Sequence[str] = ()
) -> CheckResult:
    """Create a check; `state` may also be whether there is a finding."""
    words: State = state if isinstance(state, str) else "finding" if state else "pass"
    return CheckResult(name=name, state=words, message=message, figures=figures or {}, where=tuple(where[:SHOWN]))
