"""bcrypt in threads: a hash takes about a quarter of a second of CPU by design, and lets go of the interpreter."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from passlib.hash import bcrypt  # type: ignore[import-untyped]

from services.auth.domain.accounts import MAX_PASSWORD_BYTES, fits_bcrypt
from services.auth.usecases.gate import Gate


class BcryptHasher:
    """See `usecases.ports.PasswordHasher`."""

    def __init__(self, *, rounds: int, threads: int, waiting: int) -> None:
        """Args:

        rounds: cost, as a power of two.
        threads: how many hashes are computed at a time.
        waiting: how many more may wait for that.
        """
        self._scheme = bcrypt.using(rounds=rounds)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        self._gate = Gate(threads, waiting)
        # What a password is held against when there is no account: nobody knows a password for it.
        self._nobody: str = self._scheme.hash(secrets.token_urlsafe(32))

    async def hash(self, password: str) -> str:
        """See the port."""
        return await self._compute(lambda: str(self._scheme.hash(password)))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """See the port."""
        against = password_hash or self._nobody
        if fits_bcrypt(password):
            matches = await self._compute(lambda: bool(self._scheme.verify(password, against)))
        else:
            # No account can have it; it takes as long to say so.
            start = password.encode("utf-8")[:MAX_PASSWORD_BYTES]
            await self._compute(lambda: bool(self._scheme.verify(start, self._nobody)))
            matches = False
        return matches and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """See the port."""
        return bool(self._scheme.needs_update(password_hash))

    def close(self) -> None:
        """Ends the threads, without waiting for what they compute."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _compute[T](self, work: Callable[[], T]) -> T:
        async with self._gate:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
