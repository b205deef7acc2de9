"""`python -m services.auth serve|migrate|rotate-keys`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from services.auth.bootstrap import build, migrate, rotate_keys
from services.auth.settings import AuthSettings
from services.auth.usecases.ports import FileNotWritten
from services.kernel.command_line import Command, main


def _announce(email: str, _password: str, path: Path) -> None:
    # Standard output of a service ends up in somebody's log.
    print(f"administrator {email} created, password in {path}", flush=True)


if __name__ == "__main__":
    sys.exit(
        main(
            "auth",
            AuthSettings,
            partial(build, announce=_announce),
            commands={
                "migrate": Command("bring the schema up to date, as its owner", migrate),
                "rotate-keys": Command("add a signing key, which takes over in ten minutes", rotate_keys),
            },
            expected=(FileNotWritten,),
        )
    )
