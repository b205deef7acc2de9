"""Topics are declared: name, what is in them, partitions, retention; nobody relies on a broker that makes them up.

Who publishes to a topic declares it, and so does who consumes it, each in its own code and with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic.

    Attributes:
        name: Its name.
        message: The full name of the protobuf message that every record's value is.
        partitions: How many; one key is always in one of them, and no more consumers of a group than these have work.
        retention: How long the broker keeps records.
    """

    name: str
    message: str
    partitions: int = 6
    retention: timedelta = timedelta(days=7)
