"""Group samples into shards.

The listing alone decides which sample goes into which shard, before any pixel is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sgdata import files
from sgdata.datasets import cards
from sgdata.datasets.types import SampleRef, ShardRecipe, SourceMember
from sgdata.remote import file_identity
from sgdata.shards import tar_format
from sgdata.types import Contract


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to pack one shard.

    Attributes:
        name: Name of the tar.
        refs: Samples of the shard, in order.
        source: Path of the dataset.
        out: Folder of the shards.
        recipe: Recipe.
        contract: Contract of the dataset.
        fingerprint: SHA-256 of all that decides the bytes of the shard.
        spooled: Whether its members were copied out of a compressed tar.
    """

    name: str
    refs: tuple[SampleRef, ...]
    source: Path
    out: Path
    recipe: ShardRecipe
    contract: Contract
    fingerprint: str
    spooled: bool = False


# --- grouping into shards, before any pixel is read ----------------------------------------


def group_samples(refs: Iterable[SampleRef], shard_mb: int, *, stream: bool) -> list[tuple[SampleRef, ...]]:
    """Group samples of one split, in order, until their estimated bytes reach the size of a shard.

    The order is that of the keys, and a shard has samples of one place. Samples of a compressed tar (`stream`) are
    grouped in the order of the tar, so that few shards are unfinished at a time, and sorted by key within a shard: one
    in the order of its names gives the same bytes as its folder.
    """

    def position(ref: SampleRef) -> tuple[str, str, int, str]:
        offset = min(member.offset or 0 for member in ref.members) if stream else 0
        return *group(ref), offset, ref.key

    def group(ref: SampleRef) -> tuple[str, str]:
        return ref.split, ref.meta.get("place", "")

    groups: list[list[SampleRef]] = []
    filled = 0
    for ref in sorted(refs, key=position):
        # By estimated bytes, not by packed ones: the groups must not depend on what is quarantined.
        if not groups or group(groups[-1][0]) != group(ref) or filled + ref.bytes > shard_mb * 2**20:
            groups.append([])
            filled = 0
        groups[-1].append(ref)
        filled += ref.bytes
    return [tuple(sorted(group, key=lambda ref: ref.key)) for group in groups]


def tar_prefix(recipe: ShardRecipe, contract: Contract) -> str:
    """Return the start of the names of tars: the name of shards or of a build of one's own, else the dataset's."""
    if recipe.name is None and recipe.dataset == "segmunich" and cards.OWN_NAME.fullmatch(contract.dataset):
        # Shards of this recipe have had the name of the other one.
        return contract.dataset.replace("segmunich-paper", "segmunich")
    return recipe.name or recipe.dataset


def shard_tasks(
    groups: Iterable[tuple[SampleRef, ...]],
    recipe: ShardRecipe,
    contract: Contract,
    source: Path,
    out: Path,
    shared_files: Sequence[Path] = (),
    *,
    builds: Mapping[str, Path] = MappingProxyType({}),
) -> list[ShardTask]:
    """Return one task per group, numbered within its split.

    Args:
        groups: Samples of each shard.
        recipe: Recipe of the shards.
        contract: Contract of the samples.
        source: Path of the samples.
        out: Output folder.
        shared_files: Files that every sample depends on too.
        builds: Sources by place, of samples of several places.
    """
    numbers: Counter[str] = Counter()
    shared_identities = file_identity.identify_files([*shared_files, *([source] if source.is_file() else [])])
    settings = (recipe.layout, recipe.codec, recipe.kernel, recipe.effort)
    # The files of a table, and of a pair of builds, are beside the document that names them.
    tasks = []
    for refs in groups:
        split, task_source = refs[0].split, builds.get(refs[0].meta.get("place", ""), source)
        root = str(task_source if task_source.is_dir() else task_source.parent)
        name = tar_format.shard_name(tar_prefix(recipe, contract), split, numbers[split])
        numbers[split] += 1
        # Equal fingerprints mean equal output.
        member_identities = file_identity.identify_files(
            {_member_file(root, member) for ref in refs for member in ref.members}
        )
        document = files.canonical_json([tar_format.FORMAT, settings, contract, shared_identities, member_identities])
        fingerprint = files.sha256(document + "".join(map(_ref_text, refs)).encode(errors="surrogatepass"))
        tasks.append(
            ShardTask(
                name=name,
                refs=refs,
                source=task_source,
                out=out,
                recipe=recipe,
                contract=contract,
                fingerprint=fingerprint,
            )
        )
    return tasks


def _ref_text(ref: SampleRef) -> str:
    """Return a text that differs for samples that do: four times as fast as JSON, and there may be millions."""
    members = [(member.name, member.size, member.offset) for member in ref.members]
    return repr((ref.key, ref.split, members, ref.bytes, files.canonical_json(ref.meta) if ref.meta else b""))


def _member_file(root: str, member: SourceMember) -> str:
    """Return the path of the file in a folder that has a member: itself, or a zip."""
    path = f"{root}/{member.name}"
    archive, inside, _ = path.partition(".zip/")
    return f"{archive}.zip" if inside and not os.path.lexists(path) else path
