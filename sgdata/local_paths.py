"""Refuse addresses where a path on this machine is expected."""

from __future__ import annotations

import re

from sgdata.errors import SettingError

# `Path` makes s3:/bucket of s3://bucket; one letter is a drive of Windows.
_REMOTE = re.compile(r"(?:([a-z][a-z0-9+.-]+):/|/vsi([a-z0-9_]+)/)", re.IGNORECASE)
_COPY = {
    "s3": "aws s3 cp --recursive",
    "gs": "gcloud storage cp --recursive",
    **dict.fromkeys(("az", "abfs", "abfss", "wasb", "wasbs"), "azcopy copy --recursive"),
    **dict.fromkeys(("http", "https", "ftp"), "curl -O"),
}


def require_local(text: str, what: str, *, writes: bool) -> None:
    """Raise SettingError if a path is the address of another machine, of which `Path` would make a local folder `s3:`.

    Args:
        text: Path as the user gave it.
        what: Option or setting, for the message.
        writes: Whether files are written to the path.
    """
    match = _REMOTE.match(text)
    if match is None:
        return
    from sgdata import urls  # not at the top: only messages need it

    scheme, shown = (match[1] or match[2]).lower(), urls.without_secrets(text)
    advice = "give the path without file://"
    if scheme != "file":
        command = _COPY.get(scheme, "")
        if writes and command.startswith("curl"):  # which only reads
            command = ""
        how = f" (such as {command})" if command else ""
        advice = "give a local folder and copy it there afterwards" if writes else "copy it to this machine first"
        advice += f"{how}, or mount it"
    raise SettingError(f"{what} {shown!r:.200}: is an address, expected a local path; {advice}")
