"""The executor's gRPC interface."""
