"""Parse foreign URLs: separate signatures, tokens and passwords from the address, and keep them in memory only.

Every address that comes from outside is stored as `remember` returns it, without secrets. What was removed is kept by
this process alone, so that the file can still be opened with `recall`; documents, logs, caches and messages never have
it. Text that may contain addresses, such as the message of another library, passes `redact`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

# Signatures of Azure, AWS, Google and CloudFront, and keys under the names that services give them.
_SIGNATURE = "sig|signature|x-amz-[a-z0-9-]+|x-goog-[a-z0-9-]+|awsaccesskeyid|googleaccessid|key-pair-id"
_TOKEN = (
    r"(?:[a-z0-9]+[_.-])*(?:token|apikey|api-key|api_key|key|secret|jwt|password|passwd|pwd|auth|authorization"
    r"|bearer|credentials?|session|sessionid|sas)"
)
_SECRET = re.compile(f"(?:{_SIGNATURE}|{_TOKEN})", re.IGNORECASE)
# Parameters that say what a signature allows; they mean nothing without it.
_OF_SIGNATURE = frozenset(
    [
        *("st", "se", "sv", "sr", "sp", "spr", "sip", "ss", "srt", "si", "sdd", "ses", "sks", "skt", "ske", "skv"),
        *("skoid", "sktid", "saoid", "suoid", "scid", "expires", "policy"),
    ]
)
_USER = re.compile(r"(?<=://)[^/?#\s\"'<>]*@")
_PAIR = re.compile(r"([?&#]|&amp;|\\u0026)([\w.%~-]+)=[^\s&#\"'<>)\]]*")
_HEADER = re.compile(
    r"\b(authorization|x-api-key)(['\"]?\s*[:=]\s*['\"]?)((?:bearer|basic)\s+)?[^\s,}'\"]+", re.IGNORECASE
)
_ZARR = re.compile(r"[^?#]*\.zarr(?:[/?#]|$)")
_KNOWN: dict[str, str] = {}


def is_http(address: str) -> bool:
    """Return whether an address is that of an HTTP server, rather than a path or a bucket."""
    return address.startswith(("http://", "https://"))


def is_zarr(address: str) -> bool:
    """Return whether an address leads to a Zarr store or into one, by the name of a folder."""
    return bool(_ZARR.match(address))


def without_secrets(url: str) -> str:
    """Return an address without user, password, signature and tokens; paths on disk stay as they are.

    Understands any `scheme://`, also behind GDAL's `/vsicurl/`, and parameters in the query and the fragment.
    """
    if "://" not in url and not url.startswith("/vsi"):
        return url
    address, query, fragment = _parts(_USER.sub("", url))
    return address + _kept("?", query) + _kept("#", fragment)


def _parts(url: str) -> tuple[str, str, str]:
    """Return the address, the query and the fragment; by hand, since `urlsplit` fails on what it cannot parse."""
    rest, _, fragment = url.partition("#")
    address, _, query = rest.partition("?")
    return address, query, fragment


def _kept(mark: str, query: str) -> str:
    """Return the parameters of a query that are no secrets, behind `mark`; "" if none is left."""
    pairs = [(pair.partition("=")[0].lower(), pair) for pair in query.split("&")]
    kept = [(name, pair) for name, pair in pairs if not _is_secret(name)]
    if len(kept) < len(pairs):
        kept = [(name, pair) for name, pair in kept if name not in _OF_SIGNATURE]
    parameters = "&".join(pair for _, pair in kept)
    return mark + parameters if parameters else ""


def has_secrets(text: str) -> bool:
    """Return whether an address in a text has a user, a password, a signature or a token."""
    return redact(text) != text


def remember(url: str) -> str:
    """Return an address without its secrets, which this process keeps for `recall`."""
    shown = without_secrets(url)
    if shown != url:
        _KNOWN[shown] = url
    return shown


def recall(url: str) -> str:
    """Return an address with the secrets that `remember` removed, if this process keeps any for exactly this one."""
    return _KNOWN.get(url, url)


def wanted(href: str) -> str:
    """Return the environment variables with which a user gives credentials to a server."""
    if href.startswith("s3://"):
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return f" (the store requires {keys}, with AWS_REQUEST_PAYER=requester where readers pay)"
    return " (the server may want headers in GDAL_HTTP_HEADERS)" if "://" in href else ""


def joined(url: str, name: str) -> str:
    """Return the address of the file `name` in the folder `url`, in front of a query; of a path on disk, the path."""
    if "://" not in url:
        return f"{url}/{name}"
    address, query, _ = _parts(url)
    return f"{address.rstrip('/')}/{name}" + (f"?{query}" if query else "")


def redact(text: str) -> str:
    """Return a text in which users, passwords, signatures and tokens of addresses are replaced by `***`."""
    if not any(mark in text for mark in "=:@"):  # most texts
        return text
    hidden = _PAIR.sub(_hide, _USER.sub("***@", text))
    return _HEADER.sub(r"\1\2***", hidden)


def _hide(pair: re.Match[str]) -> str:
    # Punctuation at the end is that of the text around the address.
    end = pair[0][len(pair[0].rstrip(":;,.")) :]
    return f"{pair[1]}{pair[2]}=***{end}" if _is_secret(pair[2]) else pair[0]


def _is_secret(name: str) -> bool:
    return bool(_SECRET.fullmatch(unquote(name).strip()))
