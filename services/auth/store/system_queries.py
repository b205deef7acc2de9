"""The queries of the system role: the only ones that are made without a verified caller.

They serve whoever is not known yet (registering, logging in, refreshing) and the service's own work. Each is a method
of `SystemQueries`; a test lists them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.domain.accounts import Credentials, NewAccount, User
from services.auth.domain.errors import email_taken, username_taken
from services.auth.domain.refresh import RefreshToken
from services.auth.domain.signing import SigningKey
from services.auth.domain.throttle import KNOWN_ADDRESS_FOR, Bucket
from services.auth.store.rows import USER_COLUMNS, user_of
from services.auth.store.tables import (
    idempotency_keys,
    login_failures,
    memberships,
    organizations,
    refresh_families,
    refresh_tokens,
    signing_keys,
    users,
)
from services.auth.usecases.ports import NewRefreshToken
from services.kernel.db.idempotency import KEPT_FOR, once, purge_expired
from services.kernel.identity.caller import Role

_REQUEST_IDS: Final = uuid5(NAMESPACE_URL, "urn:aiagent:auth:request-ids")
_NOBODY: Final = UUID(int=0)
_FIRST_START: Final = sa.text("SELECT pg_advisory_xact_lock(1094797636, hashtext('auth/first-start'))")
_PURGE_LIMIT: Final = 1000


class SystemQueries:
    """See `usecases.ports.SystemTransaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Args: connection: a transaction of the system role."""
        self._connection = connection

    async def once(
        self, scope: str, method: str, request_id: str, request: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """See the port."""
        return await once(
            self._connection,
            idempotency_keys,
            caller_id=uuid5(_REQUEST_IDS, scope),
            organization_id=_NOBODY,
            method=method,
            request_id=request_id,
            request=request,
            expire_after=KEPT_FOR,
            run=run,
        )

    async def create_account(self, account: NewAccount) -> User:
        """See the port. Who comes second waits for the first one's commit, and is told what is taken."""
        connection = self._connection
        await connection.execute(
            sa.insert(organizations).values(
                id=account.organization_id,
                name=account.full_name.strip() or account.username,
                personal=True,
                create_time=account.create_time,
            )
        )
        row = (
            await connection.execute(
                insert(users)
                .values(
                    id=account.user_id,
                    organization_id=account.organization_id,
                    email=account.email,
                    username=account.username,
                    full_name=account.full_name,
                    role=account.role.value,
                    password_hash=account.password_hash,
                    create_time=account.create_time,
                    update_time=account.create_time,
                )
                .on_conflict_do_nothing()
                .returning(*USER_COLUMNS)
            )
        ).first()
        if row is None:
            taken = await connection.scalar(sa.select(sa.exists().where(_email_is(account.email))))
            raise email_taken() if taken else username_taken()
        await connection.execute(
            sa.insert(memberships).values(
                organization_id=account.organization_id,
                user_id=account.user_id,
                role="owner",
                create_time=account.create_time,
            )
        )
        return user_of(row)

    async def credentials_of(self, name: str) -> Credentials | None:
        """See the port."""
        matches = _email_is(name) if "@" in name else sa.func.lower(users.c.username) == name
        row = (
            await self._connection.execute(sa.select(*USER_COLUMNS, users.c.password_hash).where(matches))
        ).first()
        return Credentials(user_of(row), row.password_hash) if row is not None else None

    async def user_by_id(self, user_id: UUID) -> User | None:
        """See the port."""
        row = (await self._connection.execute(sa.select(*USER_COLUMNS).where(users.c.id == user_id))).first()
        return user_of(row) if row is not None else None

    async def replace_password_hash(self, user_id: UUID, old_hash: str, new_hash: str) -> None:
        """See the port."""
        await self._connection.execute(
            sa.update(users)
            .where(users.c.id == user_id, users.c.password_hash == old_hash)
            .values(password_hash=new_hash)
        )

    async def lock_first_start(self) -> None:
        """See the port."""
        await self._connection.execute(_FIRST_START)

    async def has_administrator(self) -> bool:
        """See the port."""
        return bool(
            await self._connection.scalar(sa.select(sa.exists().where(users.c.role == Role.ADMIN.value)))
        )

    async def lock_buckets(self, *keys: bytes) -> Mapping[bytes, Bucket]:
        """See the port. All lock in the order of the keys, so that nobody waits in a circle."""
        claim = insert(login_failures).values([{"key": key} for key in sorted(set(keys))])
        # Not "do nothing": the purge may delete a row between that and a look at it.
        rows = await self._connection.execute(
            claim.on_conflict_do_update(index_elements=["key"], set_={"key": claim.excluded.key}).returning(
                login_failures
            )
        )
        return {bytes(row.key): Bucket(bytes(row.key), row.full_time, row.success_time) for row in rows}

    async def save_buckets(self, *buckets: Bucket) -> None:
        """See the port."""
        changes: list[dict[str, Any]] = [
            {"of": bucket.key, "full_time": bucket.full_time, "success_time": bucket.success_time}
            for bucket in buckets
        ]
        await self._connection.execute(
            sa.update(login_failures)
            .where(login_failures.c.key == sa.bindparam("of"))
            .values(full_time=sa.bindparam("full_time"), success_time=sa.bindparam("success_time")),
            changes,
        )

    async def create_refresh_family(
        self, family_id: UUID, user_id: UUID, organization_id: UUID, create_time: datetime
    ) -> None:
        """See the port."""
        await self._connection.execute(
            sa.insert(refresh_families).values(
                id=family_id,
                user_id=user_id,
                organization_id=organization_id,
                create_time=create_time,
                expire_time=create_time,
            )
        )

    async def add_refresh_token(self, token: NewRefreshToken) -> None:
        """See the port."""
        await self._connection.execute(
            sa.insert(refresh_tokens).values(
                id=token.id,
                token_hash=token.token_hash,
                family_id=token.family_id,
                user_id=token.user_id,
                organization_id=token.organization_id,
                created_by=token.created_by,
                create_time=token.create_time,
                expire_time=token.expire_time,
            )
        )
        await self._connection.execute(
            sa.update(refresh_families)
            .where(refresh_families.c.id == token.family_id)
            .values(expire_time=token.expire_time)
        )

    async def lock_refresh_token(self, token_hash: bytes) -> RefreshToken | None:
        """See the port. The family is locked first: the token is read as the last holder of the lock left it."""
        matches = refresh_tokens.c.token_hash == token_hash
        family = (
            await self._connection.execute(
                sa.select(refresh_families.c.id, refresh_families.c.revoke_time)
                .where(
                    refresh_families.c.id
                    == sa.select(refresh_tokens.c.family_id).where(matches).scalar_subquery()
                )
                .with_for_update()
            )
        ).first()
        if family is None:
            return None
        row = (await self._connection.execute(sa.select(refresh_tokens).where(matches))).first()
        if row is None:
            return None
        return RefreshToken(
            id=row.id,
            family_id=row.family_id,
            user_id=row.user_id,
            organization_id=row.organization_id,
            expire_time=row.expire_time,
            revoked=family.revoke_time is not None,
            use_time=row.use_time,
            used_by=bytes(row.used_by) if row.used_by is not None else None,
        )

    async def mark_refresh_token_used(self, token_id: UUID, client: bytes, now: datetime) -> None:
        """See the port."""
        await self._connection.execute(
            sa.update(refresh_tokens)
            .where(refresh_tokens.c.id == token_id)
            .values(use_time=now, used_by=client)
        )

    async def revoke_refresh_family(self, family_id: UUID, reason: str, now: datetime) -> None:
        """See the port."""
        await self._connection.execute(
            sa.update(refresh_families)
            .where(refresh_families.c.id == family_id, refresh_families.c.revoke_time.is_(None))
            .values(revoke_time=now, revoke_reason=reason)
        )

    async def signing_keys(self) -> list[SigningKey]:
        """See the port."""
        rows = await self._connection.execute(sa.select(signing_keys).order_by(signing_keys.c.not_before))
        return [
            SigningKey(
                kid=row.kid,
                public_key=bytes(row.public_key),
                sealed_private_key=bytes(row.sealed_private_key),
                not_before=row.not_before,
                retire_time=row.retire_time,
            )
            for row in rows
        ]

    async def add_signing_key(self, key: SigningKey) -> None:
        """See the port."""
        await self._connection.execute(
            sa.update(signing_keys)
            .where(signing_keys.c.retire_time.is_(None))
            .values(retire_time=key.not_before)
        )
        await self._connection.execute(
            sa.insert(signing_keys).values(
                kid=key.kid,
                public_key=key.public_key,
                sealed_private_key=key.sealed_private_key,
                not_before=key.not_before,
                retire_time=key.retire_time,
            )
        )

    async def purge(self, now: datetime) -> int:
        """See the port."""
        remembered = now - KNOWN_ADDRESS_FOR
        ended = sa.and_(
            sa.or_(login_failures.c.full_time.is_(None), login_failures.c.full_time <= now),
            sa.or_(login_failures.c.success_time.is_(None), login_failures.c.success_time < remembered),
        )
        count = await self._delete(login_failures, login_failures.c.key, ended)
        count += await self._delete(
            refresh_families, refresh_families.c.id, refresh_families.c.expire_time <= now
        )
        count += await self._delete(refresh_tokens, refresh_tokens.c.id, refresh_tokens.c.expire_time <= now)
        return count + await purge_expired(self._connection, idempotency_keys, limit=_PURGE_LIMIT)

    async def _delete(
        self, table: sa.Table, key: sa.ColumnElement[Any], condition: sa.ColumnElement[bool]
    ) -> int:
        chosen = sa.select(key).where(condition).limit(_PURGE_LIMIT).with_for_update(skip_locked=True)
        outcome = await self._connection.execute(sa.delete(table).where(key.in_(chosen)))
        return outcome.rowcount


def _email_is(email: str) -> sa.ColumnElement[bool]:
    return sa.func.lower(users.c.email) == email
