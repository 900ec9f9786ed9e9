"""Settings: what is accepted, what is refused, and that a refusal names the key."""

import pytest

from serve_app.settings import AppArgs, DetectorConfig, SettingsError
from serve_app.types import ModelKey

GIB = 2**30


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (2 * GIB, 2 * GIB),
        ("2GiB", 2 * GIB),
        ("500MB", 500_000_000),
        ("80%", 8 * GIB),
        ("12.5 %", 1.25 * GIB),
    ],
)
def test_memory_budget_takes_bytes_sizes_and_shares(written: int | str, expected: float) -> None:
    """A budget is bytes, a size with a unit, or a share of the device."""
    config = DetectorConfig.parse({"memory_budget": written})
    assert config.budget_bytes(10 * GIB) == expected


@pytest.mark.parametrize(
    "written", [0, -1, True, "0%", "101%", "two gigabytes", "", None, 1.5, [1]]
)
def test_memory_budget_refuses_what_is_no_amount(written: object) -> None:
    """Anything else is refused with the key's name."""
    with pytest.raises(SettingsError, match="^memory_budget: "):
        DetectorConfig.parse({"memory_budget": written})


def test_budget_larger_than_the_device_is_refused() -> None:
    """A budget in bytes cannot exceed the device."""
    with pytest.raises(SettingsError, match="memory_budget: .* more than the device has"):
        DetectorConfig.parse({"memory_budget": "16GiB"}).budget_bytes(8 * GIB)


def test_unknown_key_is_named_with_the_key_that_was_meant() -> None:
    """A misspelt key is refused and the near one suggested."""
    with pytest.raises(
        SettingsError, match="memory_bugdet: unknown key; did you mean 'memory_budget'"
    ):
        DetectorConfig.parse({"memory_bugdet": "2GiB"})
    with pytest.raises(SettingsError, match="xyz: unknown key; known keys: repository, "):
        AppArgs.parse({"xyz": 1})


def test_more_pins_and_preloads_than_max_models_is_a_contradiction() -> None:
    """They are counted together, each version once."""
    config = DetectorConfig.parse({"max_models": 1, "pinned": ["a"], "preload": ["a@1"]})
    a, b = ModelKey("a", "1"), ModelKey("b", "1")
    config.check_count([a, a])
    with pytest.raises(SettingsError, match="max_models: 1, but pinned and preload name 2"):
        config.check_count([a, b])


@pytest.mark.parametrize("size", ["2GiB", 2**31, "3GB"])
def test_a_body_larger_than_a_message_between_replicas_is_refused(size: str | int) -> None:
    """Each one would fail on its way to a detector."""
    with pytest.raises(SettingsError, match=r"^max_body_bytes: \d+ bytes .* less than 2GiB"):
        AppArgs.parse({"max_body_bytes": size, "max_inflight_bytes": "8GiB"})
    allowed = AppArgs.parse({"max_body_bytes": 2**31 - 1, "max_inflight_bytes": "2GiB"})
    assert allowed.max_body_bytes == 2**31 - 1


@pytest.mark.parametrize("reference", ["", "../etc", "a@b@c", "a b", 7])
def test_malformed_references_are_refused(reference: object) -> None:
    """A pin must be a model reference."""
    with pytest.raises(SettingsError, match=r"^pinned\.0: "):
        DetectorConfig.parse({"pinned": [reference]})


def test_pins_and_preloads_may_tell_their_copies() -> None:
    """A bare pin is for every replica, a bare preload for one."""
    entries = ["a", {"model": "b@2", "copies": 3}, {"model": "c", "copies": "all"}, {"model": "d"}]
    config = DetectorConfig.parse({"pinned": entries, "preload": entries})
    assert [(one.model, one.copies) for one in config.pinned] == [
        ("a", None),
        ("b@2", 3),
        ("c", None),
        ("d", None),
    ]
    assert [one.copies for one in config.preload] == [1, 3, None, 1]


@pytest.mark.parametrize("copies", [0, -1, 257, 1.5, "two", True, [1]])
def test_a_number_of_copies_that_is_none_is_refused(copies: object) -> None:
    """The text tells what is possible."""
    entry = {"model": "a", "copies": copies}
    with pytest.raises(SettingsError, match=r"^pinned\.0: copies: .* from 1 to 256, or 'all'$"):
        DetectorConfig.parse({"pinned": [entry]})


@pytest.mark.parametrize("entry", [{"copies": 2}, {"model": "a", "copy": 2}])
def test_an_entry_with_unknown_or_missing_keys_is_refused(entry: object) -> None:
    """As everywhere in the settings."""
    with pytest.raises(SettingsError, match=r"^preload\.0: .*\{model: name, copies: 2\}$"):
        DetectorConfig.parse({"preload": [entry]})


def test_settings_are_frozen() -> None:
    """Nothing changes a setting after it was read."""
    with pytest.raises(ValueError, match="frozen"):
        AppArgs().device = "cpu"
