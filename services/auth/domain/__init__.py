"""Accounts, refresh tokens, signing keys and throttles: the rules, without I/O."""
