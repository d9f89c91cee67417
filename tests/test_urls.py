"""Test removal of signatures, tokens and passwords from addresses, and which hosts receive a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.scenes import signing

CANARY = "CANARY5ecret"
SAS = f"st=2024-01-01T10%3A00%3A00Z&se=2024-01-02T10%3A45%3A00Z&sp=rl&sv=2021-06-08&sr=c&sig={CANARY}%3D"
AWS = f"X-Amz-Algorithm=AWS4&X-Amz-Credential={CANARY}%2F2024&X-Amz-Expires=3600&X-Amz-Signature={CANARY}"
GOOGLE = f"X-Goog-Credential={CANARY}&X-Goog-Signature={CANARY}"
SIGNED = {
    f"https://a.blob.core.windows.net/b/x.tif?{SAS}": "https://a.blob.core.windows.net/b/x.tif",
    f"https://s3.example/x.tif?{AWS}": "https://s3.example/x.tif",
    f"https://s3.example/x.tif?versionId=3&{AWS.lower()}": "https://s3.example/x.tif?versionId=3",
    f"https://g.example/x.tif?{GOOGLE}&alt=media": "https://g.example/x.tif?alt=media",
    f"https://h/x?AWSAccessKeyId={CANARY}&Signature={CANARY}&Expires=17": "https://h/x",
    f"https://h/x?Policy=eyJ&Key-Pair-Id={CANARY}&Signature={CANARY}": "https://h/x",
    f"https://user:{CANARY}@h:8080/x.tif": "https://h:8080/x.tif",
    f"https://{CANARY}@h/x.tif?a=1": "https://h/x.tif?a=1",
    f"https://h/x?token={CANARY}&page=2": "https://h/x?page=2",
    f"https://h/x?access_token={CANARY}": "https://h/x",
    f"https://h/x?api_key={CANARY}&q=a": "https://h/x?q=a",
    f"https://h/x?subscription-key={CANARY}": "https://h/x",
    f"https://h/x?%74oken={CANARY}": "https://h/x",
    f"https://h/x#access_token={CANARY}": "https://h/x",
    f"s3://{CANARY}:{CANARY}@bucket/x": "s3://bucket/x",
    f"/vsicurl/https://user:{CANARY}@h/x.tif?{SAS}": "/vsicurl/https://h/x.tif",
    f"http://[::1/x?sig={CANARY}": "http://[::1/x",
}
PLAIN = (
    *("/disk/x.tif", "a/b.tif", "s3://bucket/key.tif", "https://h/x.tif", "https://h/x.tif?a=1&b=2#top"),
    *("https://h/cog?url=x&st=2&sr=1", "https://h/~user/x@2x.png", "C:\\disk\\x.tif", "/vsizip/a.zip/x.tif"),
)


@pytest.mark.parametrize("url", SIGNED)
def test_secrets_are_removed_and_known_to_this_process_only(url: str) -> None:
    assert urls.without_secrets(url) == SIGNED[url]
    assert urls.has_secrets(url)
    assert urls.remember(url) == SIGNED[url]
    assert urls.recall(SIGNED[url]) == url


@pytest.mark.parametrize("url", PLAIN)
def test_other_addresses_stay_as_they_are(url: str) -> None:
    assert urls.without_secrets(url) == url == urls.recall(url)
    assert not urls.has_secrets(url)


@given(st.text(max_size=80))
def test_removing_secrets_from_any_address_is_idempotent(text: str) -> None:
    for url in (text, f"https://{text}", f"https://h/{text}?{text}#{text}"):
        once = urls.without_secrets(url)
        assert urls.without_secrets(once) == once


@pytest.mark.parametrize("url", SIGNED)
def test_messages_have_no_secrets(url: str) -> None:
    relative = url.partition("://")[2].partition("/")[2]
    message = f"cannot be read: Max retries exceeded with url: /{relative} (Caused by <{url}>: '{url}')"
    for text in (urls.redact(message), str(SourceError(message)), str(SourceError(f"{url}: 403"))):
        assert CANARY not in text
    assert urls.redact(f"https://h/x.tif?sig={CANARY}: cannot be read") == "https://h/x.tif?sig=***: cannot be read"
    assert CANARY not in urls.redact(f"headers: Authorization: Bearer {CANARY}.{CANARY}")
    assert CANARY not in urls.redact(f"{{'X-Api-Key': '{CANARY}'}}")


@pytest.mark.parametrize(
    "text",
    [
        "--set KEY=VALUE", "tag 'key=value'; expected key=value", "a: b", "https://h/x.tif?a=1: cannot be read",
        "mask.method is 'x'; give --masks DIR", "2024-01-01T10:00:00Z", "user@example.org", "basic settings",
    ],
)  # fmt: skip
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert urls.redact(text) == text


def test_a_name_is_joined_in_front_of_the_query() -> None:
    assert urls.joined("https://h/dir/?sig=x", "a.tar") == "https://h/dir/a.tar?sig=x"
    assert urls.joined("s3://b/dir", "a.tar") == "s3://b/dir/a.tar"


def test_tokens_go_only_to_the_hosts_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def give(url: str) -> tuple[float, str]:
        asked.append(url)
        return 4e9, f"sig={CANARY}"

    monkeypatch.setattr(signing, "_request_token", give)
    service = "https://tokens.example/v1"
    for stranger in (
        "https://evil.example/box/x.tif", "https://store.blob.core.windows.net.evil.example/box/x.tif",
        "https://evil.example/store.blob.core.windows.net/x.tif", "https://evilblob.core.windows.net@evil.example/b/x",
        "ftp://store.blob.core.windows.net/box/x.tif",
    ):  # fmt: skip
        assert signing.sign(stranger, service) == stranger
    assert not asked
    assert CANARY in signing.sign("https://store2.blob.core.windows.net/box/x.tif", service)
    assert CANARY in signing.sign("https://tokens.example/box/x.tif", service)


def test_an_old_signature_of_a_known_store_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "_request_token", lambda url: (4e9, "sig=new"))
    href = urls.remember("https://store3.blob.core.windows.net/box/x.tif?sig=old")
    assert signing.sign(href, "https://tokens.example/v1").endswith("?sig=new")
    # Of a service that is unknown, the catalogue's own signature is used, to exactly this address.
    other = urls.remember("https://private.example/x.tif?sig=old")
    assert signing.sign(other, "") == "https://private.example/x.tif?sig=old"
    assert signing.sign("https://private.example/y.tif", "") == "https://private.example/y.tif"
