"""The one training loop: jitted chunks of steps inside; logging, saving and stopping outside."""

import contextlib
import functools
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

from jaxlab.core import checkpoint, finite, lock, logging, sharding
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree, name_of


class LoopResult(NamedTuple):
    """What a run ended with.

    Attributes:
        state: Final state of the algorithm.
        step: Number of finished steps, those before a resume included.
        metrics: Host-side numbers of the last chunk, as logged.
        frozen: Of seeds side by side, those that blew up, with the step at which each did.
    """

    state: PyTree
    step: int
    metrics: dict[str, Any]
    frozen: dict[int, int]


NonFiniteError = finite.NonFiniteError
"""A metric or the state became NaN or infinite, of seeds side by side that of all."""


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
    stop: Callable[[int, Mapping[str, Any]], bool] | None = None,
    save_every: int = 1,
    max_to_keep: int = 2,
    state_sharding: Any = None,
) -> LoopResult:
    """Runs `algorithm` for `num_steps` steps, resuming from `directory` if it holds a checkpoint.

    A chunk of `chunk_size` steps is one compiled `lax.scan` with its state donated; metrics are
    averaged over the chunk on the device and fetched once. A `Mean` is summed instead, and left out
    where it counted nothing. Between chunks the host evaluates, logs, saves and decides whether to
    stop. SIGTERM and SIGINT finish the chunk, save, and end the process (exit status 143, or
    KeyboardInterrupt); a second signal ends it at once.

    In a run of several processes a state that is spread over them (`state_sharding`) is trained by
    all together, and process 0 logs. A state that lies on this process's own devices is its own
    affair: it logs, saves and stops without the others, which may train something else.

    Seeds side by side, as `learning.over_seeds` makes them, have metrics `[seeds]`. Of each the log
    holds the mean over seeds as `name`, their standard deviation as `name_std`, and all values as
    the list `name_seeds`. A seed with a metric that is not finite is frozen: a warning names it and
    the step, its values are None from that chunk on and count in no mean, `LoopResult.frozen` and
    every checkpoint remember it, and `seeds/frozen` is logged. The others go on as if nothing had
    happened; when none is left, the run ends like a single one, with NonFiniteError.

    What is frozen is what the log says of a seed. Its rows of the state are still computed, and may
    hold NaN in the result and in checkpoints: the step's input is donated, so to hold them would
    take a second copy of the state, a replay of gigabytes included, for all seeds and all the time.

    Before a state is saved, all of it is looked at on the device. What no metric shows counts like
    a metric then: a leaf with NaN, or with an infinity, unless it had them at the start (the best
    value so far often begins at infinity). Seeds are told apart by `Algorithm.axes`.

    A folder has one writer. A checkpoint that is damaged is named in a warning, set aside, and the
    one before it is taken; see `jaxlab.core.checkpoint`.

    Args:
        algorithm: the pair `(init, step)`.
        key: typed PRNG key handed to `init`; its draws are unused when a checkpoint is resumed.
        num_steps: total number of steps, at least 1, resumed ones included.
        chunk_size: steps per chunk, at least 1; a shorter last chunk completes `num_steps`.
        directory: run folder for `checkpoints/` and `metrics.jsonl`; nothing is written when None.
        config: JSON-serialisable settings stored with every checkpoint; a run is resumed with the
            same settings only. Put a digest of the data in, if the data can change.
        log: loggers besides `metrics.jsonl`.
        evaluate: `evaluate(state) -> metrics`, called after each chunk and logged with its metrics;
            of seeds side by side return `[seeds]`, so that a frozen one spoils no mean.
        stop: `stop(step, metrics) -> bool`, ends the run early, after saving.
        save_every: chunks between checkpoints; the last chunk is always saved.
        max_to_keep: checkpoints kept on disk; with 1 there is none to go back to.
        state_sharding: sharding, or prefix pytree of shardings, of the state; default placement
            when None.

    Returns:
        The final state, the number of finished steps, the last metrics, and the frozen seeds.

    Raises:
        NonFiniteError: if a metric of a chunk is not finite, or the state that is to be saved, of
            seeds side by side for all of them; that chunk's state is not saved.
        LockedError: if another process is at work in `directory`; it is named.
        ValueError: if a count is below 1, the configuration is not JSON-serialisable, a metric is
            neither a scalar nor `[seeds]` or has the name of another one, or the checkpoint has
            another configuration, is another algorithm's, does not fit this one's state, or is
            damaged and none before it is whole.

    Example:
        `loop.run(learning.over_seeds(learner, 5), jax.random.key(0), num_steps=10, chunk_size=5)`
    """
    counts = {"num_steps": num_steps, "chunk_size": chunk_size, "save_every": save_every}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    settings = _as_stored(config)
    name = algorithm.name or name_of(algorithm.step)
    init = jax.jit(algorithm.init, out_shardings=state_sharding).lower(key).compile()
    like = _with_shardings(jax.eval_shape(algorithm.init, key), init.output_shardings)
    alone = checkpoint.is_alone(like)
    logs = alone or jax.process_index() == 0
    loggers = list(log)
    look = finite.make_look(algorithm.axes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sharding.named_if_lost())
        for logger in loggers:
            if close := getattr(logger, "close", None):
                stack.callback(close)
        manager, start, state, frozen, at_start = None, 0, None, {}, {}
        if directory is not None:
            folder = pathlib.Path(directory)
            _lock(stack, folder / "checkpoints", logs, alone)
            manager = checkpoint.open_manager(
                folder / "checkpoints", max_to_keep=max_to_keep, alone=alone
            )
            stack.callback(checkpoint.close, manager)  # waits for the last write
            restored = None
            if manager.latest_step() is not None:
                restored = checkpoint.restore(manager, like, algorithm=name)
                _check_config(settings, restored.config, folder)
                start, state, frozen = restored.step, restored.state, restored.frozen
                at_start = restored.at_start
            if logs:
                logged = logging.rewind_jsonl(folder / "metrics.jsonl", start)
                loggers.insert(0, logging.jsonl(folder / "metrics.jsonl"))
                # The process was killed after it had saved, before it logged.
                if restored and logged < start:
                    loggers[0](start, restored.metrics)
            if restored and (restored.stopped or start >= num_steps):
                return LoopResult(state, start, restored.metrics, frozen)
        if state is None:
            state = init(key)
            if manager is not None:
                at_start = finite.at_start(look(state, ()))
        if at_start:
            look = finite.make_look(algorithm.axes, at_start)
        signals = stack.enter_context(signals_caught())

        chunks, metrics, step, saved = {}, {}, start, start
        for num_chunks in range(1, num_steps + 1):
            if step >= num_steps:
                break
            length = min(chunk_size, num_steps - step)
            compile_seconds = 0.0
            if length not in chunks:
                for logger in loggers if logs else ():
                    if note := getattr(logger, "note", None):
                        note(step, f"compiling {length} steps ...")
                began = time.perf_counter()
                chunks[length] = _compile_chunk(algorithm.step, state, length)
                compile_seconds = time.perf_counter() - began
            began = time.perf_counter()
            state, on_device, num_finite = chunks[length](state)
            found, num_finite = _to_host(on_device), sharding.fetch(num_finite)
            seconds = time.perf_counter() - began
            if evaluate is not None:
                evaluated = _to_host(evaluate(state))
                if twice := sorted(found.keys() & evaluated.keys()):
                    raise ValueError(f"metric {twice[0]!r} is of step and of evaluate; rename one")
                found |= evaluated
            kept = f"the checkpoint at step {saved} is kept"
            chunk = finite.Chunk(
                step, step + length, kept if saved else "there is no checkpoint yet"
            )
            bad = {metric: ~np.isfinite(value.filled(0.0)) for metric, value in found.items()}
            # The first step that was not finite; an evaluation is of the last.
            at = step + np.minimum(num_finite + 1, length)
            frozen = finite.freeze(bad, at, frozen, chunk)
            step += length
            perf = {"perf/steps_per_second": length / seconds}
            if compile_seconds:
                perf["perf/compile_seconds"] = compile_seconds
            metrics = _logged(found, frozen) | perf

            stopped = stop is not None and sharding.any_process(stop(step, metrics), alone=alone)
            interrupted = sharding.any_process(bool(signals), alone=alone)
            ending = step >= num_steps or stopped or interrupted
            saves = manager is not None and (ending or num_chunks % save_every == 0)
            # Whose rows they are, an algorithm without `axes` does not say.
            if saves and (algorithm.axes is not None or not frozen):
                bad = finite.worse(look(state, frozen), at_start)
                frozen = finite.freeze(bad, np.asarray(step), frozen, chunk)
                metrics = _logged(found, frozen) | perf
            if manager is not None and saves:
                checkpoint.save(
                    manager,
                    step,
                    state,
                    algorithm=name,
                    config=settings,
                    metrics=metrics,
                    frozen=frozen,
                    stopped=stopped,
                    at_start=at_start,
                )
                saved = step
            for logger in loggers if logs else ():
                logger(step, metrics)
            if ending:
                break
        if signals:  # also one that came while the last chunk was logged
            stack.close()
            leave(signals)
    return LoopResult(state, step, metrics, frozen)


def _compile_chunk(step: Callable, state: PyTree, length: int) -> Callable:
    """Compiles `length` steps ahead of time, so that a change of shape cannot recompile unseen."""

    def one_step(state: PyTree, _: None) -> tuple[PyTree, tuple[Metrics, jax.Array]]:
        state, metrics = step(state)
        _num_seeds(metrics)
        each = map(jnp.isfinite, jax.tree.leaves(metrics))
        return state, (metrics, functools.reduce(jnp.logical_and, each, jnp.ones((), bool)))

    def chunk(state: PyTree) -> tuple[PyTree, Metrics, jax.Array]:
        state, (metrics, ok) = jax.lax.scan(one_step, state, length=length)
        num_finite = jnp.sum(jnp.cumprod(ok, axis=0, dtype=jnp.int32), axis=0)
        return state, {name: _over_steps(value) for name, value in metrics.items()}, num_finite

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(chunk, donate_argnums=0, out_shardings=(shardings, None, None))
    return jitted.lower(state).compile()


def _over_steps(value: jax.Array | Mean) -> jax.Array | Mean:
    if isinstance(value, Mean):
        return Mean(*(jnp.sum(x, axis=0, dtype=_wide(x)) for x in value))
    return jnp.mean(value, axis=0, dtype=_wide(value))


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.dtype(x.dtype if x.dtype == jnp.float64 else jnp.float32)


def _num_seeds(metrics: Mapping[str, Any]) -> int:
    """The number of seeds that metrics are of, 0 if of one run."""
    shapes = {
        name: np.broadcast_shapes(*map(np.shape, jax.tree.leaves(value)))
        for name, value in metrics.items()
    }
    sizes = {shape[0]: name for name, shape in shapes.items() if len(shape) == 1}
    for name, shape in shapes.items():
        if len(shape) > 1 or len(sizes) > 1:
            raise ValueError(
                f"metric {name!r} must be a scalar, or [seeds] with as many seeds as the others, "
                f"got shape {shape}; reduce it in step"
            )
        for taken in (f"{name}_std", f"{name}_seeds"):
            if shape and taken in shapes:
                raise ValueError(f"metric {taken!r} would stand for that of {name!r}; rename it")
    return next(iter(sizes), 0)


def _as_stored(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration as the file holds it: tuples become lists, keys strings."""
    try:
        return json.loads(json.dumps(dict(config or {})))
    except TypeError as error:
        raise ValueError(
            f"config must be of numbers, strings, lists and dicts, got {config}: {error}"
        ) from error


def _check_config(now: dict[str, Any], stored: dict[str, Any], folder: pathlib.Path) -> None:
    for name in sorted(now.keys() | stored.keys()):
        # As text, in which NaN is like NaN.
        found = [json.dumps(side.get(name), sort_keys=True) for side in (now, stored)]
        if found[0] != found[1]:
            raise ValueError(
                f"{folder} holds a run with {name}={stored.get(name)!r}, now it is "
                f"{now.get(name)!r}; resume with the same settings or use a new folder"
            )


def _lock(stack: contextlib.ExitStack, folder: pathlib.Path, writes: bool, alone: bool) -> None:
    """Keeps a folder for this run: one process takes the lock, all end if it does not get it."""
    refused = None
    if writes:
        try:
            stack.enter_context(lock.one_writer(folder))
        except lock.LockedError as error:
            refused = error
    if sharding.any_process(refused is not None, alone=alone):
        raise refused or lock.LockedError("process 0 of this run did not get its folder")


def _with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _to_host(metrics: Mapping[str, Any]) -> dict[str, np.ma.MaskedArray]:
    """Numbers in double precision, masked where a `Mean` counted nothing."""
    found = {}
    for name, value in sharding.fetch(dict(metrics)).items():
        if isinstance(value, Mean):
            total, count = (np.asarray(x, np.float64) for x in value)
            none = (count == 0.0) & np.isfinite(total)
            found[name] = np.ma.masked_array(total / np.where(count == 0.0, 1.0, count), none)
        else:
            found[name] = np.ma.masked_array(np.asarray(value, np.float64))
    return found


def _logged(
    found: Mapping[str, np.ma.MaskedArray], frozen: Mapping[int, int]
) -> dict[str, float | list[float | None]]:
    """What loggers get: scalars; of seeds mean, spread and all values, None where there is none."""
    metrics = {}
    for name, value in found.items():
        if value.ndim:
            value[list(frozen)] = np.ma.masked
        if not value.count():
            continue
        metrics[name] = float(value.mean())
        if value.ndim:
            if value.count() > 1:
                metrics[f"{name}_std"] = float(value.std(ddof=1))
            metrics[f"{name}_seeds"] = value.tolist()
    if frozen:
        metrics["seeds/frozen"] = float(len(frozen))
    return metrics


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
