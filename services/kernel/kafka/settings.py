"""Where the Kafka broker is, and how it is spoken to."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from services.kernel.settings import KernelSettings


class KafkaSettings(KernelSettings):
    """The settings of a service that publishes or consumes."""

    kafka_url: str = Field(
        default="", description="kafka://host:port, further ones after commas; empty for no broker."
    )
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    kafka_ca_file: Path | None = Field(default=None, description="PEM; the system's authorities without it.")
    kafka_certificate_file: Path | None = Field(default=None, description="PEM of a client's certificate.")
    kafka_key_file: Path | None = Field(default=None, description="PEM of its key.")
    kafka_replication_factor: int = Field(default=1, ge=1, description="Of topics that `migrate` creates.")
    kafka_declare_topics: bool = Field(
        default=False,
        description="Create topics that are missing at each connect; without it `migrate` does.",
    )
    kafka_local_broker: bool = Field(
        default=False, description="The broker is the local suite's, which keeps nothing; see `Broker.local`."
    )

    @field_validator("kafka_url")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in _split(value):
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"{address!r} is not host:port")
        return value

    def broker(self) -> Broker | None:
        """The broker these settings name; None where none is.

        Raises:
            ValueError: SASL without a user's name, or a file of TLS that cannot be used.
        """
        servers = _split(self.kafka_url)
        if not servers:
            return None
        sasl = self.kafka_security.startswith("SASL_")
        if sasl and not self.kafka_sasl_username:
            raise ValueError("AIAGENT_KAFKA_SASL_USERNAME is not set")
        return Broker(
            servers=servers,
            security=self.kafka_security,
            tls=self._tls() if self.kafka_security.endswith("SSL") else None,
            sasl_mechanism=self.kafka_sasl_mechanism if sasl else None,
            sasl_username=self.kafka_sasl_username,
            sasl_password=self.kafka_sasl_password,
            replication_factor=self.kafka_replication_factor,
            declare_topics=self.kafka_declare_topics,
            local=self.kafka_local_broker,
        )

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.kafka_ca_file)
            if self.kafka_certificate_file is not None:
                context.load_cert_chain(self.kafka_certificate_file, self.kafka_key_file)
        except OSError as error:  # of which ssl.SSLError is one
            raise ValueError(f"a file of AIAGENT_KAFKA_*_FILE cannot be used: {error}") from None
        return context


def _split(url: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in url.removeprefix("kafka://").split(",") if part.strip())


@dataclass(frozen=True)
class Broker:
    """A Kafka cluster, and how it is spoken to.

    Attributes:
        servers: `host:port` of some of its members.
        security: The protocol, by Kafka's name.
        tls: Set where the protocol has TLS.
        sasl_mechanism: None without SASL.
        replication_factor: Of topics that are created.
        declare_topics: Topics that are missing are created at each connect.
        local: It is the local suite's: memory only, no idempotent producers, and its fetches are not woken by what is
            produced.
    """

    servers: tuple[str, ...]
    security: str = "PLAINTEXT"
    tls: ssl.SSLContext | None = None
    sasl_mechanism: str | None = None
    sasl_username: str = ""
    sasl_password: SecretStr = field(default_factory=lambda: SecretStr(""))
    replication_factor: int = 1
    declare_topics: bool = False
    local: bool = False

    def client(self) -> dict[str, Any]:
        """The arguments that every client of aiokafka takes for it."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "security_protocol": self.security,
            "ssl_context": self.tls,
        }
        if self.sasl_mechanism is not None:
            arguments |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return arguments
