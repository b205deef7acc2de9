"""`client.auth`: accounts and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import auth_service_pb2_grpc
from aiagent.auth.v1.user_pb2 import User
from aiagent_client.connection import Connection
from aiagent_client.credentials import Credentials, CredentialsStore
from aiagent_client.errors import NotLoggedInError
from aiagent_client.tokens import RenewedTokens, credentials_of

if TYPE_CHECKING:
    from aiagent.auth.v1.auth_service_pb2_grpc import AuthServiceAsyncStub


class Auth:
    """Calls of the auth service. All of them raise ApiError."""

    def __init__(self, connection: Connection, store: CredentialsStore) -> None:
        self._connection = connection
        self._store = store
        self._stub: AuthServiceAsyncStub = auth_service_pb2_grpc.AuthServiceStub(connection.channel)

    async def register(
        self, *, email: str, username: str, password: str, full_name: str = "", request_id: str = ""
    ) -> User:
        """Creates an account with a personal organization; log in afterwards.

        Raises AlreadyExistsError with EMAIL_TAKEN or USERNAME_TAKEN, InvalidArgumentError.
        """
        request = pb.RegisterRequest(
            email=email, username=username, password=password, full_name=full_name, request_id=request_id
        )
        return await self._connection.call(self._stub.Register, request, anonymous=True)

    async def login(self, account: str, password: str) -> Credentials:
        """Logs in with an e-mail address or a user name, and stores the tokens.

        Raises UnauthenticatedError with CREDENTIALS_INVALID or ACCOUNT_INACTIVE, ResourceExhaustedError with
        LOGIN_THROTTLED.
        """
        credentials = await self.tokens_for(account, password)
        async with self._store.lock():
            self._store.save(credentials)
        return credentials

    async def tokens_for(self, account: str, password: str) -> Credentials:
        """Logs in and stores nothing. Raises as `login`."""
        request = pb.LoginRequest(password=password)
        if "@" in account:
            request.email = account
        else:
            request.username = account
        # Not repeated: each attempt counts where failed logins are throttled.
        response = await self._connection.call(self._stub.Login, request, anonymous=True, repeatable=False)
        return credentials_of(response, account)

    async def exchange(self, credentials: Credentials) -> Credentials:
        """Exchanges a refresh token for new tokens; the old one has ended. Stores nothing.

        It may be repeated: within 30 s the old token brings the same new ones.
        Raises UnauthenticatedError with REFRESH_TOKEN_INVALID, REFRESH_TOKEN_REUSED or ACCOUNT_INACTIVE.
        """
        request = pb.RefreshTokenRequest(refresh_token=credentials.refresh_token)
        response = await self._connection.call(self._stub.RefreshToken, request, anonymous=True)
        return credentials_of(response, credentials.account)

    async def refresh(self) -> Credentials:
        """Renews the stored tokens now. Calls do so by themselves in time. Raises NotLoggedInError."""
        if not isinstance(self._connection.tokens, RenewedTokens):
            raise NotLoggedInError("an access token that was given from outside cannot be renewed")
        return await self._connection.tokens.renew()

    async def logout(self) -> bool:
        """Revokes the stored login and forgets it, in any case; False when there was none.

        Raises UnavailableError when the server could not be told; the tokens are forgotten all the same.
        """
        async with self._store.lock():
            credentials = self._store.load()
            self._store.clear()
        if credentials is None:
            return False
        request = pb.LogoutRequest(refresh_token=credentials.refresh_token)
        await self._connection.call(self._stub.Logout, request, anonymous=True)
        return True

    async def me(self) -> User:
        """Returns the caller's account."""
        return await self._connection.call(self._stub.GetMe, pb.GetMeRequest())
