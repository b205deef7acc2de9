"""Alembic history of the schema `session`."""
