"""Ratios are of pairs in one round; the report names losses and gaps."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.report import markdown, write_report
from benchmarks.results import Results
from benchmarks.summary import Mark, Spread, ledger, losses, marks


def some_results(path: Path = Path("unused.json")) -> Results:
    """Three rounds at 1x32: ours 200, 220, 100; peers at 100 or 80, each best once or twice."""
    results = Results(path, {"date": "2026-01-02", "cpu": "a cpu"})
    figures = {"kaiten": (200, 220, 100), "triton": (100, 80, 100), "litserve": (50, 100, 50)}
    for server, speeds in figures.items():
        for number, speed in enumerate(speeds, 1):
            load(results, server, "1x32", number, texts_s=speed)
            memory = 700 if server == "kaiten" else 500
            results.records.append(
                {
                    "kind": "server",
                    "server": server,
                    "round": number,
                    "configuration": "any",
                    "memory_peak_mb": memory,
                    "memory_settled_mb": memory,
                    "ready_s": 5.0,
                }
            )
    for number, speed in enumerate((250, 250, 200), 1):
        row = {"kind": "offline", "server": "kaiten", "shape": "1x32", "round": number}
        results.records.append({**row, "texts_s": speed, "p50_ms": 100})
    return results


def load(results: Results, server: str, shape: str, number: int, **figures: float) -> None:
    usual = {"texts_s": 100, "p50_ms": 10, "p99_ms": 30, "errors": 0, "cpu_ms_per_request": 5}
    about = {"kind": "load", "server": server, "shape": shape, "round": number}
    results.records.append({**about, **usual, **figures})


def mark_of(results: Results, metric: str) -> Mark:
    (mark,) = [mark for mark in marks(results) if metric in mark.metric]
    return mark


def test_the_ratio_is_to_the_best_peer_of_the_same_round() -> None:
    mark = mark_of(some_results(), "times the best peer's")
    assert mark.result == Spread(median=2.0, low=1.0, high=2.2)
    assert mark.met is True


def test_the_share_of_the_limit_is_of_pairs_too() -> None:
    mark = mark_of(some_results(), "share of the offline limit")
    assert mark.result == Spread(median=0.8, low=0.5, high=0.88)
    assert mark.met is True


def test_a_bound_from_above_is_missed_by_more() -> None:
    assert mark_of(some_results(), "MiB at the most").met is False


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert mark_of(some_results(), "right labels").met is None


def test_losses_name_what_a_peer_does_better_by_the_medians() -> None:
    lost = losses(some_results())
    assert "triton: 500.0 MiB, ours 700.0" in lost
    assert not [line for line in lost if "texts/s" in line]


def test_the_open_loop_compares_our_tail_with_the_calmest_peer() -> None:
    results = some_results()
    for server, p50, p99 in (("kaiten", 10, 30), ("triton", 40, 90), ("litserve", 60, 90)):
        load(results, server, "open70", 1, p50_ms=p50, p99_ms=p99)
    against = mark_of(results, "lowest p50 of a peer")
    assert against.result == Spread(0.75, 0.75, 0.75)
    assert mark_of(results, "p99, times the p50").result == Spread(3.0, 3.0, 3.0)


def test_the_report_lists_a_peer_that_was_left_out_with_its_error(tmp_path: Path) -> None:
    results = some_results(tmp_path / "results.json")
    results.add("absent", server="mlserver", error="Its installation failed.\nno such package")
    text = markdown(results)
    assert "MLServer (installation): `Its installation failed. / no such package`" in text
    assert "| Kaiten | 200<br>10.0 / 30.0 |" in text


def test_an_interrupted_run_can_be_reported(tmp_path: Path) -> None:
    results = some_results(tmp_path / "cut.json")
    results.save()
    written = write_report(Results.load(tmp_path / "cut.json"))
    assert written.read_text().startswith("# Benchmark of 2026-01-02")
    plot = ET.parse(written.with_suffix(".svg")).getroot()
    assert plot.tag.endswith("svg")
    assert len([node for node in plot.iter() if node.tag.endswith("rect")]) == 4


def test_a_disturbed_measurement_is_reported() -> None:
    results = some_results()
    assert "left alone" in markdown(results)
    load(results, "kaiten", "1x1", 1, other_cores=0.9)
    assert "In 1 of 10 measurements other programs took up to 0.9 cores" in markdown(results)


def test_a_report_of_nothing_does_not_fail() -> None:
    assert "Kaiten was not measured." in markdown(Results(Path("unused.json"), {}))


def test_records_are_on_disk_as_they_come(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", {"date": "today"})
    results.add("load", server="kaiten", texts_s=1.23456789)
    assert Results.load(results.path).records == [
        {"kind": "load", "server": "kaiten", "texts_s": pytest.approx(1.2346)}
    ]


def test_the_ledger_ends_in_what_its_parts_do_not_explain() -> None:
    results = some_results()
    assert ledger(results) == []
    results.records.append({"kind": "ledger", "edge": 100.0, "infer": 2500.0})
    assert ledger(results) == [
        ("edge", 100.0),
        ("infer", 2500.0),
        ("left over", 2400.0),
        ("measured", 5000.0),
    ]
    assert "| left over | 2400 | sockets" in markdown(results)
