"""Client-fair logistic regression: no client's loss may exceed the mean loss by more than epsilon.

Source: Zhang, Raghunathan, Shamma, Li (arXiv:2503.12665), numerical experiments and public code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.zeroth_order.problem import Problem, make_problem

_DATA = (43, 5, 200, 10)
"""Seed and sizes of the published data set, to which the optimum below belongs."""
_F_STAR = 0.690083601067956
_X_STAR = (
    0.0394148268345744,
    0.07700446454442049,
    -0.0867625094853001,
    -0.019831527930300543,
    0.014235688446125643,
    -0.03446725903574883,
    -0.07511519893384573,
    -0.008557533130775214,
    0.023418319293196568,
    0.026990530072389073,
)
_SPREAD = 0.0072
"""Largest R_c - f at that optimum, rounded up: with a larger epsilon no constraint is active."""


def fair_logistic(
    *,
    epsilon: float | Array = 0.07,
    seed: int = 43,
    num_clients: int = 5,
    num_samples: int = 200,
    num_features: int = 10,
) -> Problem:
    """Builds the problem over the weights theta `[num_features]`, which start at 1.

    f = mean_c R_c and h_c = R_c - f - epsilon <= 0, one per client, with R_c the mean log-loss of
    client c. The labels are coin tosses, so the best loss is close to ln 2. On the published data
    two constraints are violated at the start and none is active at the optimum.

    The constraints sum to -epsilon times their number: their gradients are linearly dependent, and
    with epsilon = 0 there is no constraint qualification.

    Args:
        epsilon: tolerated excess loss, nats; not negative. It may be traced.
        seed: seed of the data.
        num_clients: clients, and constraints.
        num_samples: samples per client.
        num_features: weights.

    Returns:
        The problem; its optimum is known for the published data and concrete epsilon >= 0.0072.

    Raises:
        ValueError: if epsilon is negative or a size is below 1.
    """
    concrete = isinstance(epsilon, (int, float))
    if concrete and not 0.0 <= epsilon < float("inf"):
        raise ValueError(
            f"epsilon must be at least 0 and finite, got {epsilon}; no point is feasible below 0"
        )
    sizes = (num_clients, num_samples, num_features)
    features, labels = client_data(seed, *sizes)
    # ln(1 + e^z) - y z = softplus((1 - 2y) z) for y in {0, 1}: the label goes into the data.
    signed = jnp.asarray((1.0 - 2.0 * labels)[:, :, None] * features, float)

    def fun(theta: Array) -> tuple[Array, Array]:
        # Full precision: a TF32 product would drown differences of nearby values.
        margin = jnp.einsum("csd,d->cs", signed, theta, precision="highest")
        risk = jnp.mean(jax.nn.softplus(margin), axis=1)
        f = jnp.mean(risk)
        return f, risk - f - epsilon

    known = concrete and epsilon >= _SPREAD and (seed, *sizes) == _DATA
    return make_problem(
        fun,
        jnp.ones((num_features,)),
        f_star=_F_STAR if known else None,
        x_star=jnp.asarray(_X_STAR, float) if known else None,
        name="fair logistic regression",
    )


def client_data(
    seed: int = 43, num_clients: int = 5, num_samples: int = 200, num_features: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the data as the authors do, with NumPy's legacy generator.

    One location per client, uniform on (-1, 1), for all clients first; then, sample by sample, the
    features from a unit normal around the location and the label from a fair coin.

    Returns:
        `(features, labels)`: `[num_clients, num_samples, num_features]` float64 and
        `[num_clients, num_samples]` in {0, 1}.

    Raises:
        ValueError: if a size is below 1.
    """
    shape = (num_clients, num_samples, num_features)
    if min(shape) < 1:
        raise ValueError(f"clients, samples and features must be at least 1, got {shape}")
    random = np.random.RandomState(seed)
    locations = [random.uniform(-1.0, 1.0) for _ in range(num_clients)]
    features, labels = np.empty(shape), np.empty(shape[:2], int)
    for c, location in enumerate(locations):
        for s in range(num_samples):  # the order of the draws is part of the data set
            features[c, s] = random.normal(location, size=num_features)
            labels[c, s] = random.choice([0, 1])
    return features, labels
