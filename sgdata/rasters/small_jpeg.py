"""Read small JPEGs of datasets, with damaged ones refused.

Pillow decodes, so that the values are those of the usual loaders. It passes over damaged data that libjpeg fills with
grey, of which GDAL makes an error: both must accept a file.
"""

from __future__ import annotations

import io
import warnings

import numpy as np

from sgdata.errors import SourceError
from sgdata.limits import IMAGE_VALUES
from sgdata.types import Array


def read(content: bytes) -> Array:
    """Return an RGB image as (3, H, W) uint8: red, green, blue.

    Args:
        content: Bytes of the file.

    Raises:
        SourceError: It is no JPEG, not of three colours (grey, CMYK), too large, or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Warnings of Pillow concern sizes, which are checked here, and metadata, which are not used.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            IMAGE_VALUES.check(image.width * image.height * 3, "JPEG claims")
            if image.mode != "RGB":
                raise SourceError(f"JPEG is {image.mode}, expected RGB")
            pixels = np.asarray(image)
        _require_undamaged(content)
    except SourceError:
        raise
    except UnidentifiedImageError:  # whose text has an address in memory
        raise SourceError("is no JPEG") from None
    except Exception as error:  # what Pillow's parsers happen to raise: OSError, SyntaxError, struct.error, ...
        raise SourceError(f"is no JPEG that can be read: {error!s:.120}; fetch or write it again") from None
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _require_undamaged(content: bytes) -> None:
    """Raise an exception if libjpeg warns of the content."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
    from rasterio.io import MemoryFile

    with warnings.catch_warnings(), rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING=True), MemoryFile(content) as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with file.open(driver="JPEG") as dataset:
                dataset.read()
        except RasterioIOError as error:
            raise SourceError(f"JPEG is damaged: {error.__cause__ or error}; fetch or write it again") from None
