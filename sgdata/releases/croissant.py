"""`croissant.json`: MLCommons Croissant 1.1 with the core of GeoCroissant 1.0.

mlcroissant validates the former; `catalogs/schemas/geocroissant.schema.json` is a schema for the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgdata import output_names, package_data

if TYPE_CHECKING:
    from sgdata.releases.release_content import ReleaseContent

CONFORMS = "http://mlcommons.org/croissant/1.1"
CONFORMS_GEO = "http://mlcommons.org/croissant/geo/1.0"
_COLUMNS = {"key": "sc:Text", "split": "sc:Text", "shard": "sc:Text", "sha256": "sc:Text"}
_PLACES = {"west": "sc:Float", "south": "sc:Float", "east": "sc:Float", "north": "sc:Float"}


def document(content: ReleaseContent) -> dict[str, Any]:
    """Return the JSON-LD document. Without coordinates it does not claim to conform to GeoCroissant."""
    geo = _geo(content) if content.bounds else {}
    # Context of the Croissant 1.1 specification, appendix 1, with `geocr` and `rai` added.
    template = package_data.document("croissant")
    kinds = template["names"]
    splits = [{"splits/name": name, "splits/url": kinds[name]} for name in content.contract.splits if name in kinds]
    columns = _COLUMNS | (_PLACES if content.bounds else {})
    return {
        "@context": template["context"],
        "@type": "sc:Dataset",
        "conformsTo": [CONFORMS, *([CONFORMS_GEO] if geo else [])],
        "name": content.order.title,
        "version": content.order.version,
        "description": content.summary,
        # The URL only, as JSON-LD expects; the short name is in LICENSES.
        "license": [licence.rpartition(", ")[2] for licence, _ in content.terms.values()],
        "citeAs": "; ".join(content.card.citation),
        "url": content.card.home,
        "creator": {"@type": "sc:Organization", "name": f"made with sgdata from {content.card.title}"},
        **({"datePublished": content.order.published} if content.order.published else {}),
        **({"temporalCoverage": "/".join(content.days)} if content.days else {}),
        # Audit findings are known biases of the data.
        "rai:dataBiases": " ".join(_biases(content)),
        "rai:dataCollection": content.notice,
        **geo,
        "distribution": [
            _file(output_names.INDEX, "application/x-parquet", content.index_sha256),
            *(_file(name, "application/x-tar", sha256) for name, (sha256, _) in content.shards.items()),
        ],
        "recordSet": [
            *([template["splits"] | {"data": splits}] if splits else []),
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One row per sample: positions of its members in the tars, and their content.",
                "key": {"@id": "samples/key"},
                "field": [_field(name, kind, linked=bool(splits)) for name, kind in columns.items()],
            },
        ],
    }


def _geo(content: ReleaseContent) -> dict[str, Any]:
    assert content.bounds
    west, south, east, north = content.bounds
    bands = content.contract.bands
    return {
        # schema.org writes latitude first.
        "spatialCoverage": {
            "@type": "sc:Place",
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "geocr:coordinateReferenceSystem": content.crs,
        "geocr:spatialResolution": _quantity(content.contract.pixel_m, "m"),
        "geocr:bandConfiguration": {
            "@type": "geocr:BandConfiguration",
            "geocr:totalBands": len(bands),
            "geocr:bandNameList": [band.name for band in bands],
        },
        "geocr:spectralBandMetadata": [
            {
                "@type": "geocr:SpectralBand",
                "name": band.name,
                "geocr:centerWavelength": _quantity(band.wavelength_nm, "nm"),
            }
            for band in bands
        ],
        "geocr:spatialBias": f"Samples between {south} and {north} N, {west} and {east} E only.",
        "geocr:samplingStrategy": f"Samples of {content.contract.shape or 'varying size'}, split as in the card.",
    }


def _quantity(value: float, unit: str) -> dict[str, Any]:
    return {"@type": "sc:QuantitativeValue", "value": value, "unitText": unit}


def _biases(content: ReleaseContent) -> list[str]:
    messages = [check.message for check in content.report.checks if check.state == "finding"]
    return [*content.card.defects, *messages] or ["None known."]


def _file(name: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        # Relative, so that the release can be copied.
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _field(name: str, kind: str, *, linked: bool) -> dict[str, Any]:
    source = {"fileObject": {"@id": output_names.INDEX}, "extract": {"column": name}}
    field = {"@type": "cr:Field", "@id": f"samples/{name}", "name": name, "dataType": kind, "source": source}
    # The column of split names refers to their definitions.
    return field | ({"references": {"field": {"@id": "splits/name"}}} if name == "split" and linked else {})
