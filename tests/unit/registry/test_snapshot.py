"""References: which version they mean, and what is said when there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import ModelNotFoundError
from serve_app.registry.snapshot import Snapshot, version_order
from serve_app.types import ModelKey, ModelRef
from tests.unit.registry.support import spec

IN_ORDER = ["2026-01-31", "dev", "old", "0.9", "1", "1.2", "1.10", "2", "9", "10", "v10.1", "11"]


def test_versions_sort_as_numbers_with_text_below() -> None:
    """1.10 is above 1.2, 10 above 9, and no folder named `old` ever wins."""
    assert sorted(sorted(IN_ORDER), key=version_order) == IN_ORDER


def test_equal_numbers_have_an_order_too() -> None:
    """Which of 1, 01 and v1 is the highest does not depend on the disk's order."""
    for keys in (["a@1", "a@01", "a@v1"], ["a@v1", "a@01", "a@1"]):
        assert str(Snapshot([list(map(spec, keys))]).resolve(ModelRef("a"))) == "a@v1"


def test_a_bare_name_means_the_highest_version() -> None:
    """Exact versions stay reachable."""
    snapshot = Snapshot([[spec("a@9"), spec("a@10"), spec("a@dev"), spec("b@1")]])
    assert snapshot.resolve(ModelRef("a")) == ModelKey("a", "10")
    assert snapshot.resolve(ModelRef("a", "dev")) == ModelKey("a", "dev")
    assert snapshot.spec(ModelKey("a", "9")) == spec("a@9")
    assert [str(entry.key) for entry in snapshot.specs] == ["a@dev", "a@9", "a@10", "b@1"]


def test_the_first_source_that_knows_a_name_decides() -> None:
    """The operator's own yolo11n@1 is not replaced by the official yolo11n@v8.4.0."""
    own, official = [spec("yolo11n@1")], [spec("yolo11n@v8.4.0", "ultralytics"), spec("b@1")]
    snapshot = Snapshot([own, official])
    assert str(snapshot.resolve(ModelRef("yolo11n"))) == "yolo11n@1"
    assert str(snapshot.resolve(ModelRef("yolo11n", "v8.4.0"))) == "yolo11n@v8.4.0"
    assert str(snapshot.resolve(ModelRef("b"))) == "b@1"


def test_the_same_key_in_two_sources_is_the_first_ones() -> None:
    """One key is one model."""
    snapshot = Snapshot([[spec("a@1")], [spec("a@1", "ultralytics")]])
    assert [entry.source for entry in snapshot.specs] == ["folder"]


def _refusal(snapshot: Snapshot, reference: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        snapshot.resolve(ModelRef.parse(reference))
    return caught.value.detail


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    """Five at most, and the number of all."""
    snapshot = Snapshot([[spec(f"yolo11{size}@1") for size in "nsmlxabc"] + [spec("parts@1")]])
    detail = _refusal(snapshot, "yolo11")
    assert detail.count("yolo11") == 6
    assert "9 names are listed at GET /v1/models" in detail
    assert "did you mean" not in _refusal(snapshot, "zzzzzz")


def test_an_unknown_version_is_answered_with_the_highest_ones() -> None:
    """Five at most, and what the bare name means."""
    snapshot = Snapshot([[spec(f"a@{number}") for number in range(1, 13)]])
    detail = _refusal(snapshot, "a@99")
    assert "it has 8, 9, 10, 11, 12 (12 in all)" in detail
    assert "'a' alone means a@12" in detail
    with pytest.raises(ModelNotFoundError):
        snapshot.spec(ModelKey("a", "99"))


def test_an_empty_registry_tells_how_to_fill_it() -> None:
    """The first thing a new user meets."""
    assert "<repository>/a/1/model.pt" in _refusal(Snapshot([]), "a")


def test_versions_are_listed_from_the_lowest_to_the_highest() -> None:
    """Those of all sources, each once; none of a name that nobody knows."""
    snapshot = Snapshot([[spec("a@10"), spec("a@9"), spec("b@1")], [spec("a@v8.4.0"), spec("a@9")]])
    assert snapshot.versions("a") == ("v8.4.0", "9", "10")
    assert [str(entry.key) for entry in snapshot.of_name("a")] == ["a@10", "a@9", "a@v8.4.0"]
    assert snapshot.versions("c") == ()
    assert snapshot.of_name("c") == ()


_KEYS = st.builds("{}@{}".format, st.sampled_from("abc"), st.sampled_from(["1", "2", "10", "dev"]))
_SOURCES = st.lists(st.lists(_KEYS, unique=True, max_size=8), min_size=2, max_size=2)


@given(before=_SOURCES, after=_SOURCES, name=st.sampled_from("abc"))
def test_one_name_replaced_is_as_if_all_were_made_anew(
    before: list[list[str]], after: list[list[str]], name: str
) -> None:
    """Whatever there was of it and is now, and the snapshot before stays as it was."""
    old = [list(map(spec, keys)) for keys in before]
    new = [[spec(key) for key in keys if key.startswith(name)] for keys in after]
    mixed = [
        [*(entry for entry in known if entry.key.name != name), *of_name]
        for known, of_name in zip(old, new, strict=True)
    ]
    snapshot = Snapshot(old)
    assert _told(snapshot.with_name(name, new)) == _told(Snapshot(mixed))
    assert _told(snapshot) == _told(Snapshot(old))


def _told(snapshot: Snapshot) -> list[object]:
    told: list[object] = [snapshot.specs]
    for name in "abc":
        told += [snapshot.of_name(name), snapshot.versions(name)]
        for version in (None, "1", "10", "dev"):
            try:
                told.append(snapshot.resolve(ModelRef(name, version)))
            except ModelNotFoundError as error:
                told.append(error.detail)
    return told
