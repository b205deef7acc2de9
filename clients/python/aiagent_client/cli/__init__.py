"""The `ai-agent` command."""

from __future__ import annotations

from aiagent_client.cli.application import app, main

__all__ = ["app", "main"]
