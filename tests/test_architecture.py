"""The arrows between the rooms, and what a document may not say."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_arrows_run_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:]
    assert "KEPT" in process.stdout


def test_library_neither_prints_nor_reads_a_command_line():
    allowed = {ROOT / "jaxlab/core/logging.py", ROOT / "jaxlab/core/checkpoint.py"}
    pattern = re.compile(r"^\s*(print\(|import argparse|import tyro|.*sys\.argv)", re.MULTILINE)
    for top in ("jaxlab", "kernels"):
        for path in (ROOT / top).rglob("*.py"):
            if path not in allowed and "bench" not in path.name:
                assert not pattern.search(path.read_text()), path
