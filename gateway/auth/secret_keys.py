"""The keys of an issuer's shared secrets, which a rotation adds and withdraws while serving."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from gateway.auth.verification_keys import Key
from kaiten.settings.secrets import DatedSecret, parse_secrets

logger = structlog.get_logger(__name__)
# How long a token that no key verifies waits for another read of the file, which a network drive
# may delay.
_READ_TIMEOUT_S = 1.0
# Before such a read, so that many invented tokens cause at most 100 a second.
_READ_DELAY_S = 0.01


class SecretKeys:
    """The keys of an issuer's secrets, each until its end; those of a ``file`` follow the file.

    A process polls the file, and a worker also reads it for a token that no key verifies: so the
    first token of a new secret is accepted. A secret that has left the file is valid until two
    polls in a row find the same content, as the file may have been half-written. A file that cannot
    be used changes nothing.
    """

    fresh = True

    def __init__(
        self,
        issuer: str,
        secrets: Sequence[DatedSecret],
        key_of: Callable[[str], Key],
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.file = file
        # The content that was last adopted as a whole.
        self.content: bytes | None = None
        self._issuer, self._key_of, self._clock = issuer, key_of, clock
        self._polled: bytes | None = None
        self._fault: str | None = None
        self._reading: asyncio.Task[None] | None = None
        self._generation = 0
        self._keys: tuple[Key, ...] = ()
        self._next_end = math.inf
        self._adopted = tuple(secrets)
        self._use(self._adopted)

    @property
    def generation(self) -> int:
        """Increased when a secret ends or leaves, so that its tokens are verified again."""
        self._drop_ended()
        return self._generation

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms that the keys verify."""
        return frozenset(name for key in self._keys for name in key.algorithms)

    async def find(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  the Protocol's
        self._drop_ended()
        return self._keys

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  as above
        """Return the keys after another read of the file, None if it adds no secret."""
        if self.file is None:
            return None
        before = self._keys
        with suppress(TimeoutError):
            async with asyncio.timeout(_READ_TIMEOUT_S):
                await self._read_again(self.file)
        return self._keys if self._keys != before else None

    async def keep_current(self, poll_s: float) -> None:
        """Poll the file, on a thread, and drop secrets that end, until cancelled."""
        while True:
            if self.file is not None:
                self._take(await asyncio.to_thread(_content_of, self.file), polled=True)
            self._drop_ended()
            await asyncio.sleep(poll_s)

    def poll(self) -> None:
        """Poll the file once."""
        if self.file is not None:
            self._take(_content_of(self.file), polled=True)

    async def _read_again(self, file: Path) -> None:
        """Wait for a read that begins after this call; all that wait for one share it."""
        if self._reading is not None:
            # It may have begun before the file changed.
            await asyncio.shield(self._reading)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(file))
        # A request that gives up must not cancel the read of the others.
        await asyncio.shield(self._reading)

    async def _read(self, file: Path) -> None:
        await asyncio.sleep(_READ_DELAY_S)
        self._take(await asyncio.to_thread(_content_of, file), polled=False)

    def _take(self, content: bytes | OSError, *, polled: bool) -> None:
        """Adopt a file's content as a whole if two polls agree on it, else what it adds."""
        if content == self.content and self._secrets == self._adopted:
            self._report(None)
            return
        try:
            secrets = _parsed(content, self._key_of)
        except ValueError as error:
            self._report(str(error))
            return
        self._report(None)
        if polled and content == self._polled:
            if secrets != self._adopted:
                logger.info("auth_secrets_changed", issuer=self._issuer, secrets=len(secrets))
            self.content, self._adopted = self._polled, secrets
            self._use(secrets)
        else:
            missing = (secret for secret in self._secrets if secret not in secrets)
            self._use((*secrets, *missing))
        if polled and isinstance(content, bytes):
            self._polled = content

    def _use(self, secrets: tuple[DatedSecret, ...]) -> None:
        """Compute the keys that are valid now."""
        self._secrets = secrets
        now = self._clock()
        valid = [secret for secret in secrets if now < secret.ends_at]
        keys = tuple(self._key_of(secret.value) for secret in valid)
        if not {*self._keys} <= {*keys}:
            self._generation += 1
        self._keys = keys
        self._next_end = min((secret.ends_at for secret in valid), default=math.inf)

    def _drop_ended(self) -> None:
        if self._clock() >= self._next_end:
            self._use(self._secrets)
            logger.info("auth_secret_ended", issuer=self._issuer, valid=len(self._keys))

    def _report(self, fault: str | None) -> None:
        """Log that the file cannot be used, once for each reason, and when it can be again."""
        if fault is not None and fault != self._fault:
            remedy = "correct the file; until then the secrets that were read before are in force"
            where = {"issuer": self._issuer, "file": str(self.file)}
            logger.error("auth_secrets_not_read", **where, reason=fault, remedy=remedy)
        elif fault is None and self._fault is not None:
            logger.info("auth_secrets_read_again", issuer=self._issuer)
        self._fault = fault


def _content_of(file: Path) -> bytes | OSError:
    try:
        return file.read_bytes()
    except OSError as error:
        return error


def read_secrets(content: bytes, key_of: Callable[[str], Key]) -> tuple[DatedSecret, ...]:
    """Return the secrets of a file's content.

    Raises:
        ValueError: A line is unusable, or ``key_of`` rejects a secret.

    """
    secrets = parse_secrets(content)
    for secret in secrets:
        key_of(secret.value)
    return secrets


def _parsed(content: bytes | OSError, key_of: Callable[[str], Key]) -> tuple[DatedSecret, ...]:
    """Return the secrets of a file that was read, if it could be.

    Raises:
        ValueError: Says why the file cannot be used.

    """
    if isinstance(content, OSError):
        raise ValueError(f"cannot be read: {content.strerror}")  # noqa: TRY004  not a wrong type
    return read_secrets(content, key_of)
