"""Where the command line keeps its settings, and which server it speaks to."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from aiagent_client.connection import DEFAULT_URL, parse_url
from aiagent_client.credentials import CredentialsFile
from aiagent_client.errors import ClientError


class SettingsError(ClientError):
    """The settings file cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server's URL, and who named it."""

    url: str
    source: str


class Settings:
    """The settings file, the environment and what was given on the command line."""

    def __init__(self, url_option: str | None = None) -> None:
        configured = os.environ.get("AIAGENT_CONFIG_DIR")
        self.directory = Path(configured) if configured else platformdirs.user_config_path("ai-agent")
        self.path = self.directory / "config.json"
        self.credentials_path = self.directory / "credentials.json"
        self._url_option = url_option

    def server(self) -> Server:
        """Returns the server: the option, else AIAGENT_URL, else the file's, else the local suite.

        Raises InvalidUrlError, SettingsError.
        """
        for value, source in (
            (self._url_option, "--url"),
            (os.environ.get("AIAGENT_URL"), "AIAGENT_URL"),
            (self._read().get("url"), str(self.path)),
        ):
            if value:
                return Server(parse_url(value).url, source)
        return Server(DEFAULT_URL, "default")

    def set_url(self, url: str) -> str:
        """Stores the server's URL and returns it as it is stored. Raises InvalidUrlError, SettingsError."""
        shown = parse_url(url).url
        self._write({**self._read(), "url": shown})
        return shown

    def reset(self) -> bool:
        """Forgets all settings, not the logins; False when there were none. Raises SettingsError."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SettingsError(f"cannot remove {self.path}: {error.strerror}") from error
        return True

    def credentials(self) -> CredentialsFile:
        """Returns the store of the server's login."""
        return CredentialsFile(self.credentials_path, self.server().url)

    def _read(self) -> dict[str, str]:
        try:
            document = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"cannot read {self.path}: {error}; `ai-agent config reset` removes it"
            ) from error
        return document if isinstance(document, dict) else {}

    def _write(self, document: dict[str, str]) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".config-", dir=self.directory)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
            Path(name).replace(self.path)
        except OSError as error:
            raise SettingsError(f"cannot write {self.path}: {error.strerror}") from error
