"""The session service's adapters to what lies outside it."""
