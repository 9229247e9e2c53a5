"""The arrows between the rooms, and what a library may not do."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

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


def test_every_room_stands_in_a_layer():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = {
        room.strip() for layer in contract["contracts"][0]["layers"] for room in layer.split("|")
    }
    rooms = {f"jaxlab.{path.parent.name}" for path in (ROOT / "jaxlab").glob("*/__init__.py")}
    assert rooms | {"experiments", "kernels"} == layers


def test_kernels_need_jax_alone():
    allowed = {"jax", "jaxlib", "numpy", "jaxtyping", *sys.stdlib_module_names}
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                own = name.startswith("jaxlab.kernels")
                assert own or name.partition(".")[0] in allowed, f"{path}: {name}"
