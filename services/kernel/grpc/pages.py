"""Keyset pages of messages: one more row than asked for tells whether there is another page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from google.protobuf.message import Message

from services.kernel import paging
from services.kernel.identity import Caller

PAGE_BYTES = 3 * 1024 * 1024
"""A page ends earlier when it would be larger (AIP-158): clients of gRPC take 4 MiB unless told otherwise."""
PORTION = 100
"""Rows read at once: what a page is cut to is not held in memory as a whole."""


class Pages:
    """The pages of a service's lists."""

    def __init__(self, domain: str) -> None:
        """Args: domain: `<service>.aiagent`, of the errors."""
        self._domain = domain

    async def page[Row, Key: (int, UUID), Resource: Message](
        self,
        caller: Caller,
        filters: Sequence[object],
        page_size: int,
        page_token: str,
        kind: type[Key],
        read: Callable[[Key | None, int], Awaitable[list[Row]]],
        key_of: Callable[[Row], Key],
        resource_of: Callable[[Row], Resource],
        *,
        default: int = paging.DEFAULT_PAGE_SIZE,
    ) -> tuple[list[Resource], str]:
        """Reads a page.

        Args:
            caller: Whose list it is.
            filters: What makes this list this list, its method first.
            page_size: As asked for; 0 means the default.
            page_token: As sent; empty for the first page.
            kind: The type of the sort key.
            read: Reads rows behind a key, at most so many.
            key_of: The sort key of a row.
            resource_of: Maps a row.
            default: Rows on a page if none were asked for.

        Returns:
            The resources, and the token of the next page, empty on the last.

        Raises:
            ServiceError: INVALID_ARGUMENT for `page_token`: it is broken, or another list's.
        """
        list_hash = paging.filter_hash(
            str(filters[0]),
            caller.organization_id,
            {str(place): part for place, part in enumerate(filters[1:])},
        )
        after: Key | None = None
        if page_token:
            keys = paging.decode(page_token, list_hash, domain=self._domain)
            if len(keys) != 1 or type(keys[0]) is not kind:
                raise paging.invalid_page_token(self._domain)
            after = keys[0]
        limit = paging.page_size(page_size, default=default)
        resources: list[Resource] = []
        size = 0
        while True:
            wanted = min(PORTION, limit + 1 - len(resources))
            rows = await read(after, wanted)
            for row in rows:
                resource = resource_of(row)
                size += resource.ByteSize()
                if resources and (len(resources) == limit or size > PAGE_BYTES) and after is not None:
                    return resources, paging.encode(list_hash, [after])
                resources.append(resource)
                after = key_of(row)
            if len(rows) < wanted:
                return resources, ""
