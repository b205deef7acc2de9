"""The gRPC services. Each is independent of the others; all stand on `services.kernel`."""

import os

# Read once, when `grpc` is imported: with fork handlers, child processes (the agents) have deadlocked the server.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
