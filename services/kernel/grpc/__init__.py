"""gRPC server and channel as every service uses them."""

from services.kernel.grpc.auth_keys import auth_channel, key_set
from services.kernel.grpc.authentication import PUBLIC, USER, MethodPolicy, services, user_or_services
from services.kernel.grpc.channel import open_channel, replicas
from services.kernel.grpc.pipeline import accept_stream, end_if_unread
from services.kernel.grpc.server import KernelServer, build_server
from services.kernel.grpc.status import error_from_rpc

__all__ = [
    "PUBLIC",
    "USER",
    "KernelServer",
    "MethodPolicy",
    "accept_stream",
    "auth_channel",
    "build_server",
    "end_if_unread",
    "error_from_rpc",
    "key_set",
    "open_channel",
    "replicas",
    "services",
    "user_or_services",
]
