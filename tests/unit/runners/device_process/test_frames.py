"""Frames, whole and in pieces, and what makes no sense."""

import math
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaiten.errors import DeadlineExceeded, InferenceFailed, KaitenError, NotReady, QueueFull
from runners.device_process.frames import DeviceRequest, DeviceResponse, FrameProtocol, Kind, frame

NUMBERS = st.integers(0, 2**32 - 1)
STEADY = settings(deadline=None, derandomize=True, database=None)
PARTS = st.lists(st.binary(max_size=40), max_size=8)


class RecordingProtocol(FrameProtocol):
    """Keeps its frames, and refuses one that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[Kind, int, bytes]] = []
        self.hung_up = False

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        if bytes(content) == b"nonsense":
            raise ValueError
        self.frames.append((kind, number, bytes(content)))

    def disconnect(self) -> None:
        self.hung_up = True


def content(frame_bytes: bytes) -> memoryview:
    """Return the content after a frame's length, kind and number."""
    return memoryview(frame_bytes)[9:]


@STEADY
@given(PARTS, st.floats(allow_nan=False), st.none() | st.text(min_size=1, max_size=64), NUMBERS)
def test_call_comes_out_as_it_went_in(
    parts: list[bytes], deadline: float, request_id: str | None, number: int
) -> None:
    request = DeviceRequest(parts, deadline, request_id)
    assert DeviceRequest.decode(content(request.encode(number))) == request


@STEADY
@given(PARTS, st.integers(1, 10_000), NUMBERS)
def test_answer_comes_out_as_it_went_in(parts: list[bytes], drain: int, number: int) -> None:
    answer = DeviceResponse(parts, None, drain)
    assert DeviceResponse.decode(content(answer.encode(number))) == answer


@pytest.mark.parametrize(
    "error", [QueueFull(7), DeadlineExceeded(3), NotReady(), InferenceFailed()]
)
def test_error_comes_out_as_it_went_in(error: KaitenError) -> None:
    response = DeviceResponse.decode(
        content(DeviceResponse(error=error, queue_delay_s=4).encode(1))
    )
    assert type(response.error) is type(error)
    assert vars(response.error) == vars(error)
    assert (response.parts, response.queue_delay_s) == ([], 4)


def test_other_errors_come_out_as_a_failure() -> None:
    response = DeviceResponse.decode(
        content(DeviceResponse(error=KaitenError("of no kind")).encode(1))
    )
    assert isinstance(response.error, InferenceFailed)


@STEADY
@given(st.lists(st.tuples(st.sampled_from(Kind), NUMBERS, st.binary(max_size=30))), st.data())
def test_frames_come_whole_however_the_bytes_are_cut(
    sent: Sequence[tuple[Kind, int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frame(*fields) for fields in sent)
    protocol = RecordingProtocol()
    at = 0
    while at < len(stream):
        end = data.draw(st.integers(at + 1, len(stream)))
        protocol.data_received(stream[at:end])
        at = end
    expected = [fields for fields in sent if fields[2] != b"nonsense"]
    assert protocol.frames == expected
    assert not protocol.hung_up


@pytest.mark.parametrize(
    "stream",
    [
        frame(Kind.REQUEST, 1, b"nonsense"),
        # No such kind, and no room for a kind.
        struct.pack("=IBI", 5, 99, 1),
        struct.pack("=IB", 1, 3),
        # More than any request may hold.
        struct.pack("=I", 1 << 30),
    ],
)
def test_nonsense_ends_the_connection(stream: bytes) -> None:
    protocol = RecordingProtocol()
    protocol.data_received(frame(Kind.HELLO, 0, b"model") + stream)
    assert protocol.hung_up
    assert protocol.frames == [(Kind.HELLO, 0, b"model")]


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_call_that_is_cut_off_is_none(cut: int) -> None:
    encoded_request = content(DeviceRequest([b"some", b"items"], math.inf, "an-id").encode(1))
    with pytest.raises((ValueError, struct.error)):
        DeviceRequest.decode(encoded_request[:-cut])


def test_nothing_is_sent_to_who_has_gone() -> None:
    protocol = FrameProtocol()
    protocol.send(frame(Kind.CANCEL, 1))
    protocol.disconnect()
    assert not protocol.connected
    with pytest.raises(NotImplementedError):
        protocol.frame_received(Kind.HELLO, 0, memoryview(b""))
