"""Spool the members of a compressed tar, which is read once, until their shard is complete."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from sgdata import files
from sgdata.datasets import archives
from sgdata.datasets.types import SourceMember
from sgdata.packing.tasks import ShardTask

SPOOL = ".spool"


@dataclass(frozen=True, kw_only=True)
class Spool:
    """Members of one shard of a compressed tar, collected in one file.

    Attributes:
        task: The shard.
        path: The file.
        offsets: Offset in the file by offset in the tar.
    """

    task: ShardTask
    path: Path
    offsets: dict[int, int] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[SourceMember, Spool]]:
        """Yield the members in the order of the tar, each with this spool."""
        members = [member for ref in self.task.refs for member in ref.members]
        for member in sorted(members, key=_tar_offset):
            yield member, self

    def add(self, member: SourceMember, content: bytes) -> None:
        """Append the content of a member. Raises OutputError."""
        with files.writing(self.path), self.path.open("ab") as handle:
            self.offsets[_tar_offset(member)] = handle.tell()
            handle.write(content)

    @cached_property
    def count(self) -> int:
        """Number of members of the shard."""
        return sum(len(ref.members) for ref in self.task.refs)

    @property
    def complete(self) -> bool:
        """Whether every member has been added."""
        return len(self.offsets) == self.count

    def spooled_task(self) -> ShardTask:
        """Return the task with the members at their offsets in the file."""
        refs = []
        for ref in self.task.refs:
            members = tuple(replace(member, offset=self.offsets[_tar_offset(member)]) for member in ref.members)
            refs.append(replace(ref, members=members))
        return replace(self.task, source=self.path, refs=tuple(refs), spooled=True)


def _tar_offset(member: SourceMember) -> int:
    return member.offset or 0


def spool_members(tasks: Sequence[ShardTask], source: Path, out: Path) -> Iterator[ShardTask]:
    """Read a compressed tar once and yield each task as soon as its members are in `.spool/<name>`.

    Packing the shard removes the file. Memory holds one member, the disk the unfinished shards: one per split and three
    per worker.
    """
    (out / SPOOL).mkdir(exist_ok=True)
    spools = [Spool(task=task, path=out / SPOOL / task.name) for task in tasks]
    # Merged, not sorted as one list: a dataset may have seven million members.
    in_tar_order = heapq.merge(*(spool.members() for spool in spools), key=lambda pair: _tar_offset(pair[0]))
    with archives.open_stream(source) as content:
        for member, spool in in_tar_order:
            spool.add(member, content(member))
            if spool.complete:
                yield spool.spooled_task()
