"""The gRPC face of the auth service."""
