"""Who may call which method: a table from method to policy. A method that is not in the table is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from services.kernel import context
from services.kernel.errors import permission_denied, unauthenticated
from services.kernel.identity.caller import Caller
from services.kernel.identity.keys import base64url_decode
from services.kernel.identity.service_tokens import TOKEN_TYPE, ServiceTokenVerifier

_BEARER: Final = "bearer "
_MAX_TOKEN_CHARACTERS: Final = 8192


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """Who may call a method.

    Args:
        public: anybody; tokens are not looked at.
        users: end users, and the services below on their behalf.
        services: these services.
    """

    public: bool = False
    users: bool = False
    services: frozenset[str] = frozenset()


PUBLIC: Final = MethodPolicy(public=True)
USER: Final = MethodPolicy(users=True)


def services(*names: str) -> MethodPolicy:
    """Only these services; they may or may not act for a user."""
    return MethodPolicy(services=frozenset(names))


def user_or_services(*names: str) -> MethodPolicy:
    """End users, and these services when they act for one."""
    return MethodPolicy(users=True, services=frozenset(names))


class UserVerifier(Protocol):
    """What verifies access tokens; `identity.JwksVerifier` does."""

    async def verify(self, token: str) -> Caller:
        """Returns the end user, or raises ServiceError UNAUTHENTICATED."""
        ...


class Authenticator:
    """Checks the `authorization` of a call against its policy."""

    def __init__(
        self,
        policies: Mapping[str, MethodPolicy],
        *,
        users: UserVerifier | None,
        services: ServiceTokenVerifier | None,
    ) -> None:
        """Args: policies: by `/package.Service/Method`; users, services: None where no such caller is known."""
        self._policies = dict(policies)
        self._users = users
        self._services = services

    async def authenticate(self, method: str, authorization: str) -> None:
        """Sets `context.caller` and `context.service` for the current task.

        Raises:
            ServiceError: UNAUTHENTICATED (TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED) or PERMISSION_DENIED
                (CALLER_NOT_ALLOWED).
        """
        policy = self._policies.get(method)
        if policy is not None and policy.public:
            return
        if not authorization:
            raise unauthenticated("TOKEN_MISSING", "an access token is needed")
        token = authorization[len(_BEARER) :].strip()
        if (
            not authorization[: len(_BEARER)].lower() == _BEARER
            or not 0 < len(token) <= _MAX_TOKEN_CHARACTERS
        ):
            raise unauthenticated("TOKEN_INVALID", "the authorization is not a bearer token")
        if _is_service_token(token):
            self._service(policy, token)
        else:
            await self._user(policy, token)

    def _service(self, policy: MethodPolicy | None, token: str) -> None:
        if self._services is None:
            raise unauthenticated("TOKEN_INVALID", "no service may call here")
        verified = self._services.verify(token)
        allowed = policy is not None and verified.service in policy.services
        if not allowed or (policy is not None and policy.users and verified.caller is None):
            raise permission_denied("CALLER_NOT_ALLOWED", "this service may not call this method")
        context.service.set(verified.service)
        context.caller.set(verified.caller)

    async def _user(self, policy: MethodPolicy | None, token: str) -> None:
        if self._users is None:
            raise unauthenticated("TOKEN_INVALID", "no user may call here")
        caller = await self._users.verify(token)
        if policy is None or not policy.users:
            raise permission_denied("CALLER_NOT_ALLOWED", "this method is not for users")
        context.caller.set(caller)


def _is_service_token(token: str) -> bool:
    return _type_of(token.partition(".")[0]) == TOKEN_TYPE


@lru_cache(maxsize=256)
def _type_of(header: str) -> object:
    # Only chooses the verifier; each of them trusts its own keys alone. The header is the same in all tokens of a key.
    try:
        content = json.loads(base64url_decode(header))
    except (ValueError, RecursionError):
        return None
    return content.get("typ") if isinstance(content, dict) else None
