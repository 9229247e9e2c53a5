"""What the methods of this room share: a state, batches, and one step of all their networks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.imitation.data.preparing import Demonstrations, Transitions
from jaxlab.imitation.policy import Policy, make_policy
from jaxlab.learning import settings as settings_lib
from jaxlab.nn import Mlp, orthogonal


class TrainState(NamedTuple):
    """All that evolves, and what a method has fixed at its start.

    Attributes:
        params: Parameters of each network by its name; "policy" is the actor's.
        opt_states: States of their optimizers, by the same names.
        fixed: What `Method.begin` made and no step changes, or ().
        step: int32, steps so far.
        key: PRNG key of all draws to come.
    """

    params: dict[str, PyTree]
    opt_states: dict[str, PyTree]
    fixed: PyTree
    step: Int[Array, ""]
    key: Array

    @property
    def policy_params(self) -> PyTree:
        """Parameters of the actor, whichever method trained it."""
        return self.params["policy"]


class Method(NamedTuple):
    """One method, as the learner takes it.

    Attributes:
        name: What checkpoints call it.
        init: `init(key) -> params` of all networks by name, "policy" among them.
        gradients: `gradients(key, state) -> (gradients by name, metrics)`. A network without a
            gradient stays as it is.
        optimizers: By name.
        begin: `begin(key, params) -> (params, fixed)`, what is done once before the first step;
            None for nothing.
        every: Of a network that is updated in some steps only, how many lie from one update to the
            next, by name.
    """

    name: str
    init: Callable[[jax.Array], dict[str, PyTree]]
    gradients: Callable[[jax.Array, TrainState], tuple[dict[str, PyTree], Metrics]]
    optimizers: Mapping[str, optax.GradientTransformation]
    begin: Callable[[jax.Array, dict[str, PyTree]], tuple[dict[str, PyTree], PyTree]] | None = None
    every: Mapping[str, int] = {}


def make_learner(method: Method) -> Algorithm:
    """Makes the algorithm of a method: all gradients at the old parameters, then all steps."""

    def init(key: jax.Array) -> TrainState:
        key, key_init, key_begin = jax.random.split(key, 3)
        params, fixed = method.init(key_init), ()
        if method.begin is not None:
            params, fixed = method.begin(key_begin, params)
        opt_states = {name: opt.init(params[name]) for name, opt in method.optimizers.items()}
        return TrainState(params, opt_states, fixed, jnp.zeros((), jnp.int32), key)

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        key, key_step = jax.random.split(state.key)
        gradients, metrics = method.gradients(key_step, state)
        params, opt_states = dict(state.params), dict(state.opt_states)
        for name, gradient in gradients.items():
            before = (params[name], opt_states[name])
            after = _moved(method.optimizers[name], gradient, *before)
            if every := method.every.get(name):
                due = state.step % every == 0
                after = _chosen(due, after, before)
            params[name], opt_states[name] = after
        return TrainState(params, opt_states, state.fixed, state.step + 1, key), metrics

    return Algorithm(init, step, name=method.name)


def _chosen(due: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old)


def _moved(
    optimizer: optax.GradientTransformation, gradient: PyTree, params: PyTree, opt_state: PyTree
) -> tuple[PyTree, PyTree]:
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


class Scalar(NamedTuple):
    """A network with one output.

    Attributes:
        init: `init(key, *sizes) -> params`, sizes of its inputs.
        apply: `apply(params, *inputs [..., size]) -> [...]`.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., jax.Array]


def scalar_network(
    hidden: tuple[int, ...] = (256, 256),
    activation: Callable[[jax.Array], jax.Array] = nn.relu,
    kernel_init: Callable[..., jax.Array] = orthogonal(),  # noqa: B008
) -> Scalar:
    """Makes a perceptron with one output: critics and discriminators."""
    network: Any = Mlp(hidden, 1, activation, kernel_init)
    return Scalar(
        init=lambda key, *sizes: network.init(key, *(jnp.zeros((size,)) for size in sizes)),
        apply=lambda params, *inputs: network.apply(params, *inputs)[..., 0],
    )


def fit(
    key: jax.Array,
    params: PyTree,
    loss: Callable[[jax.Array, PyTree], jax.Array],
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> PyTree:
    """Trains what a method needs before its first step: `loss(key, params)`, `num_steps` times."""

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        gradient = jax.grad(lambda p: loss(key, p))(carry[0])
        return _moved(optimizer, gradient, *carry), None

    carry = (params, optimizer.init(params))
    return jax.lax.scan(one, carry, jax.random.split(key, num_steps))[0][0]


def adam_with_decay(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Makes Adam on a loss with 0.5 `weight_decay` ||W||^2 added, as torch's Adam has it."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


def first_rows(data: Transitions) -> Int[np.ndarray, " E"]:
    """Returns the row that each episode begins with."""
    change = np.flatnonzero(np.diff(np.asarray(data.episode))) + 1
    return np.concatenate([[0], change])


def rows_of(key: jax.Array, data: Transitions, batch_size: int) -> Transitions:
    """Draws a batch with replacement."""
    rows = jax.random.randint(key, (batch_size,), 0, data.obs.shape[0])
    return jax.tree.map(lambda x: x[rows], data)


def policy_for(demos: Demonstrations, policy: Policy | None) -> Policy:
    """Returns the policy, or the usual one of these demonstrations.

    Raises:
        ValueError: if it is of other sizes.
    """
    if policy is None:
        return make_policy(demos.obs_size, demos.action_size)
    if (policy.obs_size, policy.action_size) != (demos.obs_size, demos.action_size):
        raise ValueError(
            f"policy must be of {demos.obs_size} and {demos.action_size} numbers of observation "
            f"and action, got {policy.obs_size} and {policy.action_size}"
        )
    return policy


def logs_of(demos: Demonstrations, method: str) -> Transitions:
    """Returns the logs.

    Raises:
        ValueError: if there are none.
    """
    if demos.logs is None:
        raise ValueError(f"{method} needs logs beside the expert's data; give them to prepare")
    return demos.logs


def check_gamma(gamma: float) -> None:
    """Refuses a discount outside (0, 1).

    Raises:
        ValueError: if it is outside.
    """
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma}")


def check_rates(batch_size: int, **numbers: float) -> None:
    """Refuses a batch without rows, rates that are not positive, and negative weights.

    Raises:
        ValueError: naming the number.
    """
    if not spaces.is_count(batch_size):
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; give an integer")
    rules = {
        name: settings_lib.POSITIVE if name.endswith("rate") else settings_lib.NOT_NEGATIVE
        for name in numbers
    }
    settings_lib.check(numbers, rules)
