"""Targets, tables and pictures from figures that were made up."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan
from benchmarks.report import compose, write_report
from benchmarks.results import Results
from benchmarks.targets import Row, rows
from tests.unit.benchmarks.made_up import make_results


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The content of a results.json."""
    return make_results()


def find(results: Results, *words: str) -> Row:
    """Return the row whose target has all these words."""
    (row,) = [row for row in rows(results) if all(word in row.what for word in words)]
    return row


def test_ratios_are_of_one_pass_each(plain: dict[str, Any]) -> None:
    """The figure is their median, and the spread is told."""
    row = find(Results(plain), "8 clients", "(auto)")
    assert len(row.values) == 2
    assert row.value == pytest.approx(sum(row.values) / 2)
    assert "to" in row.reached
    assert row.target == "at least 0.95 x"
    assert not row.met


def test_added_latency_is_a_difference_in_milliseconds(plain: dict[str, Any]) -> None:
    """Of the medians, with one client."""
    row = find(Results(plain), "1 client", "(auto)")
    assert row.unit == "ms"
    assert row.value == pytest.approx(1000 * (1 / 14 - 1 / 17), rel=0.2)
    assert not row.met


def test_a_target_is_met_on_its_own_side(plain: dict[str, Any]) -> None:
    """More requests and lower latencies are better."""
    results = Results(plain)
    assert find(results, "requests/s over stock's", "(auto)").met
    assert not find(results, "requests/s over stock's", "(fp32)").met
    assert find(results, "p99 over stock's", "(auto)").met
    assert find(results, "12 x YOLO(path)").value == pytest.approx(85 / 380, abs=0.02)


def test_a_miss_breaks_the_byte_budget(plain: dict[str, Any]) -> None:
    """All must be resident, and nothing may be loaded while they are asked."""
    assert find(Results(plain), "in the bytes").met
    missed = deepcopy(plain)
    run = missed["passes"][0][plan.BUDGET]["zipf"]["run"]
    run["records"][3][5] = True
    assert not find(Results(missed), "in the bytes").met
    fewer = deepcopy(plain)
    fewer["passes"][0][plan.BUDGET]["prepare"]["grow"]["resident"] = 23
    assert not find(Results(fewer), "in the bytes").met


@pytest.mark.parametrize("status", [500, 503, 0])
def test_a_storm_with_one_failure_does_not_hold(plain: dict[str, Any], status: int) -> None:
    """A 5xx and no answer at all count the same."""
    assert find(Results(plain), "swap storm").met
    failed = deepcopy(plain)
    failed["passes"][0][plan.AUTO]["storm"]["run"]["records"][0][4] = status
    assert not find(Results(failed), "swap storm").met


def test_one_long_wait_breaks_a_storm(plain: dict[str, Any]) -> None:
    """Ten medians are the limit."""
    waited = deepcopy(plain)
    waited["passes"][0][plan.AUTO]["storm"]["run"]["records"][0][3] += 60
    assert not find(Results(waited), "swap storm").met


def test_what_was_not_measured_has_no_row(plain: dict[str, Any]) -> None:
    """A run of a few scenarios gives a shorter table and no invented figure."""
    some = deepcopy(plain)
    some["passes"] = [{plan.BARE_AUTO: some["passes"][0][plan.BARE_AUTO]}]
    assert rows(Results(some)) == []
    text = compose(Results(some), {})
    assert "Not run: " in text
    assert "nan" not in text


def test_the_report_tells_where_and_what(plain: dict[str, Any]) -> None:
    """Date, machine, versions, every target and every server are in it."""
    text = compose(Results(plain), {"requests": "requests.png"})
    for word in ("2026-01-02", "Some CPU", "avx512_bf16", "ray 2.60.0", "24 GiB"):
        assert word in text
    assert "![Requests per second](requests.png)" in text
    assert "serve_app (auto) 9" in text
    for row in rows(Results(plain)):
        assert row.what in text
    assert "nan" not in text
    assert "not idle" not in text


def test_a_busy_machine_and_failures_are_told(plain: dict[str, Any]) -> None:
    """They make figures worth less, so they are not kept back."""
    busy = deepcopy(plain)
    busy["machine"]["load"] = 3.0
    busy["failures"] = ["stock, zipf: ServerError: gone"]
    text = compose(Results(busy), {})
    assert "**the machine was not idle**" in text
    assert "- `stock, zipf: ServerError: gone`" in text


def test_pictures_are_small_files_that_the_report_names(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    """All four, each below 200 KB."""
    text = write_report(plain, tmp_path).read_text()
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in pictures] == ["goodput", "latency", "memory", "requests"]
    for path in pictures:
        assert path.stat().st_size < 200_000
        assert f"]({path.name})" in text
