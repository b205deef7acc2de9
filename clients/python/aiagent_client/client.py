"""The client: one channel, one login, the services' calls."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self

from aiagent_client.authentication import Auth
from aiagent_client.connection import DEFAULT_TIMEOUT, DEFAULT_URL, Connection, open_channel, parse_url
from aiagent_client.credentials import CredentialsStore, MemoryCredentials
from aiagent_client.permissions import Permissions
from aiagent_client.runs import Runs
from aiagent_client.schedules import Schedules
from aiagent_client.sessions import Sessions
from aiagent_client.tasks import Tasks
from aiagent_client.tokens import FixedToken, RenewedTokens
from aiagent_client.webhooks import Webhooks
from aiagent_client.workspaces import Workspaces


class Client:
    """A client of one server; use it as `async with Client(...) as client`.

    `url` is `http://host:port` (plain text) or `https://host` (TLS); AIAGENT_URL, else the local suite, if left out.
    Who calls is said in one of three ways: `token`, an access token that somebody else renews; `email` (or a user
    name) and `password`, logged in with the first call; or `credentials`, a store that a login has filled. A
    client without any can register and log in. `timeout` is the seconds a call may take unless it says otherwise.
    Raises InvalidUrlError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        credentials: CredentialsStore | None = None,
        email: str | None = None,
        password: str | None = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        root_certificates: bytes | None = None,
    ) -> None:
        if (email is None) != (password is None):
            raise ValueError("email and password go together")
        address = parse_url(url or os.environ.get("AIAGENT_URL") or DEFAULT_URL)
        self.url = address.url
        store = credentials if credentials is not None else MemoryCredentials()
        self._connection = Connection(open_channel(address, root_certificates), timeout=timeout)
        self.auth = Auth(self._connection, store)
        self.sessions = Sessions(self._connection)
        self.permissions = Permissions(self._connection)
        self.workspaces = Workspaces(self._connection)
        self.tasks = Tasks(self._connection)
        self.schedules = Schedules(self._connection)
        self.runs = Runs(self._connection)
        self.webhooks = Webhooks(self._connection)
        if token is not None:
            self._connection.tokens = FixedToken(token)
        else:
            login = None
            if email is not None and password is not None:
                account, secret = email, password
                login = lambda: self.auth.tokens_for(account, secret)  # noqa: E731
            self._connection.tokens = RenewedTokens(store, refresh=self.auth.exchange, login=login)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls and closes the connection. Turns go on."""
        await asyncio.shield(self._connection.channel.close())
