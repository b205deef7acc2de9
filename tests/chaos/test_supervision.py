"""The supervisor starts again whatever dies, of every kind, and the suite serves as before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from tests.e2e.conftest import User
from tests.e2e.script import prompt, say, use
from tests.running_suite import RunningSuite

from .calling import OPTIONS
from .plan import Fault
from .proxy import Proxy
from .striking import Striker
from .victims import SUPERVISED

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module")
async def own_suite() -> AsyncIterator[RunningSuite]:
    """A suite in processes, to be killed piece by piece."""
    folder = Path(tempfile.mkdtemp(prefix="aiagent-chaos-"))
    suite = RunningSuite(folder / "state", arguments=["--processes", "--replicas", "session=2"])
    await suite.start()
    yield suite
    await suite.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("how", ["kill", "term"])
@pytest.mark.parametrize("kind", SUPERVISED)
async def test_what_dies_is_started_again(own_suite: RunningSuite, kind: str, how: str):
    striker = Striker(own_suite, Proxy(own_suite.port), list, {"session": 2})
    # PostgreSQL's TERM waits for its clients to leave, which are pools; its fast stop does not.
    how = "int" if (kind, how) == ("postgres", "term") else how
    struck = await striker.strike(Fault(0.0, kind, how, 0.0))
    assert struck is not None
    assert struck.back_seconds is not None and struck.back_seconds > 0
    async with grpc.aio.insecure_channel(own_suite.grpc_target, options=OPTIONS) as channel:
        user = User(own_suite.base_url, channel)
        await user.sign_up()
        session_id = await user.create()
        turn = await user.run(session_id, prompt(use("Bash", command="echo here"), say("all is well")))
        assert turn.result.text == "all is well"
