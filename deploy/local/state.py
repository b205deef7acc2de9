"""The state directory: who holds it, what is kept in it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SERVICES = ("auth", "session", "executor", "scheduler", "reports")
SCHEMAS = ("auth", "session", "scheduler")
ROLES = ("owner", "application", "system")
_LOOKS = 3
_LOOK_SECONDS = 0.05


class LocalError(Exception):
    """Something a person has to mend; the message is one line that says what and how."""


@dataclass
class Secrets:
    """What is made once and kept: passwords and keys, base64url without padding where they are bytes."""

    database_superuser: str
    database_roles: dict[str, str]
    redis_password: str
    service_keys: dict[str, str]
    auth_encryption_key: str
    scheduler_encryption_key: str

    @classmethod
    def make(cls) -> Secrets:
        """Makes fresh ones."""
        return cls(
            database_superuser=secrets.token_urlsafe(24),
            database_roles={
                f"{schema}_{role}": secrets.token_urlsafe(24) for schema in SCHEMAS for role in ROLES
            },
            redis_password=secrets.token_urlsafe(24),
            service_keys={name: _text(Ed25519PrivateKey.generate().private_bytes_raw()) for name in SERVICES},
            auth_encryption_key=_text(secrets.token_bytes(32)),
            scheduler_encryption_key=_text(secrets.token_bytes(32)),
        )

    def trust(self) -> dict[str, str]:
        """The public key of each service."""
        public = {}
        for name, key in self.service_keys.items():
            raw = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
            public[name] = _text(Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw())
        return public


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _taken(lock: IO[str]) -> bool:
    """Takes the lock; whoever only looks has it for a moment, and is waited for."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
        else:
            return True
    return False


@dataclass
class StateDirectory:
    """The directory of one suite, held by one process at a time."""

    path: Path
    _lock: IO[str] | None = field(default=None, repr=False)

    def open(self) -> None:
        """Makes the directory, closes it to others, and takes it.

        Raises:
            LocalError: It cannot be used, or another process has it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise LocalError(
                    f"{self.path} belongs to another user; set AIAGENT_STATE_DIR to one of yours"
                )
            self.path.chmod(stat.S_IRWXU)
            for name in ("logs", "run", "blobs", "workspaces"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise LocalError(f"{self.path} cannot be used: {error.strerror}") from error
        if not _taken(lock):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise LocalError(
                f"a suite already runs in {self.path} (pid {holder}); stop it, or set AIAGENT_STATE_DIR"
            )
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def holder(self) -> int | None:
        """The process that runs the suite, None when nobody does."""
        try:
            with (self.path / "lock").open("r+", encoding="utf-8") as lock:
                try:
                    # Shared: several may look at once, and none takes another for the holder.
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read().strip() or 0) or None
        except (OSError, ValueError):
            return None
        return None

    def secrets(self) -> Secrets:
        """Reads the secrets, or makes them at the first start."""
        path = self.path / "secrets.json"
        made = Secrets.make()
        kept: dict[str, Any] = {}
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                both: dict[str, Any] = {
                    name: {**value, **kept.get(name, {})}
                    if isinstance(value, dict)
                    else kept.get(name, value)
                    for name, value in made.__dict__.items()
                }
                made = Secrets(**both)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise LocalError(f"{path} is broken ({error}); remove {self.path} to start anew") from error
        if kept != made.__dict__:
            # The first start, or a newer version that needs more of them.
            write_private(path, json.dumps(made.__dict__, indent=1))
        return made

    def rotate_logs(self) -> None:
        """Puts the logs of the last run aside: `session.log` becomes `session.log.1`."""
        for log in (self.path / "logs").glob("*.log"):
            log.replace(log.with_name(f"{log.name}.1"))


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
