"""The scheduler's gRPC interface: maps, calls one use case, maps back."""
