"""Training of one model on one task, several seeds and learning rates in one program."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.mfa_quality.methods import Model
from experiments.mfa_quality.tasks import Batch, Task
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.learning import seeds

LOG_2 = float(np.log(2.0))


class State(NamedTuple):
    """One run; a batch of runs has a leading axis.

    Attributes:
        params: Parameters of the model.
        opt_state: State of its optimizer.
        key: PRNG key of the data that are still to come.
        step: Finished steps, int32.
        learning_rate: Peak of the learning rate.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    learning_rate: jax.Array


class Runs(NamedTuple):
    """What training leaves of runs side by side.

    Attributes:
        loss: `[runs]` cross-entropy in bits on what is held out, at the end; NaN of a lost run.
        error: `[runs]` share of wrong predictions there.
        steps: `[chunks]` training steps at which the curve was taken.
        curve: `[chunks, runs]` losses on what is held out.
    """

    loss: np.ndarray
    error: np.ndarray
    steps: np.ndarray
    curve: np.ndarray


def train(
    model: Model,
    task: Task,
    keys: jax.Array,
    learning_rates: jax.Array,
    directory: pathlib.Path,
    *,
    num_steps: int,
    eval_batches: int,
    held_out: Literal["tune", "test"] = "test",
) -> Runs:
    """Trains a run for every key in one program, or goes on with what `directory` holds.

    Args:
        model: What is trained.
        task: What it is trained and judged on.
        keys: `[runs]` of weights and data.
        learning_rates: `[runs]` the peak of each.
        directory: Folder for checkpoints and the log.
        num_steps: Training steps.
        eval_batches: Batches that a loss on what is held out is averaged over.
        held_out: Which held-out part the figures are of.
    """
    algorithm = make_algorithm(model, task, num_steps)
    draw = functools.partial(getattr(task, held_out), batch=task.batch)
    key = jax.random.key(2**31 - 1 if held_out == "test" else 2**31 - 2)
    batches = jax.random.split(key, eval_batches)
    test = jax.jit(functools.partial(evaluate, model, draw))

    def measured(state: State) -> dict[str, jax.Array]:
        loss, error = test(batches, state.params)
        return {"eval/loss": loss, "eval/error": error}

    # A run starts from its own key, which a rate is tried on or a seed is.
    own = Algorithm(lambda _, settings: algorithm.init(*settings), algorithm.step)
    loop.run(
        seeds.over_seeds(own, keys.shape[0], settings=(keys, learning_rates)),
        keys[0],
        num_steps=num_steps,
        chunk_size=max(num_steps // 20, 1),
        directory=directory,
        evaluate=measured,
        save_every=5,
    )
    records = logging.read_jsonl(directory / "metrics.jsonl")
    steps, curve = logging.series(records, "eval/loss_seeds")
    return Runs(curve[-1], logging.series(records, "eval/error_seeds")[1][-1], steps, curve)


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
