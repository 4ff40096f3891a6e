"""Keeps connections within the process that opened them, so that a client survives a fork."""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

import httpx

HttpT = TypeVar("HttpT", bound=httpx.Client | httpx.AsyncClient)


class Connections(Generic[HttpT]):
    """An httpx client for each process: after a fork, a child opens connections of its own.

    A child that used the parent's connections would read the parent's responses, and threads that
    the child does not have may hold their locks. Nor may the child close them: the sockets are
    shared, so httpx would take those locks, tell the server that the connection ends or, with an
    event loop that both share, stop the parent from reading.
    """

    def __init__(self, create: Callable[[], HttpT], *, recreatable: bool) -> None:
        self._create = create
        self._recreatable = recreatable
        # One attribute, so that threads see a pair of one process.
        self._opened = os.getpid(), create()

    def get(self) -> HttpT:
        """Return this process's httpx client.

        Raises:
            RuntimeError: After a fork, if the caller passed a transport: it cannot be recreated.

        """
        pid, http = self._opened
        # A closed client is returned too: httpx raises for it.
        if pid == os.getpid() or http.is_closed:
            return http
        if not self._recreatable:
            raise RuntimeError(
                "The client's transport belongs to the process that created it, and this process "
                "is a fork of it. Create a client with its own transport in this process."
            )
        return self.renew()

    def renew(self) -> HttpT:
        """Replace the httpx client and return it; requests under way finish on the old one."""
        http = self._create()
        self._opened = os.getpid(), http
        return http

    def discard(self) -> None:
        """Stop using all open connections, because one carried another request's response."""
        if self._recreatable:
            self.renew()

    def owned(self) -> HttpT | None:
        """Return the httpx client of this process, None if it belongs to another one."""
        pid, http = self._opened
        return http if pid == os.getpid() else None
