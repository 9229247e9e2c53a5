"""Training of one model on one task, several seeds and learning rates in one program."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.mfa_quality.tasks import Batch, Task
from experiments.mfa_quality.variants import Model
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm, Metrics

LOG_2 = float(np.log(2.0))


class State(NamedTuple):
    """One run; a batch of runs has a leading axis.

    Attributes:
        params: of the model.  opt_state: of Adam.  key: of the data.
        step: int32.  learning_rate: its peak.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    learning_rate: jax.Array


def train(
    model: Model,
    task: Task,
    keys: jax.Array,
    learning_rates: jax.Array,
    *,
    num_steps: int,
    eval_batches: int,
    directory: pathlib.Path,
    config: dict,
    log: list,
    held_out: str = "test",
) -> tuple[np.ndarray, np.ndarray]:
    """Trains a run for every key, or goes on with what `directory` holds.

    Args:
        keys: `[runs]`, of weights and data.  learning_rates: `[runs]`, peak of each.
        held_out: what the figures are of, "tune" or "test".

    Returns:
        `(loss, error)`, `[runs]`: cross-entropy in bits on what is held out, and the share of wrong
        predictions.
    """
    algorithm = make_algorithm(model, task, num_steps)
    draw = functools.partial(getattr(task, held_out), batch=task.batch)
    key = jax.random.key(2**31 - 1 if held_out == "test" else 2**31 - 2)
    test = jax.jit(functools.partial(evaluate, model, draw, jax.random.split(key, eval_batches)))
    names = [f"run_{index}" for index in range(keys.size)]

    def measured(state: State) -> dict[str, Any]:
        loss, error = test(state.params)
        return {
            **{f"eval/loss_{name}": x for name, x in zip(names, loss, strict=True)},
            **{f"eval/error_{name}": x for name, x in zip(names, error, strict=True)},
        }

    # `loop.run` hands one key to `init`; the runs' own are closed over.
    many = Algorithm(lambda _: jax.vmap(algorithm.init)(keys, learning_rates), _mean(algorithm))
    ended = loop.run(
        many,
        keys[0],
        num_steps=num_steps,
        chunk_size=max(num_steps // 20, 1),
        directory=directory,
        config=config,
        evaluate=measured,
        log=log,
        save_every=5,
    )
    return tuple(
        np.array([ended.metrics[f"eval/{what}_{name}"] for name in names])
        for what in ("loss", "error")
    )


def make_algorithm(model: Model, task: Task, num_steps: int) -> Algorithm:
    """Makes one run: Adam with decoupled decay, clipped gradients, warm-up, a cosine to a tenth."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, warmup_steps=max(num_steps // 20, 1), decay_steps=num_steps, end_value=0.1
    )

    def init(key: jax.Array, learning_rate: jax.Array) -> State:
        key, key_params = jax.random.split(key)
        params = model.decoder.init(key_params)
        return State(params, optimizer.init(params), key, jnp.zeros((), jnp.int32), learning_rate)

    def step(state: State) -> tuple[State, Metrics]:
        key, key_data = jax.random.split(state.key)
        data = task.train(key_data, task.batch)
        (loss, _), grads = jax.value_and_grad(losses, argnums=1, has_aux=True)(
            model, state.params, data
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = -state.learning_rate * schedule(state.step)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        return State(params, opt_state, key, state.step + 1, state.learning_rate), {
            "train/loss": loss
        }

    return Algorithm(init, step)


def losses(model: Model, params: Any, data: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns cross-entropy in bits and the share of wrong predictions, where they count."""
    logits, _ = model.decoder.apply(params, data.tokens)
    cross = optax.softmax_cross_entropy_with_integer_labels(logits, data.targets)
    wrong = (jnp.argmax(logits, axis=-1) != data.targets).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(data.weight), 1.0)
    return jnp.sum(cross * data.weight) / (total * LOG_2), jnp.sum(wrong * data.weight) / total


def evaluate(
    model: Model, draw: Callable[..., Batch], keys: jax.Array, params: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns loss and error of every run on the same held-out batches, one a key."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        data = draw(key)
        return jax.vmap(lambda p: losses(model, p, data))(params)

    loss, error = jax.lax.map(one, keys)
    return jnp.mean(loss, axis=0), jnp.mean(error, axis=0)


def read_curves(directory: pathlib.Path, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads steps `[chunks]` and a held-out figure `[chunks, runs]` that `train` logged."""
    records = logging.read_jsonl(directory / "metrics.jsonl")
    names = sorted(
        (name for name in records[0] if name.startswith(f"eval/{what}_run_")),
        key=lambda name: int(name.rpartition("_")[2]),
    )
    values = np.array([[record[name] for name in names] for record in records])
    return np.array([record["step"] for record in records]), values


def _mean(algorithm: Algorithm):
    def step(state: State) -> tuple[State, Metrics]:
        state, metrics = jax.vmap(algorithm.step)(state)
        return state, jax.tree.map(jnp.mean, metrics)

    return step
