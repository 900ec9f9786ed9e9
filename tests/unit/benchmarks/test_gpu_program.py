"""The program that measures GPUs works, as far as can be seen without one."""

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and a status that tells a script that nothing was measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert gpu.main([]) == 2

    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA device here" in line


def test_small_version_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU, with one network; what is only there on a GPU is left out."""
    assert gpu.main(["--device", "cpu"]) == 0

    out = capsys.readouterr().out
    assert out.count("\n### ") == 4
    tables = [part.splitlines() for part in out.split("\n### ")[1:]]
    assert [len(table) - 4 for table in tables] == [1, 2, 1, 1]
    for table in tables:
        for row in table[2:]:
            assert row.count("|") == table[2].count("|")


def test_shift_looks_at_what_fp32_is_sure_of() -> None:
    """Boxes of no confidence may go anywhere."""
    exact = torch.tensor([[10.0, 20.0], [10, 20], [4, 4], [4, 4], [0.9, 0.01]])
    moved = exact + torch.tensor([[0.5, 99.0], [0, 0], [0, 0], [0, 0], [-0.1, 0.2]])

    count, pixels, confidence = gpu._shift(exact, moved)

    assert (count, pixels) == (1, 0.5)
    assert confidence == pytest.approx(0.1)
    assert gpu._shift(exact[:, 1:], moved[:, 1:]) == (0, 0.0, 0.0)
