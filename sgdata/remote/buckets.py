"""Read documents in buckets (s3, gs) with the user's settings of GDAL and Amazon's tools, as rasters are.

Rasters are read by GDAL or obstore, documents by Arrow, which takes the same stores and credentials. Of files in `az`
the HTTPS address is given.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sgdata import urls
from sgdata.limits import Limit

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SHARED_CREDENTIALS_FILE"),
)
ENDPOINTS = {"eodata": "https://eodata.dataspace.copernicus.eu"}
"""Address of the store of a bucket that is not at Amazon: that of the Copernicus Data Space."""
CONNECT_S, RETRY_S = 20, 60
_NO = {"NO", "FALSE", "OFF", "0"}


def s3_options(href: str) -> dict[str, str]:
    """Return GDAL's options for the store of a bucket, some from settings of Amazon's tools.

    Args:
        href: `s3://`, then bucket and key.
    """
    environment = os.environ
    signs = any(name in environment for name in CREDENTIALS) or Path("~/.aws/credentials").expanduser().is_file()
    options = {"AWS_NO_SIGN_REQUEST": "NO" if signs else "YES"}
    if "AWS_SHARED_CREDENTIALS_FILE" in environment:
        options["CPL_AWS_CREDENTIALS_FILE"] = environment["AWS_SHARED_CREDENTIALS_FILE"]
    known = ENDPOINTS.get(urlsplit(href).netloc, "")
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or known:
        scheme, host = urlsplit(endpoint)[:2]
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": "NO" if scheme == "http" else "YES"}
        options["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return options


def read_object(href: str, limit: Limit) -> bytes:
    """Read a small file in a bucket of Amazon's or Google's kind.

    Args:
        href: `s3://` or `gs://`, then bucket and key.
        limit: Most bytes.

    Raises:
        SourceError: It is larger.
        OSError: It cannot be read.
        ValueError: The settings of the store are invalid.
    """
    scheme, bucket, path = urlsplit(href)[:3]
    store = _s3(href) if scheme == "s3" else _gs()
    with store.open_input_stream(bucket + path) as stream:
        content: bytes = stream.read(limit.most + 1)
    limit.check(len(content), urls.without_secrets(href))
    return content


def open_object(href: str) -> NativeFile:
    """Open a file in a bucket of Amazon's or Google's kind, to read parts of it. Errors are as of `read_object`."""
    scheme, bucket, path = urlsplit(href)[:3]
    if scheme == "az":
        raise ValueError("parts of files in az:// are not read; give their https:// addresses")
    store = _s3(href) if scheme == "s3" else _gs()
    return store.open_input_file(bucket + path)


def _s3(href: str) -> FileSystem:
    options = s3_options(href)
    endpoint = _setting("AWS_S3_ENDPOINT", options)
    region = _setting("AWS_REGION") or _setting("AWS_DEFAULT_REGION")
    anonymous = _setting("AWS_NO_SIGN_REQUEST", options).upper() not in _NO
    keys = ("access_key", "secret_key", "session_token")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    given = {key: value for key, name in zip(keys, names, strict=True) if (value := _setting(name))}
    return _store(
        "S3FileSystem",
        **({} if anonymous else given),
        anonymous=anonymous,
        # Elsewhere than at Amazon the region has no meaning, and cannot be asked for.
        region=region or ("us-east-1" if endpoint else _region(urlsplit(href).netloc)),
        endpoint_override=endpoint or None,
        scheme="http" if _setting("AWS_HTTPS", options).upper() in _NO else "https",
        connect_timeout=CONNECT_S,
    )


def obstore_config(href: str) -> dict[str, Any] | None:
    """Return how obstore reads a bucket of Amazon's kind with the same settings.

    Returns:
        Its configuration; None where credentials are of a kind that GDAL alone reads, such as profiles and roles.
    """
    options = s3_options(href)
    config: dict[str, Any] = {"skip_signature": _setting("AWS_NO_SIGN_REQUEST", options).upper() not in _NO}
    if not config["skip_signature"]:
        names = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        config |= {key: _setting(name) for key, name in names.items()}
        if not (config["access_key_id"] and config["secret_access_key"]):
            return None
        if token := _setting("AWS_SESSION_TOKEN"):
            config["session_token"] = token
    if _setting("AWS_REQUEST_PAYER").lower() == "requester":
        config["request_payer"] = True
    endpoint = _setting("AWS_S3_ENDPOINT", options)
    hosted = _setting("AWS_VIRTUAL_HOSTING", options).upper() not in _NO
    region = _setting("AWS_REGION") or _setting("AWS_DEFAULT_REGION")
    if endpoint:
        scheme = "http" if _setting("AWS_HTTPS", options).upper() in _NO else "https"
        if hosted:  # obstore wants the bucket in the address then
            return None
        config |= {"endpoint": f"{scheme}://{endpoint}", "virtual_hosted_style_request": False}
    return {**config, "region": region or ("us-east-1" if endpoint else _region(urlsplit(href).netloc))}


@lru_cache(maxsize=256)
def _region(bucket: str) -> str:
    from pyarrow import fs

    region: str = fs.resolve_s3_region(bucket)
    return region


def _gs() -> FileSystem:
    known = Path("~/.config/gcloud/application_default_credentials.json").expanduser().is_file()
    signs = "GOOGLE_APPLICATION_CREDENTIALS" in os.environ or known
    scheme, host = urlsplit(_setting("CPL_GS_ENDPOINT"))[:2]
    return _store(
        "GcsFileSystem",
        anonymous=_setting("GS_NO_SIGN_REQUEST", {"GS_NO_SIGN_REQUEST": "NO" if signs else "YES"}).upper() not in _NO,
        endpoint_override=host or None,
        scheme=scheme or None,
        retry_time_limit=timedelta(seconds=RETRY_S),
    )


def blob_url(href: str) -> str:
    """Return the URL of an `az://` file, with the user's shared access signature. Raises ValueError without account."""
    parts = (part.partition("=") for part in _setting("AZURE_STORAGE_CONNECTION_STRING").split(";"))
    known = {name: value for name, _, value in parts}
    account = known.get("AccountName") or _setting("AZURE_STORAGE_ACCOUNT")
    endpoint = known.get("BlobEndpoint") or (account and f"https://{account}.blob.core.windows.net")
    if not endpoint:
        raise ValueError("no account is named; set AZURE_STORAGE_ACCOUNT, with AZURE_STORAGE_SAS_TOKEN where it signs")
    token = known.get("SharedAccessSignature") or _setting("AZURE_STORAGE_SAS_TOKEN")
    url = f"{endpoint.rstrip('/')}/{href.removeprefix('az://')}"
    return f"{url}?{token.removeprefix('?')}" if token else url


def _setting(name: str, defaults: dict[str, str] | None = None) -> str:
    """Return an option of the environment, else of GDAL's configuration, else its default; "" without one."""
    from rasterio._env import get_gdal_config

    value = os.environ.get(name)
    if value is None:
        value = get_gdal_config(name)
    if isinstance(value, bool):  # rasterio's reading of YES and NO
        return "YES" if value else "NO"
    return (defaults or {}).get(name, "") if value is None else str(value)


@lru_cache(maxsize=16)
def _store(kind: str, **options: Any) -> FileSystem:
    """Return the file system of one store, connected once per process."""
    from pyarrow import fs

    store: FileSystem = getattr(fs, kind)(**options)
    return store
