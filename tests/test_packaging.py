"""What is installed is what was written: editable, from a wheel, and from the checkout."""

import ast
import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = SETTINGS["tool"]["setuptools"]["packages"]
IMPORT_ALL = (
    "import importlib, sys; [print(importlib.import_module(n).__file__) for n in sys.argv[1:]]"
)


def folders(top: str, name: str) -> list[str]:
    """Packages below a folder, under the name they are imported by."""
    found = [path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob("__init__.py")]
    return [".".join((name, *path.parts)) for path in found]


def modules() -> list[str]:
    names = []
    for top, name in (("jaxlab", "jaxlab"), ("kernels", "jaxlab.kernels")):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            names.append(".".join((name, *(part for part in parts if part != "__init__"))))
    return sorted(names)


def test_every_folder_is_packaged():
    assert sorted(PACKAGES) == sorted(
        folders("jaxlab", "jaxlab") + folders("kernels", "jaxlab.kernels")
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building in the checkout would leave build/ and *.egg-info there
    for name in ("jaxlab", "kernels"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("jaxlab-*.whl"))


def test_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxlab"}
    assert {"jaxlab/kernels/__init__.py", "jaxlab/py.typed"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_wheel_in_a_fresh_environment_imports_everything(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    installed = tmp_path / "env" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # The dependencies are lent by this environment; its own jaxlab (a .pth hook) is not.
    dependencies = sysconfig.get_path("purelib")
    (installed / "site-packages" / "dependencies.pth").write_text(dependencies + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True, cwd=tmp_path)
    process = subprocess.run(
        [str(python), "-c", IMPORT_ALL, *modules()], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert all(path.startswith(str(tmp_path / "env")) for path in process.stdout.split())


@pytest.mark.parametrize("inside", [True, False], ids=["checkout", "elsewhere"])
def test_editable_install_imports_the_checkout_from_anywhere(inside, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules()],
        capture_output=True,
        text=True,
        cwd=ROOT if inside else tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert all(path.startswith(str(ROOT)) for path in process.stdout.split())


def test_the_library_imports_its_dependencies_and_no_more():
    """At the top of its modules; what is imported where it is needed belongs to an extra."""
    requirements = SETTINGS["project"]["dependencies"]
    needed = {re.match(r"[\w-]+", x)[0].split("-")[0] for x in requirements}
    imported = set()
    for top in ("jaxlab", "kernels"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                imported |= {name.partition(".")[0] for name in names}
    assert imported - set(sys.stdlib_module_names) - {"jaxlab"} <= needed
    assert "chex" not in needed  # tests alone use it


def test_every_extra_that_is_named_exists():
    """In errors, in documents, and by other extras; [all] leaves out what is gigabytes."""
    extras = SETTINGS["project"]["optional-dependencies"]
    named = {}
    rooms = [ROOT / name for name in ("jaxlab", "kernels", "experiments", "tests")]  # not .venv/
    inside = [path for room in rooms for end in ("py", "md") for path in room.rglob(f"*.{end}")]
    for path in (*ROOT.glob("*.md"), ROOT / "pyproject.toml", *inside):
        for found in re.findall(r"(?:jaxlab|'\.|\"\.)\[([\w,]+)\]", path.read_text()):
            named |= {extra: path for extra in found.split(",")}
    assert named.keys() <= extras.keys(), {x: named[x] for x in named.keys() - extras.keys()}
    assert {"envs", "games", "plot", "experiments", "test", "solvers", "rivals"} <= extras.keys()
    (everything,) = extras["all"]
    assert "solvers" not in everything and "rivals" not in everything
    assert all("python_version" in requirement for requirement in extras["games"])
