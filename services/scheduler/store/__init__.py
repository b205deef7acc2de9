"""The scheduler's tables and queries."""
