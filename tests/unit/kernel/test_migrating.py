"""What `migrate` says where it cannot begin; what it does is tested with each service's schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from services.kernel.migrating import bring_up_to_date

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("url", [None, SecretStr("")])
async def test_a_url_that_is_not_set_is_named(url: SecretStr | None) -> None:
    with pytest.raises(ValueError, match="AIAGENT_SCHEDULER_OWNER_DATABASE_URL is not set"):
        await bring_up_to_date("scheduler", url, Path("nowhere"))
