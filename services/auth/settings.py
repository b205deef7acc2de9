"""The settings of the auth service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr

from services.kernel.settings import KernelSettings

# What the contract lets through when somebody registers or logs in (the HTML standard's valid e-mail address).
_EMAIL: Final = (
    r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$"
)


class AuthSettings(KernelSettings):
    """Environment variables are the field names in upper case with the prefix `AIAGENT_`."""

    auth_listen: str = Field(default="127.0.0.1:50051", description="host:port of gRPC.")
    auth_database_url: SecretStr = Field(description="As auth_application.")
    auth_system_database_url: SecretStr = Field(description="As auth_system.")
    auth_owner_database_url: SecretStr = Field(
        default=SecretStr(""), description="As auth_owner; only `migrate` needs it."
    )
    auth_encryption_key: SecretStr = Field(
        description="32 random bytes in base64url. Seals signing keys and recognises refresh tokens: without it nobody"
        " stays logged in, and the service does not start on a database that it was used with."
    )
    auth_bcrypt_rounds: int = Field(
        default=12, ge=4, le=20, description="Cost of a password's hash, as a power of 2."
    )
    auth_hashing_threads: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        le=8,
        description="Passwords hashed at a time; each takes a core while it lasts.",
    )
    auth_hashing_waiting: int = Field(
        default=512,
        ge=0,
        description="How many passwords may wait to be hashed; beyond that calls are refused.",
    )
    auth_trusted_hops: int = Field(
        default=1, ge=0, description="Proxies in front that append to x-forwarded-for; 0 for none."
    )
    admin_email: str = Field(
        default="admin@aiagent.local",
        max_length=254,
        pattern=_EMAIL,
        description="Of the first administrator.",
    )
    state_dir: Path = Field(
        default=Path(".aiagent"), description="Where the administrator's password is kept."
    )
