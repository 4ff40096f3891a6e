"""A peer's best configuration counts, shape by shape."""

from benchmarks.catalogue import PEERS
from benchmarks.results import Record
from benchmarks.rounds import best_of
from benchmarks.texts import SHAPES

PEER = next(peer for peer in PEERS if peer.name == "triton")
FIRST, SECOND = (configuration.name for configuration in PEER.configurations[:2])
CLOSED = [SHAPES["1x32"], SHAPES["32x4"]]


def record(configuration: str, shape: str, texts_s: float, errors: int = 0) -> Record:
    return {
        "configuration": configuration,
        "shape": shape,
        "texts_s": texts_s,
        "errors": errors,
    }


def choose(*rows: Record) -> dict[str, str]:
    shapes = [*CLOSED, SHAPES["open70"]]
    return {name: choice.name for name, choice in best_of(PEER, rows, CLOSED, shapes).items()}


def test_each_shape_has_its_own_best_and_the_open_loop_that_of_its_capacity() -> None:
    choices = choose(
        record(FIRST, "1x32", 90),
        record(SECOND, "1x32", 100),
        record(FIRST, "32x4", 100),
        record(SECOND, "32x4", 90),
    )
    assert choices == {"1x32": SECOND, "32x4": FIRST, "open70": SECOND}


def test_a_configuration_with_errors_counts_only_if_there_is_none_without() -> None:
    assert choose(record(FIRST, "1x32", 10), record(SECOND, "1x32", 99, 3))["1x32"] == FIRST
    assert choose(record(SECOND, "1x32", 99, 3))["1x32"] == SECOND


def test_a_shape_that_nothing_answered_has_no_configuration() -> None:
    assert choose(record(FIRST, "1x32", 90), record(FIRST, "32x4", 0, 50)) == {
        "1x32": FIRST,
        "open70": FIRST,
    }
