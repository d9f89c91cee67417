"""Limits of what is read from elsewhere, each with its reason: declared sizes are compared before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The most that is accepted of one quantity.

    Attributes:
        most: Largest accepted value.
        unit: What is counted.
        reason: Why legitimate data stay below it.
    """

    most: int
    unit: str
    reason: str

    def check(self, value: float, origin: str) -> None:
        """Raise SourceError if `value` exceeds the limit; `origin` begins the message."""
        from sgdata.errors import SourceError  # not at the top: a table imports nothing

        if value > self.most:
            raise SourceError(f"{origin}: {value:,} {self.unit}, at most {self.most:,} are read: {self.reason}")


# --- rasters -------------------------------------------------------------------------------

RASTER_PIXELS = Limit(2**34, "pixels", "a country at 10 m has 4e9, a Sentinel-2 tile 1.2e8")
RASTER_BANDS = Limit(2**10, "bands", "Sentinel-2 has 13, hyperspectral sensors some 300")
BLOCK_BYTES = Limit(2**28, "bytes in one block", "blocks of COGs have 2**20, whole bands of a tile in one strip 2.4e8")
IMAGE_VALUES = Limit(2**25, "values", "the largest image of any dataset has 3e6")
IMAGE_PAGES = Limit(2**12, "pages", "an image written as one page per row has some 1000")
IMAGE_STRIPS = Limit(2**16, "strips", "images of datasets have at most one strip per row, some 2000")
PIXEL_SIZE_M = Limit(10_000, "metres per pixel", "bands of Sentinel-2 have 10 to 60 m, angle grids 5000 m")
PIXELS_PER_M = Limit(4, "pixels per metre", "no satellite image has finer pixels than 0.25 m")
SHARD_CHUNKS = Limit(2**20, "chunks in one shard", "a whole band of a tile in chunks of 256 pixels has some 1900")
VRT_SOURCES = Limit(10_000, "sources", "a mosaic of all Sentinel-2 tiles of a continent has some 1000")
VRT_NESTING = Limit(4, "VRTs inside each other", "a mosaic of stacks has 2")
VRT_BYTES = Limit(2**26, "bytes", "10,000 sources take some 5e6")

VECTOR_BYTES = Limit(2**28, "bytes", "outlines of all countries of the world take some 1e7")

# --- documents -----------------------------------------------------------------------------

DOCUMENT_BYTES = Limit(2**26, "bytes", "a page of 100 STAC items has some 3e6, an outline of a country 2e7")
DOCUMENT_VALUES = Limit(2**22, "JSON values", "a page of 100 STAC items has some 1e5")
PRODUCT_BYTES = Limit(2**23, "bytes", "the product metadata of a scene have some 8e5")
SIDE_FILE_BYTES = Limit(2**24, "bytes", "histograms of 12 bands in 65,536 bins have some 5e6")
PROBE_BYTES = Limit(2**16, "bytes", "1 is asked for, to see whether a server gives ranges")
TOKEN_BYTES = Limit(2**16, "bytes", "a token has some 300")
ANSWER_BYTES = Limit(2**28, "bytes", "the buildings of 400 km2 of a dense city have some 1.5e8")
ANSWER_VALUES = Limit(12_000_000, "JSON values", "the buildings of 400 km2 of a dense city have some 1e7")

# --- catalogues ----------------------------------------------------------------------------

CATALOG_DOCUMENTS = Limit(100_000, "documents", "a static catalogue of a country has one per scene, some 2e4 a year")
CATALOG_DEPTH = Limit(32, "catalogues inside each other", "year, month, day, tile: real ones nest 4 to 8 deep")
SEARCH_PAGES = Limit(2_000, "pages", "20,000 items come in 200 pages")
SEARCH_ITEMS = Limit(20_000, "items in one year", "60 tiles on every day that a satellite passes have some 9000")

# --- OpenStreetMap -------------------------------------------------------------------------

WAY_NODES = Limit(4_000, "nodes in one way", "OpenStreetMap itself accepts at most 2000")
CROSSINGS = Limit(1_000, "crossings in one ring or relation", "mappers cross rings by mistake, 1 to 10 times")
PBF_HEAD_BYTES = Limit(2**16, "bytes", "the format allows 64 KiB for the head of a block")
PBF_BLOCK_BYTES = Limit(2**25, "bytes", "the format allows 32 MiB for a block")
PROLOG_BYTES = Limit(2**16, "bytes before <osm>", "an XML declaration and a comment have some 200")

# --- archives ------------------------------------------------------------------------------

MEMBER_BYTES = Limit(2**28, "bytes", "the largest image of any dataset has 6e7")
MEMBER_COUNT = Limit(2**24, "members", "BigEarthNet has 8e6")

# --- time ----------------------------------------------------------------------------------

DOCUMENT_SECONDS = Limit(300, "seconds for one answer", "a page of a catalogue takes 1 to 30 s")
ANSWER_SECONDS = Limit(
    1_800, "seconds for one answer", "Overpass works for 180 s, and 1.5e8 bytes take 240 s at 5 Mbit/s"
)
SEARCH_SECONDS = Limit(3_600, "seconds for one catalogue", "20,000 items take some 10 minutes")
DOWNLOAD_BYTES_PER_S = Limit(10_000, "bytes per second at least", "a slower line needs 77 days for the largest file")
DOWNLOAD_SECONDS = Limit(3_600, "seconds beside the size", "servers that read from tape take some 600 s")
REDIRECTS = Limit(10, "redirects", "stores redirect 1 or 2 times")
