"""The auth service's tables and queries."""
