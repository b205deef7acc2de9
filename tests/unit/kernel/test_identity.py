"""Tokens: what is believed, and for how long."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.kernel.errors import ErrorKind, ServiceError
from services.kernel.identity import (
    AccessTokenIssuer,
    JwksVerifier,
    Role,
    ServiceTokenSigner,
    ServiceTokenVerifier,
    generate_private_key,
    private_key_from_text,
    private_key_to_text,
    public_jwk,
    public_key_from_text,
    public_key_to_text,
)
from services.kernel.testing import AccessTokens, FakeClock, ServiceKeys, a_caller

pytestmark = pytest.mark.unit


async def reason(verify: Any, token: str) -> str:
    with pytest.raises(ServiceError) as caught:
        result = verify(token)
        if hasattr(result, "__await__"):
            await result
    assert caught.value.kind in (ErrorKind.UNAUTHENTICATED, ErrorKind.UNAVAILABLE)
    return caught.value.reason


def claims(**changes: Any) -> dict[str, Any]:
    caller = a_caller()
    return {
        "iss": "aiagent",
        "aud": "aiagent-api",
        "sub": str(caller.user_id),
        "org": str(caller.organization_id),
        "email": caller.email,
        "role": "user",
        "iat": 1_767_268_800,
        "exp": 1_767_272_400,
        "jti": "1",
    } | changes


class TestAccessTokens:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def tokens(self, clock: FakeClock) -> AccessTokens:
        return AccessTokens(clock)

    async def test_a_token_names_its_user(self, tokens: AccessTokens, clock: FakeClock) -> None:
        caller = a_caller(role=Role.ADMIN, token_expire_time=clock.now() + timedelta(hours=1))
        for _ in range(2):
            assert await tokens.verifier.verify(tokens.token(caller)) == caller

    async def test_it_expires_by_the_clock_also_when_cached(
        self, tokens: AccessTokens, clock: FakeClock
    ) -> None:
        token = tokens.token(a_caller(), lifetime=timedelta(seconds=90))
        await tokens.verifier.verify(token)
        await clock.advance(89)
        await tokens.verifier.verify(token)
        await clock.advance(1)
        assert await reason(tokens.verifier.verify, token) == "TOKEN_EXPIRED"

    @pytest.mark.parametrize(
        "change",
        [
            {"iss": "somebody"},
            {"aud": "session"},
            {"sub": "x"},
            {"org": None},
            {"role": "root"},
            {"role": ["admin"]},
            {"exp": "soon"},
            {"exp": 1e300},
            {"iat": 1_767_268_800 + 3600},
        ],
    )
    async def test_claims_must_be_right(self, tokens: AccessTokens, change: dict[str, Any]) -> None:
        good = jwt.encode(claims(), tokens.key, algorithm="EdDSA", headers={"kid": "test"})
        await tokens.verifier.verify(good)
        bad = jwt.encode(claims(**change), tokens.key, algorithm="EdDSA", headers={"kid": "test"})
        assert await reason(tokens.verifier.verify, bad) == "TOKEN_INVALID"

    @pytest.mark.parametrize("missing", ["iss", "aud", "sub", "org", "email", "role", "iat", "exp", "jti"])
    async def test_claims_must_be_there(self, tokens: AccessTokens, missing: str) -> None:
        some = claims()
        del some[missing]
        token = jwt.encode(some, tokens.key, algorithm="EdDSA", headers={"kid": "test"})
        assert await reason(tokens.verifier.verify, token) == "TOKEN_INVALID"

    async def test_no_other_algorithm_is_believed(self, tokens: AccessTokens) -> None:
        public = tokens.key.public_key().public_bytes_raw()
        confused = jwt.encode(claims(), public, algorithm="HS256", headers={"kid": "test"})
        unsigned = jwt.encode(claims(), None, algorithm="none", headers={"kid": "test"})
        body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
        head = base64.urlsafe_b64encode(b'{"alg":"EdDSA","kid":"test"}').rstrip(b"=").decode()
        for token in (confused, unsigned, f"{head}.{body}.", f"{head}.{body}.AAAA", "", "..", "\ud800.a.b"):
            assert await reason(tokens.verifier.verify, token) == "TOKEN_INVALID"

    async def test_another_key_under_the_same_id_is_not_believed(self, tokens: AccessTokens) -> None:
        forged = jwt.encode(claims(), generate_private_key(), algorithm="EdDSA", headers={"kid": "test"})
        assert await reason(tokens.verifier.verify, forged) == "TOKEN_INVALID"

    async def test_a_new_key_is_fetched_once_in_five_seconds(self, clock: FakeClock) -> None:
        first, second = generate_private_key(), generate_private_key()
        published = {"keys": [public_jwk(first.public_key(), "1")]}
        fetches = 0

        async def fetch() -> dict[str, Any]:
            nonlocal fetches
            fetches += 1
            return published

        verifier = JwksVerifier(fetch, clock=clock)
        caller = a_caller()

        def token(key: Ed25519PrivateKey, key_id: str) -> str:
            issuer = AccessTokenIssuer(key, key_id, clock=clock)
            return issuer.issue(
                user_id=caller.user_id,
                organization_id=caller.organization_id,
                email="",
                role=Role.USER,
                lifetime=timedelta(hours=1),
            )[0]

        await verifier.verify(token(first, "1"))
        for _ in range(3):
            assert await reason(verifier.verify, token(second, "2")) == "TOKEN_INVALID"
        assert fetches == 1
        published["keys"].append(public_jwk(second.public_key(), "2"))
        await clock.advance(5)
        await verifier.verify(token(second, "2"))
        assert fetches == 2

    async def test_without_keys_it_is_the_service_that_is_unavailable(self, clock: FakeClock) -> None:
        tokens = AccessTokens(clock)
        down = True

        async def fetch() -> Any:
            if down:
                raise ConnectionError
            return await tokens.fetch()

        verifier = JwksVerifier(fetch, clock=clock)
        token = tokens.token(a_caller())
        assert await reason(verifier.verify, token) == "KEYS_UNAVAILABLE"
        down = False
        await verifier.verify(token)

    async def test_old_keys_survive_a_failed_fetch(self, clock: FakeClock) -> None:
        tokens = AccessTokens(clock)
        broken: list[Any] = []

        async def fetch() -> Any:
            return broken[0] if broken else await tokens.fetch()

        verifier = JwksVerifier(fetch, clock=clock)
        await verifier.verify(tokens.token(a_caller()))
        broken.append({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": "???"}]})
        await clock.advance(100)
        unknown = jwt.encode(claims(), generate_private_key(), algorithm="EdDSA", headers={"kid": "x"})
        assert await reason(verifier.verify, unknown) == "TOKEN_INVALID"
        await verifier.verify(tokens.token(a_caller()))


class TestServiceTokens:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def keys(self, clock: FakeClock) -> ServiceKeys:
        return ServiceKeys("session", "scheduler", clock=clock)

    async def test_it_names_the_service_and_whom_it_acts_for(
        self, keys: ServiceKeys, clock: FakeClock
    ) -> None:
        verifier, signer = keys.verifier("executor"), keys.signer("session")
        alone = verifier.verify(signer.sign("executor"))
        assert (alone.service, alone.caller) == ("session", None)
        caller = a_caller(token_expire_time=clock.now() + timedelta(minutes=5))
        for_user = verifier.verify(signer.sign("executor", caller))
        assert for_user.caller is not None
        assert for_user.caller.user_id == caller.user_id
        assert for_user.caller.service == "session"
        assert for_user.caller.token_expire_time == caller.token_expire_time

    async def test_it_is_reused_until_twenty_seconds_before_its_end(
        self, keys: ServiceKeys, clock: FakeClock
    ) -> None:
        signer = keys.signer("session")
        first = signer.sign("executor")
        await clock.advance(39)
        assert signer.sign("executor") == first
        await clock.advance(1)
        assert signer.sign("executor") != first
        assert signer.sign("auth") != signer.sign("executor")

    async def test_it_ends_after_a_minute(self, keys: ServiceKeys, clock: FakeClock) -> None:
        verifier, token = keys.verifier("executor"), keys.signer("session").sign("executor")
        await clock.advance(59)
        verifier.verify(token)
        await clock.advance(1)
        assert await reason(verifier.verify, token) == "TOKEN_EXPIRED"

    async def test_it_does_not_outlive_the_user_it_acts_for(
        self, keys: ServiceKeys, clock: FakeClock
    ) -> None:
        caller = a_caller(token_expire_time=clock.now() + timedelta(seconds=10))
        token = keys.signer("session").sign("executor", caller)
        await clock.advance(10)
        assert await reason(keys.verifier("executor").verify, token) == "TOKEN_EXPIRED"

    async def test_what_is_not_meant_for_us_or_not_trusted_is_refused(
        self, keys: ServiceKeys, clock: FakeClock
    ) -> None:
        verifier = keys.verifier("executor")
        stranger = ServiceTokenSigner("session", generate_private_key(), clock=clock)
        unknown = ServiceTokenSigner("nobody", generate_private_key(), clock=clock)
        own = {"iss": "session", "aud": "executor", "iat": 1_767_268_800, "exp": 1_767_268_860}
        key = keys.private["session"]

        def sign(headers: dict[str, str], **changes: Any) -> str:
            return jwt.encode(own | changes, key, algorithm="EdDSA", headers=headers)

        verifier.verify(sign({"typ": "service"}))
        for token in (
            keys.signer("session").sign("auth"),
            stranger.sign("executor"),
            unknown.sign("executor"),
            sign({}),
            sign({"typ": "service"}, iss="scheduler"),
            sign({"typ": "service"}, exp=own["exp"] + 3600),
            sign({"typ": "service"}, iat=own["iat"] + 3600, exp=own["exp"] + 3600),
            sign({"typ": "service"}, act_as={"sub": "x"}),
            sign({"typ": "service"}, act_as="root"),
            jwt.encode(own, b"x" * 32, algorithm="HS256", headers={"typ": "service"}),
            jwt.encode(own, None, algorithm="none", headers={"typ": "service"}),
            "",
            "a.b.c",
        ):
            assert await reason(verifier.verify, token) == "TOKEN_INVALID"

    async def test_a_user_token_is_no_service_token(self, clock: FakeClock) -> None:
        tokens = AccessTokens(clock)
        verifier = ServiceTokenVerifier({"aiagent": tokens.key.public_key()}, "aiagent-api", clock=clock)
        assert await reason(verifier.verify, tokens.token(a_caller())) == "TOKEN_INVALID"


def test_keys_survive_their_text_form() -> None:
    key = generate_private_key()
    text, public = private_key_to_text(key), public_key_to_text(key.public_key())
    assert len(text) == len(public) == 43
    assert private_key_to_text(private_key_from_text(text)) == text
    assert public_key_to_text(public_key_from_text(public)) == public


@pytest.mark.parametrize("text", ["", "abc", "!" * 43, "A" * 42, "A" * 44, "ü" * 43])
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    for read in (private_key_from_text, public_key_from_text):
        with pytest.raises(ValueError) as caught:
            read(text)
        assert not text or text not in str(caught.value)
