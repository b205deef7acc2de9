"""The settings that every service has; each service's own class adds to it."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.kernel.identity.keys import private_key_from_text, public_key_from_text


class KernelSettings(BaseSettings):
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

    log_level: str = "INFO"
    drain_seconds: float = Field(
        default=20.0, ge=0, description="How long calls may take to end after SIGTERM."
    )
    reflection: bool = True
    metrics_listen: str = Field(
        default="", pattern=r"^(?:\S+:[0-9]{1,5})?$", description="host:port of /metrics; empty for none."
    )
    service_key: SecretStr = Field(
        default=SecretStr(""), description="This service's Ed25519 private key, base64url of 32 bytes."
    )
    service_trust: dict[str, str] = Field(
        default_factory=dict, description="Public keys of the services that may call, base64url of 32 bytes."
    )

    def private_key(self) -> Ed25519PrivateKey:
        """The service's own key.

        Raises:
            ValueError: AIAGENT_SERVICE_KEY is missing or no key.
        """
        text = self.service_key.get_secret_value()
        if not text:
            raise ValueError("AIAGENT_SERVICE_KEY is not set")
        return private_key_from_text(text)

    def trusted_keys(self) -> dict[str, Ed25519PublicKey]:
        """The public key of each service that may call.

        Raises:
            ValueError: one of AIAGENT_SERVICE_TRUST is no key.
        """
        return {name: public_key_from_text(text) for name, text in self.service_trust.items()}


def targets(text: str) -> tuple[str, ...]:
    """Splits a comma list of `host:port`; empty parts are left out."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
