"""The whole suite on one machine: real servers from wheels, one command."""

import os

# Before gRPC is imported anywhere. Its fork handlers and our child processes do not go together, and what runs on this
# machine is not reached through a proxy, whatever one is set for the rest of the world.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("no_grpc_proxy", "localhost,127.0.0.1,::1")
