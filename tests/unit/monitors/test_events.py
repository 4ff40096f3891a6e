from monitors.events import FanOut
from tests.records import recorded
from tests.unit.gateway.house import Records


def test_each_is_given_every_record() -> None:
    one, other = Records(), Records()
    sink = FanOut(lambda: [one, other])
    sink.put([recorded(item=0), recorded(item=1)])
    sink.put([recorded(item=2)])
    assert [each.item for each in one.kept] == [0, 1, 2]
    assert one.kept == other.kept
