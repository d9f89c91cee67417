"""`croissant.json`: MLCommons Croissant 1.1 with the core of GeoCroissant 1.0.

mlcroissant checks the first; of the second it knows nothing, `catalogs/schemas/geocroissant.schema.json` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgdata import shards

if TYPE_CHECKING:
    from sgdata.release.shipment import Shipment

CONFORMS = "http://mlcommons.org/croissant/1.1"
CONFORMS_GEO = "http://mlcommons.org/croissant/geo/1.0"
_TERMS = (
    "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet format "
    "includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform"
)
_COLUMNS = {"key": "sc:Text", "split": "sc:Text", "shard": "sc:Text", "sha256": "sc:Text"}
_PLACES = {"west": "sc:Float", "south": "sc:Float", "east": "sc:Float", "north": "sc:Float"}


def document(shipment: Shipment) -> dict[str, Any]:
    """The whole JSON-LD document. A dataset that lies nowhere claims no GeoCroissant."""
    geo = _geo(shipment) if shipment.bounds else {}
    names = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
    used = [split for split in shipment.contract.splits if split in names]
    columns = _COLUMNS | (_PLACES if shipment.bounds else {})
    return {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": [CONFORMS, *([CONFORMS_GEO] if geo else [])],
        "name": shipment.title,
        "version": shipment.version,
        "description": shipment.summary,
        "license": [licence.rpartition(", ")[2] for licence, _ in shipment.terms.values()],
        "citeAs": "; ".join(shipment.card.citation),
        "url": shipment.card.home,
        "creator": {"@type": "sc:Organization", "name": f"made with sgdata from {shipment.card.title}"},
        **({"datePublished": shipment.published} if shipment.published else {}),
        **({"temporalCoverage": "/".join(shipment.days)} if shipment.days else {}),
        "rai:dataBiases": " ".join(_biases(shipment)),
        "rai:dataCollection": shipment.notice,
        **geo,
        "distribution": [
            _file(shards.INDEX, "application/x-parquet", shipment.index_sha256),
            *(_file(name, "application/x-tar", sha256) for name, (sha256, _) in shipment.shards.items()),
        ],
        "recordSet": [
            *([_splits({split: names[split] for split in used})] if used else []),
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One row per sample: where its members lie in the tars, and what they hold.",
                "key": {"@id": "samples/key"},
                "field": [_field(name, kind, linked=bool(used)) for name, kind in columns.items()],
            },
        ],
    }


def _context() -> dict[str, Any]:
    """The context of Croissant 1.1 (its specification, appendix 1), `geocr` and `rai` added."""
    terms: dict[str, Any] = {term: f"cr:{term}" for term in _TERMS.split()}
    return terms | {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        "geocr": "http://mlcommons.org/croissant/geo/",
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "description": {"@container": "@language"},
        "name": {"@container": "@language"},
    }


def _geo(shipment: Shipment) -> dict[str, Any]:
    assert shipment.bounds
    west, south, east, north = shipment.bounds
    bands = shipment.contract.bands
    return {
        # schema.org writes latitude first.
        "spatialCoverage": {
            "@type": "sc:Place",
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "geocr:coordinateReferenceSystem": shipment.crs,
        "geocr:spatialResolution": _quantity(min(band.gsd_m for band in bands), "m"),
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
        "geocr:samplingStrategy": f"Samples of {shipment.contract.shape or 'varying size'}, split as the card tells.",
    }


def _quantity(value: float, unit: str) -> dict[str, Any]:
    return {"@type": "sc:QuantitativeValue", "value": value, "unitText": unit}


def _biases(shipment: Shipment) -> list[str]:
    told = [check.told for check in shipment.report.checks if check.state == "finding"]
    return [*shipment.card.defects, *told] or ["None known."]


def _file(name: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _splits(kinds: dict[str, str]) -> dict[str, Any]:
    data = [{"splits/name": split, "splits/url": kind} for split, kind in kinds.items()]
    fields = {"name": "sc:Text", "url": "sc:URL"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [{"@type": "cr:Field", "@id": f"splits/{n}", "name": n, "dataType": k} for n, k in fields.items()],
        "data": data,
    }


def _field(name: str, kind: str, *, linked: bool) -> dict[str, Any]:
    source = {"fileObject": {"@id": shards.INDEX}, "extract": {"column": name}}
    field = {"@type": "cr:Field", "@id": f"samples/{name}", "name": name, "dataType": kind, "source": source}
    # A column of split names refers to what those names mean.
    return field | ({"references": {"field": {"@id": "splits/name"}}} if name == "split" and linked else {})
