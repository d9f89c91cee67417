"""Test offsets from product metadata: ESA's own, damaged and hostile ones, and their use in a build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from stac_wrap import wrap
from test_segmunich import ground, recipe, run, scene

from sgdata import files
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.errors import SourceError
from sgdata.remote import buckets
from sgdata.scenes import lock, product_metadata

__all__ = ["recipe"]

L2A = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>
<BOA_ADD_OFFSET_VALUES_LIST>{}</BOA_ADD_OFFSET_VALUES_LIST>
</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"""


def xml(*values: object) -> str:
    return L2A.format(
        "".join(f'<BOA_ADD_OFFSET band_id="{n}">{value}</BOA_ADD_OFFSET>' for n, value in enumerate(values))
    )


def test_the_offset_of_all_bands_is_read_and_none_is_zero() -> None:
    assert product_metadata.parsed(xml(*[-1000] * 13).encode(), "x") == -1000
    assert product_metadata.parsed(xml().encode(), "x") == 0
    l1c = xml(-1000).replace("BOA_ADD", "RADIO_ADD").replace("Level-2A", "Level-1C")
    assert product_metadata.parsed(l1c.replace("UTF-8", "UTF-16").encode("utf-16"), "x") == -1000


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'
FETCH = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (xml(-1000, 0), r"offsets \[-1000, 0\], expected a User_Product with one offset"),
        (xml("-1000.5"), "is no product metadata: invalid literal"),
        ("<html><body>Not here</body></html>", "root html"),
        ("<html><br>", "is no product metadata: no element found"),
        ("", "is no product metadata"),
        (xml(-1000).replace("?>", "?>" + BOMB), "declares a document type"),
        (xml("&b;").replace("?>", "?>" + FETCH), "declares a document type"),
    ],
)
def test_files_that_are_not_metadata_are_refused(content: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        product_metadata.parsed(content.encode(), "MTD_MSIL2A.xml")


def test_too_much_is_refused_and_nothing_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "MTD.xml"
    path.write_text(xml(-1000))
    assert product_metadata.offset(str(path)) == -1000
    monkeypatch.setattr(product_metadata, "PRODUCT_BYTES", replace(product_metadata.PRODUCT_BYTES, most=100))
    with pytest.raises(SourceError, match="at most 100 are read"):
        product_metadata.offset(str(path))
    assert product_metadata.offset(str(tmp_path / "none.xml")) is None
    assert [record.message.split(":")[0] for record in caplog.records] == [str(tmp_path / "none.xml")]


STORES = {
    "s3": ("eodata/a.SAFE/MTD.xml", "Authorization", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}),
    "gs": ("storage/v1/b/eodata/o/a.SAFE%2FMTD.xml", "", {}),
    "az": ("eodata/a.SAFE/MTD.xml", "sig=b", {"AZURE_STORAGE_SAS_TOKEN": "?sv=a&sig=b"}),
    "http": ("a.SAFE/MTD.xml", "", {}),
}


@pytest.mark.parametrize("scheme", STORES)
def test_metadata_in_stores_are_read_with_the_keys_of_the_user(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Amazon's kind wants a signature in a header, Azure's one in the URL; size and content are checked as on disk."""
    name, secret, keys = STORES[scheme]
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_text(xml(-1000))
    monkeypatch.setenv("HOME", str(tmp_path))

    def keyed(handler: served.Files, content: bytes) -> bool:
        if not secret or secret in handler.headers or secret in handler.path:
            return False
        handler.give(403, b"")
        return True

    with served.serving(tmp_path / "store", keyed) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("CPL_GS_ENDPOINT", server.url)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=a;BlobEndpoint={server.url}")
        href = f"{server.url}/{name}" if scheme == "http" else f"{scheme}://eodata/a.SAFE/MTD.xml"
        if secret:
            assert product_metadata.offset(href) is None
            assert "cannot be read" in caplog.text
            assert "baseline and pixels decide" in caplog.text
        for key, value in keys.items():
            monkeypatch.setenv(key, value)
        assert product_metadata.offset(href) == -1000
        assert "sig=b" not in caplog.text
        path.write_text(xml(-1000).replace("?>", "?>" + BOMB))
        with pytest.raises(SourceError, match="declares a document type"):
            product_metadata.offset(href)
        monkeypatch.setattr(product_metadata, "PRODUCT_BYTES", replace(product_metadata.PRODUCT_BYTES, most=100))
        with pytest.raises(SourceError, match="at most 100 are read"):
            product_metadata.offset(href)


def test_a_container_without_account_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert product_metadata.offset("az://c/MTD.xml") is None
    assert "set AZURE_STORAGE_ACCOUNT" in caplog.text
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    assert buckets.blob_url("az://c/MTD.xml") == "https://acc.blob.core.windows.net/c/MTD.xml"


@pytest.mark.parametrize(("inside", "shift", "expected"), [(0, 0, 0), (-1000, 1000, -1000), (0, 1000, "stops")])
def test_a_build_compares_it_with_the_pixels(
    tmp_path: Path, recipe: BuildRecipe, inside: int, shift: int, expected: Any
) -> None:
    folder = wrap(tmp_path / "a", [scene("2019-06-01", ground(1), shift=shift, baseline="05.00")])
    path = next(folder.rglob("S2A*.json"))
    item = files.read_plain(path)
    item["assets"]["product_metadata"] = {"href": "./MTD_MSIL2A.xml", "type": "application/xml"}
    path.write_bytes(files.pretty_json(item))
    (path.parent / "MTD_MSIL2A.xml").write_text(xml(*[inside] * 12))
    if expected == "stops":
        with pytest.raises(SourceError, match="metadata give offset 0, the pixels -1000"):
            run(recipe, folder, tmp_path / "b")
        return
    built = lock.read(run(recipe, folder, tmp_path / "b") / lock.NAME).items[0]
    assert (built.expected_offset, built.offset) == (expected, -shift)
    assert built.scene.product == f"sentinel-2-l2a/{path.stem}/MTD_MSIL2A.xml"
    assert np.isclose(built.dark_share or 0, 0.0 if shift else 1.0)


def test_all_contradictions_of_a_build_are_listed_at_once(tmp_path: Path, recipe: BuildRecipe) -> None:
    days = ("2019-06-01", "2019-06-11")
    folder = wrap(tmp_path / "a", [scene(day, ground(1), baseline="05.00") for day in days])
    for path in folder.rglob("S2A*.json"):
        item = files.read_plain(path)
        item["assets"]["product_metadata"] = {"href": "./MTD_MSIL2A.xml", "type": "application/xml"}
        path.write_bytes(files.pretty_json(item))
        (path.parent / "MTD_MSIL2A.xml").write_text(xml(*[-1000] * 12))
    with pytest.raises(SourceError, match="20190601.*20190611.*metadata give offset -1000, the pixels 0"):
        run(recipe, folder, tmp_path / "b")
    for source, decided in (("metadata", -1000), ("pixels", 0)):
        chosen = replace(recipe, offset=replace(recipe.offset, source=source))
        built = lock.read(run(chosen, folder, tmp_path / source) / lock.NAME)
        assert [item.offset for item in built.items] == [decided] * 2
