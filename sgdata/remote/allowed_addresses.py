"""Decide which files and hosts a catalogue, lock or list may name: every foreign address passes through `admit`.

A document from elsewhere must not choose files of this machine or servers of its network. A catalogue on disk may name
files below its own folder and any server; a remote one may name servers only, and those of the local network only if
the user named them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sgdata.errors import SourceError

REMOTE = re.compile(r"(https?|s3|gs|az)://([^/?#]*)(?:[/?#]|$)")
"""Addresses that a remote document may name: scheme and authority."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ARCHIVE = re.compile(r"(?:/vsi(?:zip|tar|gzip)/|(?:zip|tar|gzip)(?:\+file)?://)")
"""Prefixes by which GDAL and rasterio open a file inside a local archive."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Addresses that the documents of one source may name.

    Attributes:
        root: Folder below which files may be named; None: no files.
        hosts: Hosts that the user named, which may be on the local network.
        private: Whether any host of the local network may be named.
    """

    root: str | None = None
    hosts: tuple[str, ...] = ()
    private: bool = False


def access_of(address: str, *, allow_private_hosts: bool = False) -> Access:
    """Return what a catalogue or service may name.

    Args:
        address: URL, or path of a file or folder, that the user gave.
        allow_private_hosts: Admit hosts of the local network that a remote source names.
    """
    if REMOTE.match(address):
        return Access(hosts=(host_of(address),), private=allow_private_hosts)
    path = Path(address)
    # The files of a user may name the user's own servers.
    return Access(root=str((path if path.is_dir() else path.parent).resolve()), private=True)


def admit(href: str, access: Access, *, base: str = "") -> str:
    """Return the address to open for an href.

    Args:
        href: As a document names it.
        access: What that document may name.
        base: Folder that relative paths start from; "" is the root of the access.

    Returns:
        The URL as it is, or an absolute path without symbolic links.

    Raises:
        SourceError: The href names anything else.
    """
    if remote := REMOTE.match(href):
        is_bucket = remote[1] not in {"http", "https"}
        named = _BUCKET.fullmatch(remote[2]) if is_bucket else host_of(href)
        if not named or any(character <= " " for character in href):
            raise SourceError(f"{_shown(href)}: is no valid address; leave it out")
        return href
    if access.root is None:
        raise SourceError(
            f"{_shown(href)}: a remote catalogue names something other than http(s), s3, gs or az; leave the item out"
        )
    archive = _ARCHIVE.match(href)
    prefix = archive[0] if archive else ""
    path = href.removeprefix(prefix).removeprefix("file://")
    root = Path(access.root)
    try:
        # An href is a URL, in which a blank is %20; but many write paths.
        if "%" in path and not (Path(base or root) / path).exists():
            path = unquote(path)
        resolved = (Path(base or root) / path).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL byte, too long a name, links in a circle
        raise SourceError(f"{_shown(href)}: is no valid path; leave the item out") from None
    # Inside an archive nothing but members can be named: no second prefix, no braces that hide one.
    nested = path.startswith("/vsi") or "://" in path or "/vsi" in path or (prefix and "{" in path)
    if nested or not resolved.is_relative_to(root):
        raise SourceError(f"{_shown(href)}: is outside {root}, the folder of its catalogue; move it there")
    return f"{prefix}{resolved}"


def relative(href: str, root: str) -> str:
    """Return the path of a local href, also inside an archive, from the folder `root`; URLs stay as they are."""
    archive = _ARCHIVE.match(href)
    prefix = archive[0] if archive else ""
    path = href.removeprefix(prefix)
    if "://" in path or (prefix and not os.path.isabs(path)):  # noqa: PTH117
        return href
    return prefix + Path(os.path.relpath(path, root)).as_posix()


def host_of(url: str) -> str:
    """Return the host of a URL in lower case, "" if it has none or an invalid one."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def check_host(url: str, access: Access) -> None:
    """Raise SourceError if a URL leads to the local network and its source may not name that; names are resolved."""
    host = host_of(url)
    if access.private or not url.startswith(("http://", "https://")) or host in access.hosts:
        return
    addresses = _addresses(host)
    private = {address for address in addresses if _is_private(address)}
    # A server that the user named by one name may call itself by another.
    typed = {address for name in access.hosts for address in _addresses(name)}
    if private - typed:
        raise SourceError(
            f"{_shown(url)}: {host} is {min(private)}, an address of this machine or network, named by a source "
            "elsewhere; give --allow-private-hosts to trust it"
        )


@lru_cache(maxsize=1024)
def _addresses(host: str) -> frozenset[str]:
    """Return the IP addresses of a host; none if it cannot be resolved, as behind a proxy, or it is no valid name."""
    try:
        return frozenset(str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return frozenset()


def _is_private(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_private(str(inner))
    return not address.is_global or address.is_multicast


def _shown(href: str) -> str:
    """Return an href for a message: without its query, which may be a signature."""
    text = "".join(character if character.isprintable() else "?" for character in href.partition("?")[0])
    return text[:200] or os.fspath("''")
