"""gRPC for every service: the server with its interceptors, channels to other services, errors as statuses."""

import os

# Before grpc is imported anywhere: its fork handlers and child processes have deadlocked (grpc#22624).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
