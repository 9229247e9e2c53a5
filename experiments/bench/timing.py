"""Timing of a function with compile time apart, measured records, and the benchmark runner."""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.harness import result, words

COLUMNS = (
    "Benchmark",
    "Shape",
    "Compile",
    "Ours",
    "Rival",
    "Rival / ours",
    "Rate",
    "Of ceiling",
    "Error",
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long a call takes.

    Args:
        compile_s: Seconds of tracing, lowering and compiling.
        median_s: Median seconds of the later calls.
        iqr_s: Their interquartile range, in seconds.
        n: Number of those calls.
    """

    compile_s: float
    median_s: float
    iqr_s: float
    n: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One benchmark at one shape, timed beside its rival in the same process.

    Args:
        name: What is timed.
        shape: Its size in words, e.g. "5 sites x 2,922 days".
        ours: Timing of our function.
        rival_name: What the rival is, and why it has no time if it has none; empty without one.
        rival: Timing of the rival at the same shape.
        work: Units of work in one call: bytes, FLOPs, patients.
        work_unit: What `work` counts, e.g. "B", "FLOP", "patients".
        ceiling: Most units a second this device reached in a measured peak test.
        error: Largest deviation of our result from the reference.
        note: One sentence a reader needs to judge the figures.
    """

    name: str
    shape: str
    ours: Timing
    rival_name: str = ""
    rival: Timing | None = None
    work: float | None = None
    work_unit: str = ""
    ceiling: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median time of the rival over ours: above 1 we are faster."""
        return None if self.rival is None else self.rival.median_s / self.ours.median_s

    @property
    def rate(self) -> float | None:
        """Units of work a second."""
        return None if self.work is None else self.work / self.ours.median_s


def temporary_megabytes(compiled: Any) -> float:
    """Returns the temporary memory that the compiler plans for a program, in 1e6 bytes.

    Args:
        compiled: What `jax.jit(fn).lower(...).compile()` returns.

    Raises:
        RuntimeError: if the compiler of this device does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("the compiler of this device does not tell how much memory it plans")
    return memory.temp_size_in_bytes / 1e6


def measure(fn: Callable[..., Any], *args: Any, repeats: int = 10) -> Timing:
    """Times `fn(*args)`, waiting for its result.

    A jitted function is made to compile afresh. The compile time is that of the first call less
    the median later call, so it holds tracing, lowering and compilation, and is about 0 for a
    function that JAX does not compile. One more call warms up before the timed ones.

    Args:
        fn: The function; it must not donate its arguments.
        args: Its arguments, already on the device.
        repeats: Number of timed calls, at least 2.

    Raises:
        ValueError: if `repeats` is below 2.
    """
    import jax  # here, so that the runner and its tables need no JAX

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - start

    jax.block_until_ready(args)
    getattr(fn, "clear_cache", lambda: None)()
    return _repeated(call, repeats)


def chain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a jitted `program(calls, x, *args)` that makes x = fn(i, x, *args) so many times.

    The number of calls is a value: one program both shows what a call returns and is timed. It
    takes x over (donation), so that nothing is copied but what `fn` copies.
    """
    import jax

    def program(calls: Any, x: Any, *args: Any) -> Any:
        return jax.lax.fori_loop(0, calls, lambda i, x: fn(i, x, *args), x)

    return jax.jit(program, donate_argnums=1)


def once(program: Callable[..., Any], x: Any, *args: Any) -> Any:
    """Returns what one call of a chain makes of x, which stays."""
    return program(np.int32(1), _copies(x), *args)


def measure_program(
    program: Callable[..., Any], x: Any, *args: Any, calls: int, repeats: int = 10
) -> Timing:
    """Times one of `calls` calls in one run of a program that `chain` returned.

    The host starts the run once, so that its own time is shared by all calls; each call needs the
    result of the one before, so that none is left out.

    Raises:
        ValueError: if `calls` is below 1 or `repeats` below 2.
    """
    import jax

    if calls < 1:
        raise ValueError(f"calls must be at least 1, got {calls}")

    def call() -> float:
        mine = jax.block_until_ready(_copies(x))
        start = time.perf_counter()
        jax.block_until_ready(program(np.int32(calls), mine, *args))
        return time.perf_counter() - start

    jax.block_until_ready((x, args))
    getattr(program, "clear_cache", lambda: None)()
    timing = _repeated(call, repeats)
    return dataclasses.replace(timing, median_s=timing.median_s / calls, iqr_s=timing.iqr_s / calls)


def measure_chain(
    fn: Callable[..., Any], x: Any, *args: Any, calls: int, repeats: int = 10
) -> Timing:
    """Times one of `calls` calls x = fn(i, x, *args), for what takes microseconds.

    Raises:
        ValueError: as in `measure_program`.
    """
    return measure_program(chain(fn), x, *args, calls=calls, repeats=repeats)


def deviation(got: Any, want: Any) -> float:
    """Returns the largest difference of two arrays over the largest value of the second."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def largest(got: Any, want: Any) -> Any:
        got, want = (x.astype(jnp.float32) for x in (got, want))
        return jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want))

    return float(largest(got, want))


def require_small(error: float, what: str, most: float = 2e-2) -> float:
    """Returns an error that is small: the time of a wrong result is worth nothing.

    The default suits sixteen bits in and out.

    Raises:
        AssertionError: if it is larger, or not a number.
    """
    if not error <= most:
        raise AssertionError(f"{what} is off by {error:.3g} of the largest value")
    return error


def _copies(x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), x)


def _repeated(call: Callable[[], float], repeats: int) -> Timing:
    """Times a call that returns its seconds: the first compiles, the second warms up."""
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 to show a spread, got {repeats}")
    first = call()
    call()
    seconds = [call() for _ in range(repeats)]
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(max(first - median, 0.0), median, upper - lower, repeats)


def as_table(measurements: Sequence[Measurement], title: str = "Timings") -> result.Table:
    """Returns measurements as a table: median and interquartile range of each side."""

    def row(item: Measurement) -> tuple[str | float, ...]:
        rival = f"{_time(item.rival)} ({item.rival_name})" if item.rival else item.rival_name or "–"
        ratio = f"{item.ratio:.3g} ×" if item.ratio else "–"
        rate = f"{words.number(item.rate)} {item.work_unit}/s" if item.rate else "–"
        share = f"{item.rate / item.ceiling:.0%}" if item.rate and item.ceiling else "–"
        compiled = words.duration(item.ours.compile_s)
        error = "–" if item.error is None else words.number(item.error)
        return (item.name, item.shape, compiled, _time(item.ours), rival, ratio, rate, share, error)

    columns, rows = COLUMNS, [row(item) for item in measurements]
    if all(item.error is None for item in measurements):
        columns, rows = columns[:-1], [cells[:-1] for cells in rows]
    notes = " ".join(dict.fromkeys(item.note for item in measurements if item.note))
    calls = ", ".join(sorted({str(item.ours.n) for item in measurements}))
    return result.Table(
        title,
        columns,
        tuple(rows),
        f"Median and interquartile range of {calls} calls; a ratio above 1 means that we are "
        f"faster. {notes}".rstrip(),
    )


def run(name: str, module: Any, out: pathlib.Path, *, command: str) -> result.Result:
    """Runs one benchmark module, prints its table and writes `result.json` and the raw timings.

    Args:
        name: The benchmark, as it is listed in `experiments.BENCHES`.
        module: Its module, with `SUMMARY` and `run(out)`, a list of `Measurement`.
        out: Folder to write to.
        command: What to type to run it again.
    """
    start = time.perf_counter()
    measurements = module.run(out)
    outcome = result.Result(
        experiment=f"bench_{name}",
        title=module.SUMMARY,
        kind="benchmark",
        tables=(as_table(measurements),),
        environment=result.environment(),
        seconds=time.perf_counter() - start,
        command=command,
        finished=words.now(),
    )
    result.write(out / "measurements.json", measurements)
    result.write(out / "result.json", outcome)
    words.show(outcome)
    return outcome


def _time(timing: Timing) -> str:
    return f"{words.duration(timing.median_s)}, IQR {words.duration(timing.iqr_s)}"
