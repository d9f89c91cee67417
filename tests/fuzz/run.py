"""Fuzz all readers: print a table of inputs, shares and failures; exit 1 where an input fails.

python tests/fuzz/run.py --inputs 2000 --seed 1 --workers 2 --save tests/fuzz/seeds
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import fuzz_pool
from fuzz_pool import FAILURES, Input, Outcome
from fuzz_readers import READERS

LEAST_SHARE = 0.3
"""Of the inputs of a reader that its outermost parser must take: others test that parser alone."""
LEAST_INPUTS = 100


def inputs(total: int, seed: int, names: Sequence[str]) -> list[Input]:
    """Return `total` inputs, the same number for each reader, readers in turn."""
    each = -(-total // len(names))
    return [Input(reader=name, number=number, seed=seed) for number in range(each) for name in names]


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the results of the readers as text: inputs, share parsed, outcomes by kind, the slowest, the peak."""
    rows = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.input.reader].append(outcome)
    heads = ("parsed", 8), ("ok", 6), ("refused", 8), ("failed", 7), ("max s", 7), ("MiB", 6), ("sum s", 7)
    lines = [f"{'reader':20}{'inputs':>7}" + "".join(f"{head:>{width}}" for head, width in heads) + "  errors"]
    for name, held in sorted(rows.items()):
        kinds = Counter(outcome.kind for outcome in held)
        errors = Counter(outcome.error for outcome in held if outcome.kind == "refused")
        share = sum(outcome.parsed for outcome in held) / len(held)
        failed = sum(kinds[kind] for kind in FAILURES)
        words = " ".join(f"{error} {count}" for error, count in errors.most_common())
        slowest, peak = max(outcome.seconds for outcome in held), max(outcome.peak for outcome in held)
        spent = sum(outcome.seconds for outcome in held)
        lines.append(
            f"{name:20}{len(held):7}{share:8.0%}{kinds['ok']:6}{kinds['refused']:8}{failed:7}{slowest:7.1f}"
            f"{peak >> 20:6}{spent:7.0f}  {words}"
        )
    return "\n".join(lines)


def failures(outcomes: Iterable[Outcome]) -> str:
    """Return the failures by reader and place, one with its traceback each."""
    groups: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.kind in FAILURES:
            groups[outcome.input.reader, outcome.kind, outcome.error].append(outcome)
    lines = []
    for (reader, kind, error), held in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        numbers = " ".join(str(outcome.input.number) for outcome in held[:5])
        lines += [f"--- {reader}: {kind}: {error}: {len(held)} inputs, numbers {numbers}", held[0].detail.rstrip()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reader", action="append", help="only this reader; may be repeated")
    parser.add_argument("--corpus", type=Path, help="keep the corpus in this folder, and take it from there")
    parser.add_argument("--save", type=Path, help="write one failing input of each kind into this folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        corpus = (chosen.corpus or Path(work) / "corpus").resolve()
        if not corpus.exists():
            fuzz_pool.make_corpus(corpus)
        names = chosen.reader or list(READERS)
        todo = inputs(chosen.inputs, chosen.seed, names)
        outcomes = list(watched(fuzz_pool.run(todo, corpus, Path(work), READERS, workers=chosen.workers)))
        print(failures(outcomes))
        print(table(outcomes))
        if chosen.save:
            save(outcomes, corpus, chosen.save)
    bad = sum(outcome.kind in FAILURES for outcome in outcomes)
    print(f"{len(outcomes)} inputs, {bad} failed, seed {chosen.seed}")
    return 1 if bad or thin(outcomes) else 0


def watched(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yield the outcomes, with a line on stderr for every failure and for every 500 inputs."""
    began = time.monotonic()
    for count, outcome in enumerate(outcomes, 1):
        if outcome.kind in FAILURES:
            print(f"{outcome.input.reader} {outcome.input.number}: {outcome.kind}: {outcome.error}", file=sys.stderr)
        if count % 500 == 0:
            print(f"{count} inputs, {time.monotonic() - began:.0f} s", file=sys.stderr)
        yield outcome


def thin(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the readers of too few of whose inputs the outermost parser takes."""
    counts: Counter[str] = Counter()
    parsed: Counter[str] = Counter()
    for outcome in outcomes:
        counts[outcome.input.reader] += 1
        parsed[outcome.input.reader] += outcome.parsed
    return [name for name, n in counts.items() if n >= LEAST_INPUTS and parsed[name] < LEAST_SHARE * n]


def save(outcomes: Iterable[Outcome], corpus: Path, folder: Path) -> None:
    """Store the smallest failing input of each reader and place."""
    smallest: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        if outcome.kind not in FAILURES:
            continue
        item = fuzz_pool.prepared(outcome.input, corpus, READERS[outcome.input.reader])
        key = (item.reader, outcome.error)
        size = len(json.dumps(fuzz_pool.difference(item, corpus)))
        if key not in smallest or size < len(json.dumps(fuzz_pool.difference(smallest[key].input, corpus))):
            smallest[key] = Outcome(input=item, kind=outcome.kind, error=outcome.error)
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in smallest.values():
        document = {"failure": f"{outcome.kind}: {outcome.error}", **fuzz_pool.difference(outcome.input, corpus)}
        (folder / fuzz_pool.name_of(document)).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
