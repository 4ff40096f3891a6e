"""The connections of a client, which belong to the process that opened them."""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

import httpx

HttpT = TypeVar("HttpT", bound=httpx.Client | httpx.AsyncClient)


class Connections(Generic[HttpT]):
    """An httpx client for each process: after a fork, a child opens connections of its own.

    A child that used its parent's connections would read the parent's answers, and its locks may be
    held by threads that the child does not have. It closes none of them: the file descriptors are
    copies, and httpx would take those locks, tell the server of the end or, by an event loop that
    both share, stop the parent from reading.
    """

    def __init__(self, create: Callable[[], HttpT], *, recreatable: bool) -> None:
        self._create = create
        self._recreatable = recreatable
        # One attribute, so that threads see both of one process.
        self._opened = os.getpid(), create()

    def get(self) -> HttpT:
        """Return this process's httpx client.

        Raises:
            RuntimeError: a transport that the caller made before a fork cannot be made again.

        """
        pid, http = self._opened
        # httpx refuses a request itself where it is closed.
        if pid == os.getpid() or http.is_closed:
            return http
        if not self._recreatable:
            raise RuntimeError(
                "The client's transport belongs to the process that made it, and this is a fork of "
                "that process. Make a client with a transport of its own here."
            )
        return self.renew()

    def renew(self) -> HttpT:
        """Return a new httpx client; requests under way end on the connections that they have."""
        http = self._create()
        self._opened = os.getpid(), http
        return http

    def discard(self) -> None:
        """Use none of the open connections again, as one has carried another request's answer."""
        if self._recreatable:
            self.renew()

    def owned(self) -> HttpT | None:
        """Return the httpx client to close, unless it is another process's."""
        pid, http = self._opened
        return http if pid == os.getpid() else None
