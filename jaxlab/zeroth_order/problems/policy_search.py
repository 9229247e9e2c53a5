"""Tuning a feedback gain by rollouts under a limit on the state's peak.

Two carts of 1 and 2 kg joined by a spring, each with a motor, are brought to rest from four
displaced positions by u = -K x. The cost is that of a linear-quadratic regulator, but the carts
must not exceed 0.45 and 0.35 m/s, as both do under the regulator's own gain. The optimizer sees
the cost and the peaks of simulated rollouts, and nothing of the model.

States are (position 1, position 2, velocity 1, velocity 2) in m and m/s, relative to rest; inputs
are forces in N. The carts advance by Euler steps of 0.1 s, under which the free oscillation grows:
without feedback the system is unstable.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem, make_problem

DT = 0.1
"""Time step, s."""
MASS = (1.0, 2.0)
"""Masses of the carts, kg."""
SPRING = 0.5
"""Stiffness of the spring, N/m."""
STATE_COST, INPUT_COST = np.array([1.0, 1.0, 0.1, 0.1]), np.array([0.1, 0.1])
"""Diagonal weights of the cost x'Qx + u'Ru per second."""
MAX_SPEED = np.array([0.45, 0.35])
"""Limits on the speeds of the carts, m/s."""
INITIAL = 0.7 * np.array(
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]
)
"""Initial states, `[E, 4]`."""
START = np.array([[0.3, 0.0, 2.0, 0.0], [0.0, 0.3, 0.0, 2.0]])
"""A slow gain that keeps both limits, `[2, 4]`."""
HORIZON = 60
"""Steps of a rollout of the reference problem."""
State = tuple[Array, Array, Array, Array]
_COST = 0.82772026640598
_GAIN = np.array(
    [
        [1.67481051472443, 0.56123512015409, 2.57720374350408, 0.14691367054054],
        [0.50939007445960, 1.91469868046531, 0.01258302520073, 3.46082598243002],
    ]
)


def system() -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 2"]]:
    """Returns A and B of x_{t+1} = A x_t + B u_t."""
    A, B = np.eye(4), np.zeros((4, 2))
    A[:2, 2:] += DT * np.eye(2)
    A[2:, :2] += DT * SPRING * np.array([[-1.0, 1.0], [1.0, -1.0]]) / np.array(MASS)[:, None]
    B[2:] = DT * np.diag(1.0 / np.array(MASS))
    return A, B


@jax.jit
def rollout(
    gain: Float[Array, "2 4"], kicks: Float[Array, "T E 2"]
) -> tuple[Float[Array, "T+1 E 4"], Float[Array, "T E 2"]]:
    """Simulates u_t = -K x_t from the E initial states for T steps.

    Args:
        gain: K.
        kicks: disturbances, m/s, added to the velocities at every step.

    Returns:
        `(states, inputs)`, the initial state included.
    """

    def one(start: Array, kicks: Array) -> tuple[Array, Array]:
        def step(x: State, kick: Array) -> tuple[State, tuple[Array, Array]]:
            following, u = _advance(x, gain, kick)
            return following, (jnp.stack(x), jnp.stack(u))

        last, (states, inputs) = jax.lax.scan(step, tuple(start), kicks)
        return jnp.concatenate([states, jnp.stack(last)[None]]), inputs

    return jax.vmap(one, in_axes=(0, 1), out_axes=1)(jnp.asarray(INITIAL, gain.dtype), kicks)


def policy_search_problem(*, horizon: int = HORIZON, process_noise: float | Array = 0.0) -> Problem:
    """Makes the search for a gain `[2, 4]` (n = 8) under two limits on speed (m = 2).

    f = mean over the initial states of sum_t (x'Qx + u'Ru) dt; h_i = max |v_i| / limit_i - 1 over
    all steps and initial states. The start is strictly feasible. At the optimum both limits are
    active and several instants and initial states share each peak: there h has a kink, and the
    landscape is not convex (wrong gains diverge, and f with them). `f_star` and `x_star` belong
    to the undisturbed rollout of the default horizon. In float32 values are good to 1e-6.

    Args:
        horizon: steps of a rollout.
        process_noise: standard deviation, m/s, of normal kicks to both velocities at every step;
            each query draws its own. `exact` stays the undisturbed rollout, from which the mean of
            a noisy value differs: by a second-order term in f, by more where peaks compete. The
            problem's `sigma` is the largest standard deviation of a value at the start, to first
            order in the noise.

    Raises:
        ValueError: if the horizon is below 1, or the noise is negative or not finite.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    concrete = not isinstance(process_noise, Tracer)
    if concrete and not 0.0 <= float(process_noise) < float("inf"):
        raise ValueError(f"process_noise must be finite and at least 0, got {process_noise}")
    shape = (horizon, INITIAL.shape[0], 2)

    def evaluate(gain: Array, kicks: Array) -> tuple[Array, Array]:
        def one(start: Array, kicks: Array) -> tuple[Array, Array]:
            def step(carry: tuple, kick: Array) -> tuple[tuple, None]:
                x, cost, peak = carry
                following, u = _advance(x, gain, kick)
                terms = zip((*STATE_COST, *INPUT_COST), (*x, *u), strict=True)
                cost = cost + DT * sum(float(weight) * value**2 for weight, value in terms)
                return (following, cost, _higher(peak, following)), None

            zero = jnp.zeros_like(start[0])
            x = tuple(start)
            (_, cost, peak), _ = jax.lax.scan(step, (x, zero, _higher((zero, zero), x)), kicks)
            return cost, jnp.stack(peak)

        start = jnp.asarray(INITIAL, gain.dtype)
        cost, peak = jax.vmap(one, in_axes=(0, 1))(start, kicks)
        return jnp.mean(cost), jnp.max(peak, axis=0) / jnp.asarray(MAX_SPEED, gain.dtype) - 1.0

    def undisturbed(gain: Array) -> tuple[Array, Array]:
        return evaluate(gain, jnp.zeros(shape, gain.dtype))

    known = horizon == HORIZON
    problem = make_problem(
        undisturbed,
        jnp.asarray(START, float),
        f_star=_COST if known else None,
        x_star=jnp.asarray(_GAIN, float) if known else None,
        name="policy_search",
    )
    if concrete and process_noise == 0.0:
        return problem

    @jax.jit
    def q(x: Array, key: Array) -> tuple[Array, Array]:
        scale = jnp.asarray(process_noise, x.dtype)
        return evaluate(problem.unravel(x), scale * jax.random.normal(key, shape, x.dtype))

    def stacked(kicks: Array) -> Array:
        f, h = evaluate(problem.unravel(problem.x0), kicks)
        return jnp.concatenate([f[None], h])

    slopes = jax.jit(jax.jacrev(stacked))(jnp.zeros(shape, problem.x0.dtype))
    per_noise = jnp.max(jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3))))
    return problem._replace(q=q, sigma=process_noise * per_noise)


def _advance(x: State, gain: Array, kick: Array) -> tuple[State, tuple[Array, Array]]:
    """Returns the next state and the forces; written in numbers, so that a batch is one loop."""
    p1, p2, v1, v2 = x
    u1, u2 = (-(k[0] * p1 + k[1] * p2 + k[2] * v1 + k[3] * v2) for k in gain)
    pull = SPRING * (p2 - p1)
    v1_next = v1 + DT / MASS[0] * (u1 + pull) + kick[0]
    v2_next = v2 + DT / MASS[1] * (u2 - pull) + kick[1]
    return (p1 + DT * v1, p2 + DT * v2, v1_next, v2_next), (u1, u2)


def _higher(peak: tuple[Array, Array], x: State) -> tuple[Array, Array]:
    return jnp.maximum(peak[0], jnp.abs(x[2])), jnp.maximum(peak[1], jnp.abs(x[3]))
