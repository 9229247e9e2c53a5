"""What can be run, by name: listed from the source, imported when it is run."""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import experiments
from experiments.bench import suite
from experiments.harness import flags


@dataclasses.dataclass(frozen=True)
class Names:
    """What can be run: packages of experiments and modules of benchmarks by name, the suite.

    `systems` says which experiments are of one system, and in which folder it lives.
    """

    experiments: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: experiments.EXPERIMENTS
    )
    systems: Mapping[str, tuple[str, Sequence[str]]] = dataclasses.field(
        default_factory=lambda: experiments.SYSTEMS
    )
    benches: Mapping[str, str] = dataclasses.field(default_factory=lambda: experiments.BENCHES)
    entries: Sequence[suite.Entry] = suite.SUITE


def listing(title: str, modules: Mapping[str, str]) -> str:
    """Returns the names and what each is, a line each, under a title."""
    width = max(map(len, modules), default=0) + 2
    return "\n".join([f"{title}:", *(f"  {n:{width}}{summary(m)}" for n, m in modules.items())])


def summary(module: str) -> str:
    """Reads `SUMMARY` from a module's source; a benchmark's import would take JAX and a second."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "(missing)"
    for node in ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUMMARY":
            return ast.literal_eval(node.value)
    return ""


def find(name: str, modules: Mapping[str, str], what: str) -> Any:
    """Imports what is listed under a name.

    Raises:
        Mistake: if nothing is, or it needs a package that is not installed.
    """
    flags.known(name, modules, what)
    return load(name, modules[name])


def load(name: str, module: str) -> Any:
    """Imports a module of `name`.

    Raises:
        Mistake: if it needs a package that is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        wanted = (error.name or "").partition(".")[0]
        if wanted in ("experiments", "jaxlab", "kernels"):
            raise
        raise flags.Mistake(
            f"{name} needs the package {wanted}: pip install -e '.[experiments]'"
        ) from None
