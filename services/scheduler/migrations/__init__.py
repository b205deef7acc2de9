"""Alembic history of the schema `scheduler`."""
