"""The first start, the next ones, several at once, and the end."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import jwt
import pytest

from aiagent.auth.v1 import auth_service_pb2 as pb
from aiagent.auth.v1 import user_pb2
from services.auth.domain.refresh import ACCESS_LIFETIME
from services.auth.domain.signing import PUBLISH_BEFORE
from services.auth.gateways.password_file import OwnersFile
from services.auth.usecases.ports import FileNotWritten
from services.kernel.testing import FakeClock
from tests.integration.auth.harness import (
    Auth,
    Databases,
    an_encryption_key,
    bearer,
    running_auth,
)

pytestmark = pytest.mark.integration
ADMIN = "admin@aiagent.local"


async def the_key_ids(auth: Auth) -> list[str]:
    return [key.kid for key in (await auth.stub.GetJwks(pb.GetJwksRequest())).keys]


async def test_the_first_administrator(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path / "new" / "state") as auth:
        ((email, password, path),) = auth.announced
        assert (email, path) == (ADMIN, tmp_path / "new" / "state" / "admin-password")
        assert path.read_text() == f"{password}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [entry.name for entry in path.parent.iterdir()] == ["admin-password"]
        tokens = await auth.stub.Login(pb.LoginRequest(email=email, password=password))
        me = await auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer(tokens.access_token))
        assert (me.role, me.username) == (user_pb2.User.ADMIN, "admin")


async def test_the_contract_takes_the_administrators_address(
    auth_databases: Databases, tmp_path: Path
) -> None:
    async with running_auth(auth_databases, tmp_path, admin_email="root@example.org") as auth:
        await auth.register(email=ADMIN)


async def test_the_next_start_makes_nothing_anew(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path) as auth:
        database, key = auth.database, auth.settings.auth_encryption_key
        request = await auth.register()
        tokens = await auth.login(request)
        kids, password = await the_key_ids(auth), (tmp_path / "admin-password").read_text()
    async with running_auth(auth_databases, tmp_path, database=database, auth_encryption_key=key) as auth:
        assert auth.announced == []
        assert (tmp_path / "admin-password").read_text() == password
        assert await the_key_ids(auth) == kids
        await auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer(tokens.access_token))
        await auth.stub.RefreshToken(pb.RefreshTokenRequest(refresh_token=tokens.refresh_token))


async def test_replicas_that_start_together_agree(auth_databases: Databases, tmp_path: Path) -> None:
    database, key = await auth_databases.fresh(), an_encryption_key()
    async with AsyncExitStack() as stack:
        replicas = await asyncio.gather(
            *(
                stack.enter_async_context(
                    running_auth(
                        auth_databases, tmp_path / str(number), database=database, auth_encryption_key=key
                    )
                )
                for number in range(4)
            )
        )
        assert [len(replica.announced) for replica in replicas].count(1) == 1
        assert len(list(tmp_path.glob("*/admin-password"))) == 1
        kids = [await the_key_ids(replica) for replica in replicas]
        assert kids == [kids[0]] * 4
        assert len(kids[0]) == 1
        # A token of one is good at another.
        request = await replicas[0].register()
        token = (await replicas[1].login(request)).access_token
        await replicas[2].stub.GetMe(pb.GetMeRequest(), metadata=bearer(token))
        # The table itself would not take a second newest key.
        (row,) = await replicas[0].sql(
            "SELECT count(*) AS n FROM auth.signing_keys WHERE retire_time IS NULL"
        )
        assert row["n"] == 1


async def test_a_password_is_never_lost_between_file_and_account(
    auth_databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(Exception):
        pass

    def cut(write: object) -> object:
        def written(file: OwnersFile, password: str) -> None:
            write(file, password)  # type: ignore[operator]
            raise PowerCut

        return written

    database = await auth_databases.fresh()
    with monkeypatch.context() as patch:
        patch.setattr(OwnersFile, "write", cut(OwnersFile.write))
        with pytest.raises(PowerCut):
            async with running_auth(auth_databases, tmp_path, database=database):
                pass
    orphan = (tmp_path / "admin-password").read_text()
    # Between the two there is a file without an account; the other way round nobody could get in.
    connection = await auth_databases.as_superuser(database)
    assert await connection.fetchval("SELECT count(*) FROM auth.users") == 0
    await connection.execute("TRUNCATE auth.signing_keys")
    await connection.close()
    async with running_auth(auth_databases, tmp_path, database=database) as auth:
        password = (tmp_path / "admin-password").read_text()
        assert password != orphan
        await auth.stub.Login(pb.LoginRequest(username="ADMIN", password=password.strip()))


async def test_an_unwritable_state_directory_stops_the_start(
    auth_databases: Databases, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    database = await auth_databases.fresh()
    with pytest.raises(FileNotWritten, match="file/admin-password cannot be written"):
        async with running_auth(auth_databases, tmp_path / "file", database=database):
            pass
    connection = await auth_databases.as_superuser(database)
    assert await connection.fetchval("SELECT count(*) FROM auth.users") == 0
    await connection.close()


async def test_an_address_that_is_taken_stops_the_start(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path) as auth:
        database, key = auth.database, auth.settings.auth_encryption_key
        await auth.sql("UPDATE auth.users SET role = 'user'")
    with pytest.raises(ValueError, match="AIAGENT_ADMIN_EMAIL"):
        async with running_auth(auth_databases, tmp_path, database=database, auth_encryption_key=key):
            pass


async def test_another_encryption_key_stops_the_start(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path) as auth:
        database = auth.database
    with pytest.raises(ValueError, match="AIAGENT_AUTH_ENCRYPTION_KEY"):
        async with running_auth(auth_databases, tmp_path, database=database):
            pass


async def test_the_private_key_is_sealed(auth_databases: Databases, tmp_path: Path) -> None:
    async with running_auth(auth_databases, tmp_path) as auth:
        (row,) = await auth.sql("SELECT sealed_private_key AS sealed FROM auth.signing_keys")
        assert len(row["sealed"]) == 1 + 12 + 32 + 16


async def test_keys_rotate_without_a_token_refused(auth_databases: Databases, tmp_path: Path) -> None:
    clock = FakeClock()
    async with running_auth(auth_databases, tmp_path, clock=clock) as auth:
        same = {"database": auth.database, "auth_encryption_key": auth.settings.auth_encryption_key}
        async with running_auth(auth_databases, tmp_path, clock=clock, **same) as other:
            request = await auth.register()
            (old,) = await the_key_ids(auth)
            new = await auth.service._keys.rotate()
            # Published at once, also by the replica that was not asked, once it looks again.
            assert await the_key_ids(auth) == [old, new]
            await clock.advance(30)
            assert await the_key_ids(other) == [old, new]
            before = await other.login(request)
            assert kid(before.access_token) == old
            await clock.advance(PUBLISH_BEFORE.total_seconds())
            after = await other.login(request)
            assert kid(after.access_token) == new
            for token in (before.access_token, after.access_token):
                await auth.stub.GetMe(pb.GetMeRequest(), metadata=bearer(token))
            await clock.advance(ACCESS_LIFETIME.total_seconds() + 60)
            assert await the_key_ids(other) == [new]


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])
