"""Assemble a release in a temporary folder and rename it, so that an interrupted run leaves no partial release.

The output depends on the inputs alone: not on the clock, on paths, on the user or on the umask.
"""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_lock, output_names, package_data, urls, verification
from sgdata.audits import findings
from sgdata.builds import patch_table
from sgdata.datasets import cards
from sgdata.display import true_colour
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.pages import html
from sgdata.rasters import resample
from sgdata.releases import croissant, place_builds, release_card, release_content, stac, versions
from sgdata.releases.release_content import ReleaseContent, ReleaseRequest
from sgdata.safe_names import file_name, with_ending
from sgdata.scenes import lock
from sgdata.shards import contracts, sample_hashes, shard_index, tar_format
from sgdata.types import Array, Contract

log = logging.getLogger("sgdata")
VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,2}([a-z0-9.-]{1,20})?")
DAY = re.compile(r"\d{4}-\d\d-\d\d")
PREVIEWS, PREVIEW_PX = 16, 96
BINARY = frozenset({".tar", ".parquet", ".png"})
RECIPE_OF_BUILD = "build-recipe.toml"
_COLUMNS = ("key", "split", "shard", "west", "south", "east", "north", "crs", "date", "labels")


def release(
    order: ReleaseRequest, audited: Callable[[Path], findings.AuditReport]
) -> tuple[Path, findings.AuditReport]:
    """Write the release `out/NAME-VERSION`.

    Args:
        order: What to release.
        audited: Audits a folder of shards; called with the copy in the release.

    Returns:
        The folder, and the audit in it.

    Raises:
        SettingError: Invalid name, version, date or home, or a licence that does not allow the release.
        OutputError: An input does not verify, the version exists with other content, or writing fails.
        SourceError: There are no shards, or the build is not that of the shards.
    """
    for field_name, value, pattern, expected in (
        ("name", order.name, cards.OWN_NAME, "lower case letters, digits, - and _, such as my-city"),
        ("version", order.version, VERSION, "numbers such as 1.0"),
        ("date", order.published or "2000-01-01", DAY, "a day such as 2026-01-31"),
    ):
        if not pattern.fullmatch(value):
            raise SettingError(f"release: {field_name} is {value!r}: expected {expected}; correct it")
    if order.home and not urls.is_http(order.home):
        raise SettingError(f"release: home is {order.home!r:.200}: expected an address such as https://...; correct it")
    inputs = _check_inputs(order)
    final, staging = order.out / order.title, order.out / f".{order.title}.partial"
    with output_lock.only_writer(order.out):
        try:
            for stale in (*order.out.glob(f".{order.title}*.partial*"), *order.out.glob(f"{order.title}.tar.new")):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            report = _assemble(order, inputs, staging, audited)
            _publish(staging, final)
            if order.archive:
                _write_archive(final, order.out / f"{order.title}.tar")
        except OSError as error:
            raise OutputError(f"{staging}: {error.strerror or error}; nothing was released, run it again") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if order.register:
        _write_once(order.register / "releases" / f"{order.title}.json", files.pretty_json(summary(order, final)))
    return final, report


def register_of_checkout() -> Path | None:
    """Return `catalogs/` of the checkout that this module runs from; None for an installed package."""
    folder = package_data.folder("catalogs")
    return folder if (folder.parent / "pyproject.toml").is_file() else None


def _check_inputs(order: ReleaseRequest) -> tuple[Any, lock.Lock | None]:
    """Verify the inputs and their licence; return contract and lock."""
    files.require_file(order.source / output_names.INDEX, "a folder written by 'sgdata shard'")
    for folder in (order.source, *([order.build] if order.build else []), *order.builds.values()):
        # Before anything is copied: users can verify only the release, not its inputs.
        if differences := verification.verify(folder):
            raise OutputError(
                f"{folder}: {len(differences)} files differ from its SHA256SUMS ({differences[0]}); write it again"
            )
    contract = contracts.read(order.source)
    base = _base_dataset(order.source, contract)
    ours = base == "segmunich" and contract.version != release_content.RELEASED_BY_OTHERS
    release_content.require_permission(cards.card(base), order, ours=ours)
    if order.previous:
        versions.check_previous(order.previous, order)
    if not ours:
        return contract, None
    if order.builds:
        return contract, place_builds.check(order.source, contract, order.builds)
    if order.build is None:
        raise SettingError(f"{order.source}: shards of a build; give --build DIR, whose lock lists the scenes")
    built = contracts.read(order.build)
    keys = set(patch_table.read(order.build / output_names.PATCHES)["key"])
    unknown = set(shard_index.read_index(order.source)["key"].to_pylist()) - keys
    if unknown or contracts.find_differences(contract, built, "predict") or contract.version != built.version:
        raise SourceError(f"{order.build}: not the build of these shards ({len(unknown)} unknown samples); give theirs")
    return contract, lock.read(order.build / lock.NAME)


def _base_dataset(folder: Path, contract: Contract) -> str:
    """Return the dataset whose reader packed some shards, which may have a name of their own."""
    recipe = folder / output_names.RECIPE
    name = files.read_plain(recipe).get("dataset") if recipe.is_file() else None
    return name if isinstance(name, str) and name in cards.names() else contract.dataset


def _assemble(
    order: ReleaseRequest,
    base_and_lock: tuple[Any, lock.Lock | None],
    folder: Path,
    audited: Callable[[Path], findings.AuditReport],
) -> findings.AuditReport:
    from importlib.metadata import version

    _, build_lock = base_and_lock
    # Listed files only: lock files and journals are not part of the data. With the list, which is replaced at the end.
    for name in (*files.read_sums(order.source), output_names.SUMS):
        _copy(order.source / name, folder / name)
    contract = sample_hashes.complete_folder(folder)
    if order.build and build_lock:
        _copy(order.build / lock.NAME, folder / lock.NAME)
        _copy(order.build / output_names.RECIPE, folder / RECIPE_OF_BUILD)
    for name, path in place_builds.documents(order.builds).items():
        _copy(path, folder / name)
    report = audited(folder)
    files.write(folder / findings.NAME, files.pretty_json(report))
    index = shard_index.read_index(folder)
    software, base = version("sgdata"), cards.card(_base_dataset(folder, contract))
    is_own = build_lock is not None or base.licence.redistribution == "owner"
    changes = versions.describe_changes(order, folder) if order.previous else None
    content = ReleaseContent(
        order=order, contract=contract, lock=build_lock, report=report, changes=changes,
        card=release_content.own_card(base, order, build_lock, software=software) if is_own else base,
        rows=index.select(_COLUMNS).to_pylist(), index_sha256=files.sha256_file(folder / output_names.INDEX),
        shards={p.name: (files.sha256_file(p), p.stat().st_size) for p in sorted(folder.glob("*.tar"))},
        usage=_usage(order.build) if build_lock else {},
    )  # fmt: skip
    files.write(folder / output_names.CROISSANT, files.pretty_json(croissant.document(content)))
    for name, document in stac.documents(content, software).items():
        files.write(folder / "stac" / name, files.pretty_json(document))
    previews = _write_previews(folder, index, contract)
    text = release_card.text(content, previews=previews, software=software).encode()
    files.write(folder / "CARD.md", text)
    # The name that model hubs display.
    files.write(folder / "README.md", text)
    for material, (licence, notice) in content.terms.items():
        files.write(folder / "LICENSES" / f"{material}.txt", f"{licence}\n\n{notice}\n".encode())
    files.write(folder / "LICENSES" / "files.tsv", "".join(_licences(folder, content)).encode())
    _refuse_secrets(folder)
    files.write_sums(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return report


def _usage(build: Path | None) -> dict[str, Any]:
    path = build and build / output_names.USAGE
    return files.read_plain(path) if path and path.is_file() else {}


def _refuse_secrets(folder: Path) -> None:
    """Raise OutputError if a document of a release has an address with a signature, a token or a password."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in BINARY and path.is_file():
            for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
                if urls.has_secrets(line):
                    raise OutputError(
                        f"{path.relative_to(folder)}: line {number} has an address with a signature, a token or a "
                        "password, which a release would publish; plan and build again with this version"
                    )


def _copy(source: Path, target: Path) -> None:
    with files.replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _write_previews(folder: Path, index: Any, contract: Contract) -> list[str]:
    """Write a picture of some samples of each split; return the names of the files."""
    import pyarrow.compute as pc

    names = []
    for split in contract.splits:
        rows = index.filter(pc.equal(index["split"], split))
        step = max(1, len(rows) // PREVIEWS)
        chosen = rows.take(list(range(0, len(rows), step))[:PREVIEWS]).to_pylist()
        name = f"previews/{file_name(split)}.png"
        html.write_png(folder / name, _preview(folder, chosen, contract))
        names.append(name)
    return names


def _preview(folder: Path, rows: Sequence[shard_index.Row], contract: Contract) -> Array:
    """Render up to 4 x 4 samples as uint8 (3, H, W), each with a contrast stretch of its own."""
    rgb = true_colour.band_indices([band.name for band in contract.bands])
    sheet = np.full((3, 4 * PREVIEW_PX, 4 * PREVIEW_PX), 255, np.uint8)
    for number, row in enumerate(rows):
        image = tar_format.whole_images(resample.join_groups(tar_format.read_sample(folder, row), contract))[0]
        # Nearest neighbour, so that the preview shows measured values only.
        rows_, cols = (np.arange(PREVIEW_PX) * side // PREVIEW_PX for side in image.shape[1:])
        bands = image[rgb][:, rows_][:, :, cols]
        top, left = PREVIEW_PX * (number // 4), PREVIEW_PX * (number % 4)
        limits = [true_colour.limits(band[band > 0]) for band in bands]
        sheet[:, top : top + PREVIEW_PX, left : left + PREVIEW_PX] = true_colour.stretch(bands, limits)
    return sheet


def _licences(folder: Path, content: ReleaseContent) -> Iterator[str]:
    """Yield a line per file, or per kind of member of a tar: path, member, licence, notice."""
    terms = content.terms
    yield "path\tmember\tlicence\tnotice\n"
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != output_names.SUMS:
            members = {"": "pixels"}
            if path.suffix == ".tar":
                members = {"image*": "pixels", "mask.*, label.json": "labels", "meta.json": "pixels"}
            elif name in (output_names.INDEX, findings.NAME, output_names.CONTRACT, versions.CHANGES):
                members = {"": "labels"}
            yield from ("\t".join((name, member, *terms[material])) + "\n" for member, material in members.items())


def _publish(staging: Path, final: Path) -> None:
    """Rename the folder to its final name; a release that exists is never changed."""
    if not final.exists():
        staging.rename(final)
        files.sync(final.parent)
    elif (final / output_names.SUMS).read_bytes() != (staging / output_names.SUMS).read_bytes() or verification.verify(
        final
    ):
        raise OutputError(f"{final}: this version exists with other content; choose another version")
    else:
        log.info("%s: exists already, with the same content", final)


def _write_archive(folder: Path, path: Path) -> None:
    """Write the folder as a reproducible ustar file: sorted names, no times, no users."""
    with (
        files.replacing(with_ending(path, ".new")) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for file in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
            if file.is_file():
                member = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
                member.size = file.stat().st_size
                with file.open("rb") as handle:
                    tar.addfile(member, handle)
    new = with_ending(path, ".new")
    if path.exists() and files.sha256_file(path) != files.sha256_file(new):
        new.unlink()
        raise OutputError(f"{path}: exists with other content; choose another version")
    new.replace(path)


def _write_once(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() != content:
        raise OutputError(f"{path}: describes a release with other content; choose another version")
    files.write(path, content)


def summary(order: ReleaseRequest, folder: Path) -> dict[str, Any]:
    """Return the content of `releases/NAME-VERSION.json`; `sha256` is that of the SHA256SUMS of the release."""
    from importlib.metadata import version

    contract, report = contracts.read(folder), findings.read(folder / findings.NAME)
    changes = {"previous": versions.read_title(order.previous)} if order.previous else {}
    digests = files.read_sums(folder)
    return {
        "name": order.name,
        "version": order.version,
        "dataset": contract.dataset,
        "edition": contract.version,
        "fingerprint": contract.fingerprint,
        "splits": contract.splits,
        "sha256": files.sha256_file(folder / output_names.SUMS),
        "bytes": sum((folder / name).stat().st_size for name in digests),
        "files": digests,
        "findings": {check.name: check.message for check in report.checks if check.state == "finding"},
        "software": {"sgdata": version("sgdata")},
    } | changes
