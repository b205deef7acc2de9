"""Keys, tokens and callers for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.kernel.clock import Clock
from services.kernel.identity.access_tokens import AccessTokenIssuer, JwksDocument, JwksVerifier, public_jwk
from services.kernel.identity.caller import Caller, Role
from services.kernel.identity.service_tokens import ServiceTokenSigner, ServiceTokenVerifier


def a_caller(
    *,
    user_id: UUID | None = None,
    organization_id: UUID | None = None,
    role: Role = Role.USER,
    token_expire_time: datetime | None = None,
) -> Caller:
    """Returns a caller; random ids where none are given."""
    return Caller(
        user_id=user_id or uuid4(),
        organization_id=organization_id or uuid4(),
        email="somebody@example.com",
        role=role,
        service=None,
        # Whole seconds, as tokens carry them.
        token_expire_time=token_expire_time or datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
    )


class AccessTokens:
    """Plays auth: one key, tokens for callers, and a verifier that knows the key."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Args: clock: of issuer and verifier."""
        self.key = Ed25519PrivateKey.generate()
        self.key_id = "test"
        self.fetches = 0
        self._issuer = AccessTokenIssuer(self.key, self.key_id, clock=clock)
        self.verifier = JwksVerifier(self.fetch, clock=clock)

    async def fetch(self) -> JwksDocument:
        """The key set, as auth publishes it."""
        self.fetches += 1
        return {"keys": [public_jwk(self.key.public_key(), self.key_id)]}

    def token(self, caller: Caller, lifetime: timedelta = timedelta(hours=1)) -> str:
        """Returns an access token for the caller."""
        token, _ = self._issuer.issue(
            user_id=caller.user_id,
            organization_id=caller.organization_id,
            email=caller.email,
            role=caller.role,
            lifetime=lifetime,
        )
        return token

    def metadata(self, caller: Caller) -> tuple[tuple[str, str], ...]:
        """Metadata for a call as this caller."""
        return (("authorization", f"Bearer {self.token(caller)}"),)


class ServiceKeys:
    """A key pair for each named service."""

    def __init__(self, *names: str, clock: Clock | None = None) -> None:
        """Args: names: the services that trust each other."""
        self.private = {name: Ed25519PrivateKey.generate() for name in names}
        self._clock = clock

    @property
    def trust(self) -> dict[str, Ed25519PublicKey]:
        """The public keys."""
        return {name: key.public_key() for name, key in self.private.items()}

    def signer(self, name: str) -> ServiceTokenSigner:
        """The signer of a service."""
        return ServiceTokenSigner(name, self.private[name], clock=self._clock)

    def verifier(self, audience: str) -> ServiceTokenVerifier:
        """What the service `audience` verifies with."""
        return ServiceTokenVerifier(self.trust, audience, clock=self._clock)
