"""Which callers a method takes. A method that no table names takes nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """Who may call a method.

    Attributes:
        public: Anyone, without a token.
        user: End users.
        services: These services, for themselves or in a user's place.
    """

    public: bool = False
    user: bool = False
    services: frozenset[str] = frozenset()


PUBLIC = MethodPolicy(public=True)
USER = MethodPolicy(user=True)


def user_or(*services: str) -> MethodPolicy:
    """End users, and these services in a user's place."""
    return MethodPolicy(user=True, services=frozenset(services))


def services(*names: str) -> MethodPolicy:
    """These services only."""
    return MethodPolicy(services=frozenset(names))


Policies = Mapping[str, MethodPolicy]
"""By full method name, as in `/aiagent.auth.v1.AuthService/Login`."""

BUILT_IN: Policies = {
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": PUBLIC,
}
