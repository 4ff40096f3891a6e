"""The tables of a run on a GPU."""

from pathlib import Path

from benchmarks.gpu import report
from benchmarks.results import Results

CONDITIONS = {
    "device": "NVIDIA H100 80GB HBM3",
    "date": "2026-11-25 08:00 UTC",
    "cpu": "a CPU",
    "cores": 16,
    "os": "an OS",
    "python": "3.12.3",
    "commit": "abc",
    "dirty": False,
    "versions": {"torch": "2.11.0"},
}
SERVED = {"layout": "8 workers, one device process", "texts": 1, "connections": 256}


def full_results(folder: Path) -> Results:
    results = Results(folder / "gpu.json", dict(CONDITIONS))
    results.conditions |= {"network": "BERT", "labels": 77, "texts": "some", "tokens_mean": 15.0}
    results.conditions |= {"flops_per_token": 1e9, "head_right": 0.99, "settings": "as shipped"}
    rates = {report.PADDED: 1.5e5, report.PACKED: 3e5, "fp32, padded": 3e4}
    for engine, tokens_s in rates.items():
        results.add("offline", engine=engine, batch=32, texts_s=tokens_s / 15, tokens_s=tokens_s)
    results.add("parity", texts=3072, equal_labels=0.999, max_difference=0.01)
    figures = {"requests_s": 4000.0, "texts_s": 4000.0, "tokens_s": 6e4, "p50_ms": 50.0}
    costs = {"p99_ms": 80.0, "errors": 0, "server_cores": 8.0, "client_cores": 2.0, "batch": 64.0}
    results.add("served", **SERVED, **figures, **costs)
    layout_figures = {"ready_s": 20.0, "memory_mb": 900.0, "device_memory_mb": 4000.0}
    results.add("layout", layout=SERVED["layout"], equal_labels=1.0, **layout_figures)
    results.add("skipped", layout="12 workers", reason="no time was left")
    results.add("failed", name="Served: 4 workers", reason="ServerFailed: no\nlast lines", trace="")
    return results


def test_figures_are_held_against_the_limits(tmp_path: Path) -> None:
    text = report.write(full_results(tmp_path)).read_text()
    # 3e5 tokens/s of 1e9 operations are 300 TFLOP/s of 989.
    assert "| half precision, packed | 32 | 20,000 | 300,000 | 300.0 | 30% |" in text
    # The peak is that of half precision.
    assert "| fp32, padded | 32 | 2,000 | 30,000 | 30.0 | - |" in text
    assert f"- Packed, against {report.PADDED}: 2.00 times at 32 texts." in text
    assert f"against {report.AS_THEY_COME}" not in text
    assert "99.90% of 3072 texts" in text
    layout = "| 8 workers, one device process | 1 x 256 |"
    assert f"{layout} 4,000 | 4,000 | 60,000 | 0.20 | 50 | 80 | 64 | 8.0 | 500 | 2.0 | 0 |" in text
    assert "Not measured: 12 workers: no time was left" in text
    assert "- Failed: Served: 4 workers: ServerFailed: no\n" in text


def test_run_that_was_cut_short_has_a_report(tmp_path: Path) -> None:
    text = report.write(Results(tmp_path / "gpu.json", dict(CONDITIONS))).read_text()
    assert "# On NVIDIA H100" in text
    assert "## Served" not in text
