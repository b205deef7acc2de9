"""Who calls: end users by access tokens, services by service tokens of their own."""

from services.kernel.identity.access_tokens import (
    AccessTokenIssuer,
    JwksDocument,
    JwksVerifier,
    public_jwk,
)
from services.kernel.identity.caller import Caller, Role
from services.kernel.identity.keys import (
    generate_private_key,
    private_key_from_text,
    private_key_to_text,
    public_key_from_text,
    public_key_to_text,
)
from services.kernel.identity.service_tokens import ServiceTokenSigner, ServiceTokenVerifier, VerifiedService

__all__ = [
    "AccessTokenIssuer",
    "Caller",
    "JwksDocument",
    "JwksVerifier",
    "Role",
    "ServiceTokenSigner",
    "ServiceTokenVerifier",
    "VerifiedService",
    "generate_private_key",
    "private_key_from_text",
    "private_key_to_text",
    "public_jwk",
    "public_key_from_text",
    "public_key_to_text",
]
