"""Password hashing, encryption at rest, and the administrator's password file."""
