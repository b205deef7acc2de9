"""AuthService: proto in, use case, proto out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import auth_service_pb2_grpc, user_pb2
from services.auth.api.client import client_of
from services.auth.domain.accounts import User
from services.auth.usecases.accounts import GetMe, Register, Registration
from services.auth.usecases.signing_keys import SigningKeys
from services.auth.usecases.tokens import Login, Logout, Refresh, Tokens
from services.kernel.context import current_caller
from services.kernel.grpc import PUBLIC, USER, MethodPolicy
from services.kernel.identity.caller import Role

type Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE: Final = "/aiagent.auth.v1.AuthService"
POLICIES: Final[dict[str, MethodPolicy]] = {
    f"{_SERVICE}/Register": PUBLIC,
    f"{_SERVICE}/Login": PUBLIC,
    f"{_SERVICE}/RefreshToken": PUBLIC,
    f"{_SERVICE}/Logout": PUBLIC,
    f"{_SERVICE}/GetMe": USER,
    f"{_SERVICE}/GetJwks": PUBLIC,
}
_BEARER: Final = "bearer"
_ROLES: Final = {
    Role.ADMIN: user_pb2.User.ADMIN,
    Role.USER: user_pb2.User.USER,
    Role.VIEWER: user_pb2.User.VIEWER,
}


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the service can do."""

    register: Register
    login: Login
    refresh: Refresh
    logout: Logout
    get_me: GetMe
    keys: SigningKeys


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """See auth_service.proto."""

    def __init__(self, use_cases: UseCases, trusted_hops: int) -> None:
        """Args: trusted_hops: see `client_of`."""
        self._do = use_cases
        self._trusted_hops = trusted_hops

    async def Register(self, request: pb.RegisterRequest, context: Context) -> user_pb2.User:
        user = await self._do.register(
            Registration(
                email=request.email,
                username=request.username,
                password=request.password,
                full_name=request.full_name,
                request_id=request.request_id,
            )
        )
        return _user(user)

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.LoginResponse:
        tokens = await self._do.login(
            email=request.email,
            username=request.username,
            password=request.password,
            client=client_of(context, self._trusted_hops),
        )
        return pb.LoginResponse(**_fields(tokens))

    async def RefreshToken(
        self, request: pb.RefreshTokenRequest, context: Context
    ) -> pb.RefreshTokenResponse:
        tokens = await self._do.refresh(request.refresh_token, client_of(context, self._trusted_hops))
        return pb.RefreshTokenResponse(**_fields(tokens))

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        await self._do.logout(request.refresh_token)
        return pb.LogoutResponse()

    async def GetMe(self, request: pb.GetMeRequest, context: Context) -> user_pb2.User:
        return _user(await self._do.get_me(current_caller()))

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.GetJwksResponse:
        key_set = await self._do.keys.key_set()
        return pb.GetJwksResponse(keys=[user_pb2.JsonWebKey(**key) for key in key_set["keys"]])


def _fields(tokens: Tokens) -> dict[str, Any]:
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "token_type": _BEARER,
        "expires_in": tokens.expires_in,
        "refresh_expires_in": tokens.refresh_expires_in,
    }


def _user(user: User) -> user_pb2.User:
    message = user_pb2.User(
        id=str(user.id),
        email=user.email,
        username=user.username,
        full_name=user.full_name,
        role=_ROLES[user.role],
        organization_id=str(user.organization_id),
        active=user.active,
    )
    message.create_time.FromDatetime(user.create_time)
    message.update_time.FromDatetime(user.update_time)
    return message
