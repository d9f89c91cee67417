"""Follow the settings of GDAL for requests in requests that are not sent by GDAL."""

from __future__ import annotations

from sgdata.rasters import geotiff
from sgdata.remote import object_stores
from sgdata.remote.ranges import RangeRetries

CUSTOM = (
    *("GDAL_HTTP_HEADERS", "GDAL_HTTP_HEADER_FILE", "GDAL_HTTP_AUTH", "GDAL_HTTP_USERPWD", "GDAL_HTTP_BEARER"),
    *("GDAL_HTTP_COOKIE", "GDAL_HTTP_COOKIEFILE", "GDAL_HTTP_PROXY", "GDAL_HTTPS_PROXY", "GDAL_HTTP_PROXYUSERPWD"),
    *("GDAL_HTTP_UNSAFESSL", "GDAL_HTTP_SSLCERT", "GDAL_HTTP_SSLKEY", "GDAL_HTTP_CAPATH"),
    *("GDAL_HTTP_NETRC_FILE", "CPL_CURL_GZIP", "GDAL_HTTP_USERAGENT", "CPL_VSIL_CURL_USE_HEAD"),
)
"""Settings of GDAL with which a user wants requests of another kind: all files are left to it."""


def can_request(href: str) -> bool:
    """Return whether files at an address are requested as GDAL would: no setting of its changes requests."""
    from rasterio._env import get_gdal_config
    from requests.utils import get_netrc_auth

    return (
        href.startswith(("http://", "https://", "s3://"))
        and not any(get_gdal_config(name) is not None for name in CUSTOM)
        and object_stores.can_read(href)
        and get_netrc_auth(href) is None
    )


def retries() -> RangeRetries:
    """Return how often requests are repeated: as often as GDAL's, by the same settings."""
    from rasterio._env import get_gdal_config

    def setting(name: str) -> float:
        chosen = get_gdal_config(name)
        return float(geotiff.READING[name] if chosen is None else chosen)

    return RangeRetries(count=int(setting("GDAL_HTTP_MAX_RETRY")), wait_s=setting("GDAL_HTTP_RETRY_DELAY"))
