"""The auth service: accounts, logins, tokens and the keys that sign them."""
