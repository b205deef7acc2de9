"""What a person may set about the local suite."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.local.state import LocalError


class LocalSettings(BaseSettings):
    """Read from the environment (prefix `AIAGENT_`), then from `.env` in the working directory."""

    model_config = SettingsConfigDict(
        env_prefix="AIAGENT_",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    state_dir: Path = Path(".aiagent")
    http_host: str = Field(default="127.0.0.1", min_length=1)
    http_port: int = Field(default=8080, ge=1, le=65535)
    kafka_url: str = Field(
        default="", description="Of a broker that runs already; without it one is started."
    )
    kafka_port: int = Field(
        default=0, ge=0, le=65535, description="Of the broker that is started; 0 for any."
    )
    log_level: str = Field(default="INFO", pattern="^(?i:debug|info|warning|error|critical)$")
    admin_email: str = "admin@aiagent.local"
    cors_origins: str = Field(
        default="", description="Regular expressions of further origins, separated by commas."
    )
    anthropic_api_key: SecretStr = Field(
        default=SecretStr(""), validation_alias=AliasChoices("ANTHROPIC_API_KEY", "anthropic_api_key")
    )

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins that browsers may call from, beside this machine's."""
        return tuple(part.strip() for part in self.cors_origins.split(",") if part.strip())


def load() -> LocalSettings:
    """Reads the settings.

    Raises:
        LocalError: A setting cannot be used.
    """
    try:
        return LocalSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"AIAGENT_{name.upper()}"
        raise LocalError(f"{variable}: {first['msg']}") from None
