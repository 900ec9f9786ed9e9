"""The README's console blocks are run, and what they show is what comes back."""

import doctest
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.server import ROOT, Server

ADDRESS = "http://127.0.0.1:8000"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", re.MULTILINE)


def _examples() -> list[tuple[str, str]]:
    blocks = _BLOCK.findall((ROOT / "README.md").read_text())
    return [pair for block in blocks for pair in _COMMAND.findall(block)]


def test_readme_commands_show_what_they_show(server: Server, tmp_path: Path) -> None:
    """Each command's output is the one printed below it; `...` stands for what may differ."""
    server.reset()
    examples = _examples()
    assert len(examples) >= 5
    for name in ("demo", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command, shown in examples:
        ran = subprocess.run(  # noqa: S602
            command.replace("\n> ", "\n").replace(ADDRESS, server.url),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        got = "\n".join(line.rstrip() for line in ran.stdout.splitlines()).strip()
        if not doctest.OutputChecker().check_output(
            shown.strip(), got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        ):
            pytest.fail(f"$ {command}\nREADME shows:\n{shown}\nbut it gave:\n{got}")
