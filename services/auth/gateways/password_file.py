"""The file with the first administrator's password."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from services.auth.usecases.ports import FileNotWritten

_NAME: Final = "admin-password"


class OwnersFile:
    """See `usecases.ports.PasswordFile`."""

    def __init__(self, directory: Path) -> None:
        """Args: directory: the state directory; made if it is not there."""
        self.path = directory / _NAME

    def write(self, password: str) -> None:
        """See the port."""
        try:
            self._write(password)
        except OSError as error:
            raise FileNotWritten(f"{self.path} cannot be written: {error.strerror}") from error

    def _write(self, password: str) -> None:
        directory = self.path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / f".{_NAME}.{secrets.token_hex(8)}"
        try:
            # O_EXCL: nobody can have laid a link in its place.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{password}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        # The name too must survive a power cut before the account does.
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
