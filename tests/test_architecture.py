"""The arrows between the rooms, and what a library may not do."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_arrows_run_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:]
    assert "KEPT" in process.stdout


def imports(top: str, name: str) -> dict[str, set[str]]:
    """Modules below a folder, and those of them that each imports as it is loaded."""
    paths = {}
    for path in (ROOT / top).rglob("*.py"):
        parts = path.relative_to(ROOT / top).with_suffix("").parts
        paths[".".join((name, *(part for part in parts if part != "__init__")))] = path
    found = {}
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                up = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = ".".join(filter(None, (up if node.level else "", node.module or "")))
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    names.add(whole if whole in paths else base)
        found[module] = names & paths.keys() - {module}
    return found


@pytest.mark.parametrize(
    ("top", "name"),
    [("jaxlab", "jaxlab"), ("kernels", "jaxlab.kernels"), ("experiments", "experiments")],
)
def test_no_module_imports_itself_through_others(top, name):
    order = graphlib.TopologicalSorter(imports(top, name))
    order.prepare()  # raises CycleError, which names the circle


def test_the_check_for_circles_sees_one():
    with pytest.raises(graphlib.CycleError, match="in a cycle"):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert "jaxlab.core.types" in imports("jaxlab", "jaxlab")["jaxlab.core.loop"]
    assert (
        "jaxlab.kernels.paged"
        in imports("kernels", "jaxlab.kernels")["jaxlab.kernels.mqa_decode.api"]
    )


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
