"""The settings every service has. Environment variables with the prefix AIAGENT_, then the file `.env`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class KernelSettings(BaseSettings):
    """What every service needs; each service adds its own."""

    model_config = SettingsConfigDict(
        env_prefix="AIAGENT_", env_file=".env", env_file_encoding="utf-8", extra="ignore", populate_by_name=True
    )

    state_dir: Path = Path(".aiagent")
    log_level: str = "INFO"
    redis_url: SecretStr | None = None
    service_key: SecretStr
    """This service's Ed25519 private key: 32 bytes, base64url without padding."""
    service_trust: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    """Public keys of the services whose tokens are accepted, by service, each base64url without padding."""
    metrics_listen: str = ""
    """`host:port` of the Prometheus listener; empty for none."""
    reflection: bool = True
    drain_seconds: float = 10.0
    """How long calls may take to end when the service is asked to stop."""

    @field_validator("service_trust", mode="before")
    @classmethod
    def _parse_trust(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    def private_key(self) -> bytes:
        """The service's private key, raw."""
        return unpadded(self.service_key.get_secret_value())


def unpadded(text: str) -> bytes:
    """Decodes base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def targets(text: str) -> tuple[str, ...]:
    """Splits a comma-separated list of `host:port`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
