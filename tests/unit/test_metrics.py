"""Metrics: their labels stay bounded."""

from serve_app.metrics import ALL, LAG, OTHER_MODELS, ModelLabels


def test_model_labels_stay_bounded_and_keep_their_names() -> None:
    """Thousands of models share a bounded number of labels, and a label never changes hands."""
    labels = ModelLabels(limit=3)
    assert [labels.label(f"m{i}") for i in range(5)] == ["m0", "m1", "m2", *[OTHER_MODELS] * 2]
    assert labels.label("m1") == "m1"
    assert len({labels.label(f"m{i}") for i in range(5000)}) == 4


def test_names_follow_the_conventions() -> None:
    """Names carry the application's prefix, and a time or size carries its unit."""
    for metric in ALL:
        assert metric.name.startswith("serve_app_")
        if metric.unit in ("seconds", "bytes"):
            assert metric.name.endswith(metric.unit)


def test_buckets_rise_and_tell_short_lags_apart() -> None:
    """What benchmarks/lag.py reads is no finer than these bounds."""
    for metric in ALL:
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.bounds[0] > 0
    assert {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5} <= set(LAG.bounds)
