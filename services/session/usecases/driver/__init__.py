"""Drives sessions: takes leases, runs turns on executors, and writes what comes of them to the log.

One task per session with work, under the session's lease. The epoch of the lease fences everything it writes and
every call it makes; a replica that has lost a lease stops at its next write at the latest.
"""

from services.session.usecases.driver.pool import DriverPool

__all__ = ["DriverPool"]
