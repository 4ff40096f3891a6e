import stat
from pathlib import Path

import numpy as np

from monitors.spool import TENANT, Source, Spool, columns
from tests.records import recorded

INTENT, TOPIC = "intent:1.0.0", "topic:2.1.0"
PRODUCTION = Source(INTENT, "production")


def nobody(_: str) -> str:
    return ""


def test_rows_are_read_as_they_were_put(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put([recorded(text_length=3, label="a"), recorded(text_length=5, label="bcd")], nobody)
    spool.put([recorded(text_length=7, label="long label")], nobody)
    parts = spool.parts(PRODUCTION)
    assert [part.rows for part in parts] == [2, 1]
    found = columns([part.read() for part in parts])
    assert found["text_length"].tolist() == [3, 5, 7]
    assert found["label"].tolist() == ["a", "bcd", "long label"]
    assert np.isnan(found["distance"].astype(float)).all()


def test_models_and_arms_are_kept_apart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [recorded(), recorded(model=TOPIC), recorded(arm="canary"), recorded()]
    spool.put(records, nobody)
    sizes = {source: sum(p.rows for p in spool.parts(source)) for source in spool.sources()}
    assert sizes == {PRODUCTION: 2, Source(INTENT, "canary"): 1, Source(TOPIC, "production"): 1}


def test_parts_come_oldest_first_whoever_wrote_them(tmp_path: Path) -> None:
    now = [20.0]
    early, late = Spool(tmp_path, lambda: 10.5), Spool(tmp_path, lambda: now[0])
    late.put([recorded(text_length=2)], nobody)
    early.put([recorded(text_length=1)], nobody)
    now[0] = 1000.0
    late.put([recorded(text_length=3)], nobody)
    parts = late.parts(PRODUCTION)
    assert [part.at for part in parts] == [10.5, 20, 1000]
    assert columns([part.read() for part in parts])["text_length"].tolist() == [1, 2, 3]


def test_forgotten_parts_are_gone_and_others_stay(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for length in (1, 2):
        spool.put([recorded(text_length=length)], nobody)
    first, second = spool.parts(PRODUCTION)
    spool.forget([first])
    spool.forget([first])
    assert spool.parts(PRODUCTION) == [second]
    spool.forget([second])
    assert spool.sources() == []


def test_what_is_half_written_is_no_part(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put([recorded()], nobody)
    (part,) = spool.parts(PRODUCTION)
    part.path.rename(part.path.with_suffix(".partial"))
    assert (spool.sources(), spool.parts(PRODUCTION)) == ([], [])


def test_a_part_is_its_owners_alone_and_names_no_subject_nor_request(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put([recorded(subject="kaiten|alice", request_id="canary-4711")], lambda _: "p-1")
    (part,) = spool.parts(PRODUCTION)
    assert stat.S_IMODE(part.path.stat().st_mode) == 0o600
    assert part.read()[TENANT].tolist() == ["p-1"]
    content = part.path.read_bytes()
    for private in ("alice", "canary-4711"):
        assert private.encode() not in content
        assert private.encode("utf-32-le") not in content
