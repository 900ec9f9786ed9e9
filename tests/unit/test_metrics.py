"""Metrics: their labels stay bounded."""

from serve_app.metrics import ALL, OTHER_MODELS, Copies, ModelLabels


def test_model_labels_stay_bounded_and_keep_their_names() -> None:
    """Thousands of models share a bounded number of labels, and a label never changes hands."""
    labels = ModelLabels(limit=3)
    assert [labels.label(f"m{i}") for i in range(5)] == ["m0", "m1", "m2", *[OTHER_MODELS] * 2]
    assert labels.label("m1") == "m1"
    assert len({labels.label(f"m{i}") for i in range(5000)}) == 4


def test_copies_fall_to_nothing_when_a_model_leaves() -> None:
    """Otherwise its series would stay at what it was; names beyond the limit are one number."""
    copies = Copies(ModelLabels(limit=2))
    assert copies.update(["a", "b", "b"]) == {"a": 1, "b": 2}
    assert copies.update(["b", "c", "d"]) == {"a": 0, "b": 1, OTHER_MODELS: 2}
    assert copies.update([]) == {"b": 0, OTHER_MODELS: 0}
    assert copies.update(["a"]) == {"a": 1}


def test_names_follow_the_conventions() -> None:
    """Names carry the application's prefix, and a time or size carries its unit."""
    for metric in ALL:
        assert metric.name.startswith("serve_app_")
        if metric.unit in ("seconds", "bytes"):
            assert metric.name.endswith(metric.unit)
