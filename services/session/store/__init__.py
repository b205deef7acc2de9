"""The session service's tables and queries."""
