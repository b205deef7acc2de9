from tests.integration.auth.harness import auth, auth_databases

__all__ = ["auth", "auth_databases"]
