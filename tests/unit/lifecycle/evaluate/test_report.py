"""The checks of a report: each has a bound, and names the setting that it comes from."""

from functools import partial

import numpy as np

from kaiten.settings.models import ValidationSettings, ValidationThresholds
from lifecycle.evaluate.measures import measure
from lifecycle.evaluate.report import Cost, GoldenResult, check_thresholds


def test_a_check_names_the_setting_of_its_bound() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]], dtype=np.float32)
    measures = measure(np.array([0, 1, 1, 1]), scores, ["no", "yes"])
    cost = Cost(device="cpu", latency_p50_ms=1, latency_p99_ms=2, memory_mib=1, size_mib=1)
    golden = GoldenResult(file="golden.csv", digest="0" * 64, rows=1, wrong=[1])
    settings = ValidationSettings(models={"ours": ValidationThresholds(min_accuracy=0.9)})
    threshold = partial(settings.threshold, "ours")
    checks = {
        check.name: check for check in check_thresholds(measures, cost, None, golden, threshold)
    }
    accuracy = "accuracy is 0.75, and must be at least 0.9 (validation.models.ours.min_accuracy)"
    assert (str(checks["accuracy"]), checks["accuracy"].passed) == (accuracy, False)
    assert checks["macro F1"].setting == "validation.min_macro_f1"
    assert str(checks["wrong golden rows"]) == "wrong golden rows is 1, and must be at most 0"
