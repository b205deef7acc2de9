"""What tests of every service use: driven time, predictable ids, servers in the process, keys."""

from services.kernel.testing.fakes import FakeClock, SequentialIds
from services.kernel.testing.identities import AccessTokens, ServiceKeys, a_caller
from services.kernel.testing.servers import running_server

__all__ = ["AccessTokens", "FakeClock", "SequentialIds", "ServiceKeys", "a_caller", "running_server"]
