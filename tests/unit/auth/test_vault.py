"""Sealing, keyed hashes, and tokens that follow each other."""

from __future__ import annotations

import base64

import pytest

from services.auth.gateways.vault import SecretVault

pytestmark = pytest.mark.unit


def vault(fill: int = 1) -> SecretVault:
    return SecretVault(base64.urlsafe_b64encode(bytes([fill]) * 32).decode().rstrip("="))


def test_what_is_sealed_opens_under_its_name_and_key_only() -> None:
    sealed = vault().seal(b"secret", "kid-1")
    assert b"secret" not in sealed
    assert vault().open(sealed, "kid-1") == b"secret"
    assert vault().seal(b"secret", "kid-1") != sealed
    for opener, text, name in (
        (vault(), sealed, "kid-2"),
        (vault(2), sealed, "kid-1"),
        (vault(), sealed[:-1] + bytes([sealed[-1] ^ 1]), "kid-1"),
        (vault(), b"\x02" + sealed[1:], "kid-1"),
        (vault(), b"", "kid-1"),
    ):
        with pytest.raises(ValueError, match="AIAGENT_AUTH_ENCRYPTION_KEY"):
            opener.open(text, name)


@pytest.mark.parametrize("secret", ["", "short", "*" * 43, "A" * 86])
def test_a_secret_has_32_bytes(secret: str) -> None:
    with pytest.raises(ValueError, match=r"base64url"):
        SecretVault(secret)


def test_keyed_hashes_depend_on_key_purpose_and_each_part() -> None:
    hashes = [
        vault().keyed_hash("a", "b", "c"),
        vault(2).keyed_hash("a", "b", "c"),
        vault().keyed_hash("x", "b", "c"),
        vault().keyed_hash("a", "bc"),
        vault().keyed_hash("a", "bc", ""),
        vault().keyed_hash("a", "c", "b"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert {len(each) for each in hashes} == {32}
    assert vault().keyed_hash("a", "b", "c") == hashes[0]


def test_a_successor_is_always_the_same_and_needs_the_secret() -> None:
    first = vault().new_refresh_token()
    assert first != vault().new_refresh_token()
    second = vault().successor(first)
    assert second == vault().successor(first)
    assert second != vault(2).successor(first)
    assert vault().successor(second) not in (first, second)
    assert len(first) == len(second) == 5 + 43
