"""What was issued and revoked, as this worker knows it."""

import asyncio

import structlog

from gateway.tokens.credentials import Credentials, CredentialStore
from kaiten.errors import NotReady, StateUnavailable

logger = structlog.get_logger(__name__)


class CredentialsWatch:
    """Reads the store again and again, and holds to what it last said while it is away."""

    def __init__(self, store: CredentialStore, poll_s: float) -> None:
        self._store, self._poll_s = store, poll_s
        self._current: Credentials | None = None
        self._away = False

    def current(self) -> Credentials:
        """Return what is known; NotReady before the store was read once.

        Who was revoked is let in by nobody who has not read the list.
        """
        if self._current is None:
            raise NotReady
        return self._current

    @property
    def known(self) -> bool:
        """Whether the store was read once."""
        return self._current is not None

    def poll(self) -> None:
        """Read the store once."""
        try:
            found = self._store.read()
        except Exception as error:  # noqa: BLE001  it has to go on, whatever a store trips over
            told = error.message if isinstance(error, StateUnavailable) else type(error).__name__
            if not self._away:
                # Nobody mends it by where it was raised.
                logger.error("credentials_not_read", reason=told)  # noqa: TRY400
            self._away = True
            return
        if self._away or found != (self._current or Credentials()):
            # What an operator who has revoked something looks for.
            counts = {name: len(each) for name, each in found}
            event = "credentials_read_again" if self._away else "credentials_read"
            logger.info(event, **counts)
        self._current, self._away = found, False

    async def keep_current(self) -> None:
        """Poll until cancelled, on a thread: a store that hangs holds up no request."""
        while True:
            await asyncio.to_thread(self.poll)
            await asyncio.sleep(self._poll_s)
