"""Features whose product is the ratio of a transition's density to that of noise.

P(s' | s, a) = phi(s, a) mu(s') noise(s'): three losses find phi and mu from transitions of any
quality. Ma et al. 2025, arXiv:2508.14383; the losses are those of Ren et al. 2023,
arXiv:2208.09515, and Zhang et al. 2022, arXiv:2207.07150.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.imitation.data.preparing import Transitions
from jaxlab.nn import Mlp, orthogonal

LEAST_RATIO = 1e-6
"""Ratios below it are clipped where their logarithm is taken."""


class Representation(NamedTuple):
    """Two networks with a common output space, as pure functions.

    Attributes:
        obs_size, action_size, feature_size: O, A and K.
        init: `init(key) -> params`, a dict with "phi" and "mu".
        phi: `phi(params, obs [..., O], action [..., A]) -> [..., K]`.
        mu: `mu(params, obs [..., O]) -> [..., K]`.
        phi_dot: `phi_dot(params, obs, action, weights [K]) -> [...]`, phi times weights. The last
            layer meets the weights before the batch does, so that no feature is made: K of them
            cost what one output does.
        mu_dot: `mu_dot(params, obs, weights [K]) -> [...]`, the same of mu.
    """

    obs_size: int
    action_size: int
    feature_size: int
    init: Callable[[jax.Array], PyTree]
    phi: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    mu: Callable[[PyTree, jax.Array], jax.Array]
    phi_dot: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array]
    mu_dot: Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def make_representation(
    obs_size: int,
    action_size: int,
    *,
    feature_size: int = 1024,
    hidden: tuple[int, ...] = (256, 256),
    activation: Callable[[jax.Array], jax.Array] = nn.elu,
) -> Representation:
    """Makes the networks: orthogonal weights, no bias at the end of phi, outputs times K^(-1/2).

    Args:
        obs_size: numbers of an observation with its flag, `Demonstrations.obs_size`.
        action_size: numbers of an action.
        feature_size: K. No more of them are independent than the last hidden layer is wide, since
            they are linear in it: h = phi mu has the rank of the narrower.
        hidden, activation: of both networks.

    Raises:
        ValueError: if a size is below 1.
    """
    if not all(map(spaces.is_count, (obs_size, action_size, feature_size))):
        raise ValueError(
            "obs_size, action_size and feature_size must be at least 1, got "
            f"{obs_size}, {action_size} and {feature_size}; give integers"
        )
    weights = orthogonal()
    of_pair: Any = Mlp(hidden, feature_size, activation, weights, out_bias=False)
    of_next: Any = Mlp(hidden, feature_size, activation, weights)
    phi_along: Any = Mlp(hidden, 1, activation, weights, out_bias=False)
    mu_along: Any = Mlp(hidden, 1, activation, weights)
    scale = feature_size**-0.5

    def init(key: jax.Array) -> PyTree:
        key_phi, key_mu = jax.random.split(key)
        obs, action = jnp.zeros((obs_size,)), jnp.zeros((action_size,))
        return {"phi": of_pair.init(key_phi, obs, action), "mu": of_next.init(key_mu, obs)}

    def phi(params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return scale * of_pair.apply(params["phi"], obs, action)

    def mu(params: PyTree, obs: jax.Array) -> jax.Array:
        return scale * of_next.apply(params["mu"], obs)

    def along(params: PyTree, weights: jax.Array) -> PyTree:
        """The same network with the one output that the weights make of all."""
        layers, last = params["params"], f"layer_{len(hidden)}"
        joined = jax.tree.map(lambda x: scale * (x @ weights[:, None]), layers[last])
        return {"params": {**layers, last: joined}}

    def phi_dot(params: PyTree, obs: jax.Array, action: jax.Array, weights: jax.Array) -> jax.Array:
        return phi_along.apply(along(params["phi"], weights), obs, action)[..., 0]

    def mu_dot(params: PyTree, obs: jax.Array, weights: jax.Array) -> jax.Array:
        return mu_along.apply(along(params["mu"], weights), obs)[..., 0]

    return Representation(
        obs_size, action_size, feature_size, init, phi, mu, phi_dot=phi_dot, mu_dot=mu_dot
    )


def ratio(
    representation: Representation,
    params: PyTree,
    obs: Float[Array, "... O"],
    action: Float[Array, "... A"],
    next_obs: Float[Array, "... O"],
) -> Float[Array, "..."]:
    """Returns h = phi mu, which estimates P(s' | s, a) / noise(s').

    After `ranking_loss` with a temperature tau it is tau log of that ratio instead, up to a number
    that depends on (s, a).
    """
    features = representation.phi(params, obs, action)
    return jnp.sum(features * representation.mu(params, next_obs), axis=-1)


def ranking_log_ratio(
    representation: Representation,
    params: PyTree,
    obs: Float[Array, "B O"],
    action: Float[Array, "B A"],
    next_obs: Float[Array, "B O"],
    noise: Float[Array, "M O"],
    *,
    temperature: float = 1.0,
) -> Float[Array, " B"]:
    """Returns log P(s' | s, a) / noise(s') after `ranking_loss`, whose open number is found here.

    phi mu / temperature less the logarithm of the mean of its exponential over draws of the noise,
    `[M]`: so the ratio has the mean 1 that a ratio of densities has, for every (s, a).
    """
    features = representation.phi(params, obs, action) / temperature
    own = jnp.sum(features * representation.mu(params, next_obs), axis=-1)
    others = features @ representation.mu(params, noise).T
    return own - jax.nn.logsumexp(others, axis=-1) + jnp.log(float(noise.shape[0]))


def spectral_loss(
    positive: Float[Array, " B"],
    negative: Float[Array, "B M"],
    *,
    reg_weight: float = 10.0,
    clip_positive: bool = False,
) -> Float[Array, ""]:
    """Returns E[-2 h] over transitions + E[h^2] over noise + weight E[(log h)^2] over transitions.

    Without the last term its minimum over all h is the density ratio, and over features of K
    dimensions the K largest singular parts of it. Where dynamics are deterministic there is no
    density and no minimum without that term; with the weight 10 a transition then pulls h to 1.118.

    Args:
        positive: `[B]`, h of transitions.
        negative: `[B, M]`, h of their states and actions with M draws of the noise.
        reg_weight: weight of the squared logarithm, in which h is clipped at 1e-6.
        clip_positive: whether h is clipped so in the linear term too, as the authors' code does;
            a transition below it then has no gradient at all.
    """
    clipped = jnp.maximum(positive, LEAST_RATIO)
    linear = clipped if clip_positive else positive
    pull = reg_weight * jnp.mean(jnp.log(clipped) ** 2)
    return jnp.mean(negative**2) - 2.0 * jnp.mean(linear) + pull


def binary_nce_loss(
    positive: Float[Array, " B"], negative: Float[Array, "B M"], *, num_noise: float = 1.0
) -> Float[Array, ""]:
    """Returns the logistic loss of telling transitions from `num_noise` times as much noise.

    With logits l = log(max(h, 1e-6) / num_noise) it is least where h is the density ratio,
    whatever `num_noise` is.

    Args:
        positive, negative: as for `spectral_loss`.
        num_noise: weight of the noise.
    """
    logit, of_noise = (
        jnp.log(jnp.maximum(h, LEAST_RATIO) / num_noise) for h in (positive, negative)
    )
    return jnp.mean(jax.nn.softplus(-logit)) + num_noise * jnp.mean(jax.nn.softplus(of_noise))


def ranking_loss(scores: Float[Array, "B B"], *, temperature: float = 1.0) -> Float[Array, ""]:
    """Returns the loss of finding each row's own next state, the diagonal, among those of all.

    It determines log ratios up to a number for each row only; the factorization is that of
    exp(phi mu / temperature).
    """
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores / temperature, axis=1)))


def diagnose(
    key: jax.Array,
    representation: Representation,
    params: PyTree,
    data: Transitions,
    *,
    num_samples: int = 512,
) -> dict[str, Array]:
    """Looks at a representation: is it calibrated, does it tell states apart, how wide is it?

    Args:
        key: PRNG key of the transitions and the noise that are looked at.
        representation, params: what is looked at.
        data: transitions, those of training or others.
        num_samples: B, transitions and draws of the noise.

    Returns:
        `noise_mean` and `noise_std`: mean and spread over (s, a) of E[h] under the noise, which is
        1 for a density ratio. `positive` and `negative`: mean h of transitions and of noise.
        `dead`: share of transitions with h below 1e-6. `retrieval`: how often the own next state
        has the largest h among B. `singular_values`: `[K]`, of the second moments of phi, largest
        first.
    """
    key_pair, key_noise = jax.random.split(key)
    rows, others = (
        jax.random.randint(k, (num_samples,), 0, data.obs.shape[0]) for k in (key_pair, key_noise)
    )
    features = representation.phi(params, data.obs[rows], data.action[rows])
    own = features @ representation.mu(params, data.next_obs[rows]).T
    of_noise = features @ representation.mu(params, data.next_obs[others]).T
    each = jnp.mean(of_noise, axis=1)
    positive = jnp.diagonal(own)
    # Equal next states are no errors: the largest must not be larger than the own.
    found = positive >= jnp.max(own, axis=1)
    second = features.T @ features / num_samples
    return {
        "noise_mean": jnp.mean(each),
        "noise_std": jnp.std(each),
        "positive": jnp.mean(positive),
        "negative": jnp.mean(of_noise),
        "dead": jnp.mean(positive < LEAST_RATIO),
        "retrieval": jnp.mean(found),
        "singular_values": jnp.linalg.eigvalsh(second)[::-1],
    }
