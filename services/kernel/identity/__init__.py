"""Who calls: verified users and services."""

from services.kernel.identity.caller import Caller, Role
from services.kernel.identity.service_tokens import ServiceTokenSigner, ServiceTokenVerifier
from services.kernel.identity.user_tokens import JwksVerifier

__all__ = ["Caller", "JwksVerifier", "Role", "ServiceTokenSigner", "ServiceTokenVerifier"]
