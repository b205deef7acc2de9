"""Keys of a service, and what is sealed with them."""

from __future__ import annotations

import pytest

from services.kernel.identity.keys import base64url_encode
from services.kernel.sealing import KeyRing

pytestmark = pytest.mark.unit


def ring(fill: bytes = b"k", service: str = "auth") -> KeyRing:
    return KeyRing(base64url_encode(fill * 32), service=service)


def test_what_is_sealed_opens_under_its_name_and_key_only() -> None:
    sealed = ring().sealer().seal(b"secret", "a")
    assert b"secret" not in sealed
    assert ring().sealer().open(sealed, "a") == b"secret"
    for other, text, name in (
        (ring(b"x"), sealed, "a"),
        (ring(service="scheduler"), sealed, "a"),
        (ring(), sealed, "b"),
        (ring(), b"\x02" + sealed[1:], "a"),
        (ring(), b"", "a"),
    ):
        with pytest.raises(ValueError, match="_ENCRYPTION_KEY"):
            other.sealer().open(text, name)


def test_keys_differ_by_purpose_service_and_secret() -> None:
    keys = {
        ring().derive("seal"), ring().derive("other"), ring(b"x").derive("seal"),
        ring(service="scheduler").derive("seal"),
    }  # fmt: skip
    assert len(keys) == 4
    assert ring().derive("seal") in keys


def test_keys_stay_what_they_were() -> None:
    # What lies sealed in databases rests on it.
    assert ring().derive("seal").hex() == "d368604e408835bc06feccc4e5c85620879a36a5392399cb9becd68dbcd49e8b"


@pytest.mark.parametrize("secret", ["", "short", "A" * 86])
def test_a_secret_has_32_bytes(secret: str) -> None:
    with pytest.raises(ValueError, match="AIAGENT_SCHEDULER_ENCRYPTION_KEY"):
        KeyRing(secret, service="scheduler")
