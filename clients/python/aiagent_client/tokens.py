"""The access token of a client: read from its store, renewed before it expires, once for all who wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aiagent_client.credentials import Credentials, CredentialsStore
from aiagent_client.errors import NotLoggedInError, UnauthenticatedError, UnavailableError

# An access token is renewed this long before its end, or, when it is short-lived, in the last part of its life.
_MARGIN_SECONDS: Final = 60.0
_MARGIN_PART: Final = 0.2


class TokenResponse(Protocol):
    """What logging in and refreshing answer with."""

    @property
    def access_token(self) -> str: ...
    @property
    def refresh_token(self) -> str: ...
    @property
    def expires_in(self) -> int: ...
    @property
    def refresh_expires_in(self) -> int: ...


def credentials_of(response: TokenResponse, account: str) -> Credentials:
    """Returns what to store of a server's answer."""
    now = time.time()
    return Credentials(
        access_token=response.access_token,
        refresh_token=response.refresh_token,
        renew_time=now + response.expires_in - min(_MARGIN_SECONDS, _MARGIN_PART * response.expires_in),
        expire_time=now + response.expires_in,
        refresh_expire_time=now + response.refresh_expires_in,
        account=account,
    )


class TokenSource(Protocol):
    """Where calls get their access token from."""

    async def token(self, rejected: str | None = None) -> str:
        """Returns an access token, another one than the `rejected` one.

        Raises NotLoggedInError when there is none to be had.
        """


@dataclass(frozen=True, slots=True)
class FixedToken:
    """A token given from outside; it cannot be renewed."""

    value: str

    async def token(self, rejected: str | None = None) -> str:
        """Returns the token. Raises NotLoggedInError when the server refused it."""
        if rejected is not None:
            raise NotLoggedInError("the server refused the access token that was given")
        return self.value


class RenewedTokens:
    """Tokens of a store, renewed by refresh token or, where that is refused, by logging in again."""

    def __init__(
        self,
        store: CredentialsStore,
        *,
        refresh: Callable[[Credentials], Awaitable[Credentials]],
        login: Callable[[], Awaitable[Credentials]] | None = None,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._login = login
        self._renewal: asyncio.Task[Credentials] | None = None

    async def token(self, rejected: str | None = None) -> str:
        """Returns a valid access token.

        `rejected` is a token that the server has just refused. Raises NotLoggedInError, UnavailableError.
        """
        stored = self._store.load()
        if stored is not None and stored.access_token != rejected and stored.renew_time > time.time():
            return stored.access_token
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew(rejected))
        # Shielded: a caller that goes away must not stop a renewal others wait for, nor lose the new refresh token.
        return (await asyncio.shield(self._renewal)).access_token

    async def renew(self) -> Credentials:
        """Renews now, whatever the token's age. Raises as `token`."""
        stored = self._store.load()
        await self.token(rejected=stored.access_token if stored is not None else None)
        renewed = self._store.load()
        if renewed is None:
            raise NotLoggedInError("not logged in")
        return renewed

    async def _renew(self, rejected: str | None) -> Credentials:
        async with self._store.lock():
            # Another process may have renewed while this one waited for the lock.
            stored = self._store.load()
            if stored is not None and stored.access_token != rejected and stored.renew_time > time.time():
                return stored
            renewed: Credentials | None = None
            if stored is not None and stored.refresh_token and stored.refresh_expire_time > time.time():
                try:
                    renewed = await self._refresh(stored)
                except UnauthenticatedError as error:
                    if self._login is None:
                        self._store.clear()
                        raise NotLoggedInError(f"the login has ended: {error.message}") from error
                except UnavailableError:
                    if stored.access_token != rejected and stored.expire_time > time.time():
                        # Early renewal can wait: the token in hand still works.
                        return stored
                    raise
            if renewed is None:
                if self._login is None:
                    raise NotLoggedInError("not logged in" if stored is None else "the login has expired")
                renewed = await self._login()
            self._store.save(renewed)
            return renewed
