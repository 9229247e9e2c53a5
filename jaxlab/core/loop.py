"""The one training loop: jitted chunks of steps inside; logging, saving and stopping outside."""

import contextlib
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxlab.core import checkpoint, logging
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree


class LoopResult(NamedTuple):
    """What a run ended with.

    Attributes:
        state: final state of the algorithm.
        step: number of finished steps, those before a resume included.
        metrics: host-side scalars of the last chunk, as logged.
    """

    state: PyTree
    step: int
    metrics: dict[str, float]


class NonFiniteError(FloatingPointError):
    """A metric became NaN or infinite; the message names it and the last good checkpoint."""


def run(
    algorithm: Algorithm,
    key: jax.Array,
    *,
    num_steps: int,
    chunk_size: int,
    directory: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    log: Sequence[logging.Logger] = (),
    evaluate: Callable[[PyTree], Mapping[str, Any]] | None = None,
    stop: Callable[[int, Mapping[str, float]], bool] | None = None,
    save_every: int = 1,
    max_to_keep: int = 2,
    state_sharding: Any = None,
) -> LoopResult:
    """Runs `algorithm` for `num_steps` steps, resuming from `directory` if it holds a checkpoint.

    A chunk of `chunk_size` steps is one compiled `lax.scan` with its state donated; metrics are
    averaged over the chunk on the device and fetched once. A `Mean` is summed instead, and left out
    where it counted nothing. Between chunks the host evaluates,
    logs, saves and decides whether to stop. SIGTERM and SIGINT finish the chunk, save, and end the
    process (exit status 143, or KeyboardInterrupt); a second signal ends it at once.

    Args:
        algorithm: the pair `(init, step)`.
        key: typed PRNG key handed to `init`; its draws are unused when a checkpoint is resumed.
        num_steps: total number of steps, at least 1, resumed ones included.
        chunk_size: steps per chunk, at least 1; a shorter last chunk completes `num_steps`.
        directory: run folder for `checkpoints/` and `metrics.jsonl`; nothing is written when None.
        config: JSON-serialisable settings stored with every checkpoint; a run is resumed with the
            same settings only. Put a digest of the data in, if the data can change.
        log: loggers besides `metrics.jsonl`.
        evaluate: `evaluate(state) -> scalars`, called after each chunk and logged with its metrics.
        stop: `stop(step, metrics) -> bool`, ends the run early, after saving.
        save_every: chunks between checkpoints; the last chunk is always saved.
        max_to_keep: checkpoints kept on disk.
        state_sharding: sharding, or prefix pytree of shardings, of the state; default placement
            when None.

    Returns:
        The final state, the number of finished steps, and the last metrics.

    Raises:
        NonFiniteError: if a metric of a chunk is not finite; that chunk's state is not saved.
        ValueError: if a count is below 1, a metric is not a scalar, or the checkpoint has another
            configuration or does not fit the algorithm's state.
    """
    counts = {"num_steps": num_steps, "chunk_size": chunk_size, "save_every": save_every}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    init = jax.jit(algorithm.init, out_shardings=state_sharding).lower(key).compile()
    loggers = list(log)
    with contextlib.ExitStack() as stack:
        manager, start, state = None, 0, None
        if directory is not None:
            folder = pathlib.Path(directory)
            manager = checkpoint.open_manager(folder / "checkpoints", max_to_keep=max_to_keep)
            stack.callback(manager.close)  # waits for the last write
            if manager.latest_step() is not None:
                like = _with_shardings(jax.eval_shape(algorithm.init, key), init.output_shardings)
                restored = checkpoint.restore(manager, like)
                _check_config(config, restored.config, folder)
                if restored.stopped or restored.step >= num_steps:
                    return LoopResult(restored.state, restored.step, restored.metrics)
                start, state = restored.step, restored.state
            if jax.process_index() == 0:
                logging.rewind_jsonl(folder / "metrics.jsonl", start)
                loggers.insert(0, logging.jsonl(folder / "metrics.jsonl"))
        if state is None:
            state = init(key)
        for logger in loggers:
            if close := getattr(logger, "close", None):
                stack.callback(close)
        signals = stack.enter_context(signals_caught())

        chunks, metrics, step, saved = {}, {}, start, start
        for num_chunks in range(1, num_steps + 1):
            if step >= num_steps:
                break
            length = min(chunk_size, num_steps - step)
            compile_seconds = 0.0
            if length not in chunks:
                began = time.perf_counter()
                chunks[length] = _compile_chunk(algorithm.step, state, length)
                compile_seconds = time.perf_counter() - began
            began = time.perf_counter()
            state, on_device = chunks[length](state)
            metrics = _to_host(on_device)
            seconds = time.perf_counter() - began
            if evaluate is not None:
                metrics |= _to_host(evaluate(state))
            _check_finite(metrics, step, step + length, saved if manager else 0)
            step += length
            metrics["perf/steps_per_second"] = length / seconds
            if compile_seconds:
                metrics["perf/compile_seconds"] = compile_seconds

            stopped = stop is not None and _any_process(stop(step, metrics))
            interrupted = _any_process(bool(signals))
            ending = step >= num_steps or stopped or interrupted
            if manager is not None and (ending or num_chunks % save_every == 0):
                checkpoint.save(
                    manager, step, state, config=config, metrics=metrics, stopped=stopped
                )
                saved = step
            if jax.process_index() == 0:
                for logger in loggers:
                    logger(step, metrics)
            if ending:
                break
        if signals:  # also one that came while the last chunk was logged
            stack.close()
            leave(signals)
    return LoopResult(state, step, metrics)


def _compile_chunk(step: Callable, state: PyTree, length: int) -> Callable:
    """Compiles `length` steps ahead of time, so that a change of shape cannot recompile unseen."""

    def one_step(state: PyTree, _: None) -> tuple[PyTree, Metrics]:
        state, metrics = step(state)
        for name, value in metrics.items():
            if shape := jnp.shape(jax.tree.leaves(value)[0]):
                raise ValueError(
                    f"metric {name!r} must be a scalar, got shape {shape}; reduce it in step."
                )
        return state, metrics

    def chunk(state: PyTree) -> tuple[PyTree, Metrics]:
        state, metrics = jax.lax.scan(one_step, state, length=length)
        return state, {name: _over_steps(value) for name, value in metrics.items()}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(chunk, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(state).compile()


def _over_steps(value: jax.Array | Mean) -> jax.Array | Mean:
    if isinstance(value, Mean):
        return Mean(*(jnp.sum(x, axis=0, dtype=jnp.float32) for x in value))
    return jnp.mean(value, axis=0, dtype=jnp.float32)


def _check_config(given: Mapping[str, Any] | None, stored: dict, folder: pathlib.Path) -> None:
    now = json.loads(json.dumps(dict(given or {})))  # tuples become lists, as in the file
    for name in sorted(now.keys() | stored.keys()):
        if now.get(name) != stored.get(name):
            raise ValueError(
                f"{folder} holds a run with {name}={stored.get(name)!r}, now it is "
                f"{now.get(name)!r}; resume with the same settings or use a new folder."
            )


def _with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _to_host(metrics: Mapping[str, Any]) -> dict[str, float]:
    fetched = {}
    for name, value in jax.device_get(dict(metrics)).items():
        if not isinstance(value, Mean):
            fetched[name] = float(value)
        elif value.count != 0 or not np.isfinite(value.total):
            fetched[name] = float(np.divide(value.total, value.count))
    return fetched


def _check_finite(metrics: Mapping[str, float], first: int, last: int, saved: int) -> None:
    bad = sorted(name for name, value in metrics.items() if not np.isfinite(value))
    if bad:
        kept = f"the checkpoint at step {saved} is kept" if saved else "there is no checkpoint yet"
        raise NonFiniteError(
            f"{', '.join(bad)} is not finite between steps {first} and {last}; {kept}."
        )


@contextlib.contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Collects the first SIGTERM or SIGINT in the list it yields; a second one ends the process.

    Within another `signals_caught`, in any thread, it yields the list of that one, so that what
    runs many loops and the loop at work learn of the same signal. In a thread of a program that
    catches none, the list stays empty.
    """
    outer = getattr(signal.getsignal(signal.SIGINT), "caught", None)
    if outer is not None or threading.current_thread() is not threading.main_thread():
        yield [] if outer is None else outer
        return
    caught: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        if caught:
            restore_handlers()
            signal.raise_signal(number)
        caught.append(number)

    handle.caught = caught  # pyright: ignore[reportFunctionMemberAccess]
    for number in previous:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        restore_handlers()


def leave(signals: Sequence[int]) -> None:
    """Ends the program if a signal was caught: KeyboardInterrupt, or exit status 143 of SIGTERM."""
    if signals:
        raise KeyboardInterrupt if signal.SIGINT in signals else SystemExit(143)


def _any_process(flag: bool) -> bool:
    """True if `flag` is true in any process, so that all of them stop after the same chunk."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
