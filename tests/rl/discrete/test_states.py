"""Losses of policies that see a state: laws that they fit, against targets by enumeration.

Three states, nine actions of two tokens of three. What is drawn is a fixed batch with exact shares,
so that nothing but the noise of the diffusion is random.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.diffusion.discrete import exact
from jaxlab.rl.discrete import matching, targets

V, K, S, LAM = 3, 2, 3, 0.7
ACTIONS = exact.sequences(V, K)
RNG = np.random.default_rng(0)
COUNTS = np.stack([RNG.permutation([1, 2, 2, 3, 4, 4, 5, 5, 6]) for _ in range(S)])  # of 32
BEHAVIOR = COUNTS / 32.0
OLD = RNG.dirichlet(np.full(9, 5.0), S)
Q = RNG.normal(size=(2, S, 9))  # an ensemble of two
VALUE = np.array([0.3, -0.5, 0.1])
LARGEST, RATIO = 3.0, 1.5


def share(weight):
    return weight / weight.sum(axis=1, keepdims=True)


def expected():
    """Targets `[S, 9]` by name, from their definitions."""
    least = Q.min(axis=0)
    advantage = Q[0] - VALUE[:, None]
    clipped = np.minimum(np.exp(advantage / LAM), LARGEST)
    return {
        "candidates": share(BEHAVIOR * np.exp(least / LAM)),
        "value": share(BEHAVIOR * clipped),
        "replay": share(BEHAVIOR * np.minimum(OLD / BEHAVIOR, RATIO) * clipped),
        "imitation": share(BEHAVIOR * np.maximum(advantage, 0.0)),
    }


def bound(joint):
    """The evidence bound of every action in every state, of the true conditionals of a joint."""
    return np.stack(
        [
            exact.nelbo_subsets(
                exact.table_denoiser(exact.conditionals(row, vocab=V, length=K)), vocab=V, length=K
            )
            for row in joint
        ]
    )


@pytest.mark.usefixtures("optax_promotes")
def test_fitted_laws_are_the_targets():
    """All four at once, each a table for every state."""
    number = np.stack([np.repeat(np.arange(9), row) for row in COUNTS], axis=1)  # [32, S]
    tokens = jnp.asarray(ACTIONS[number])
    pick = lambda x: jnp.asarray(np.take_along_axis(x, number.T, axis=1).T, jnp.float32)  # noqa: E731
    advantage = pick(Q[0] - VALUE[:, None])
    weights = {
        "value": targets.advantage_weights(advantage, LAM, largest=LARGEST),
        "replay": targets.advantage_weights(
            advantage,
            LAM,
            largest=LARGEST,
            log_ratio=pick(bound(BEHAVIOR) - bound(OLD)),
            largest_ratio=RATIO,
        ),
        "imitation": targets.imitation_weights(
            pick(Q[0]), jnp.broadcast_to(jnp.asarray(VALUE, jnp.float32), (32, S))
        ),
    }
    q = jnp.minimum(pick(Q[0]), pick(Q[1]))

    def denoiser(table):
        """Looks tokens `[R, 32, S, K]` up in the table of their state."""

        def denoise(tokens, level):
            return table[jnp.arange(S), exact.number(tokens, V + 1)]

        return denoise

    def loss(tables, key):
        each = {
            name: matching.sequence_loss(key, denoiser(table), tokens, vocab=V, count=4)
            for name, table in tables.items()
        }
        total, metrics = matching.candidate_loss(each["candidates"], q, LAM)
        for name, weight in weights.items():
            total = total + matching.forward_kl(each[name], weight)
        return total, metrics

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 800))
    tables = {name: jnp.zeros((S, (V + 1) ** K, K, V)) for name in expected()}

    def step(carry, key):
        tables, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(tables, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(tables, updates), opt_state), metrics

    (tables, _), metrics = jax.jit(
        lambda key: jax.lax.scan(step, (tables, optimizer.init(tables)), jax.random.split(key, 800))
    )(jax.random.key(0))
    for name, law in expected().items():
        others = [x for other, x in expected().items() if other != name] + [BEHAVIOR]
        assert min(abs(law - x).max() for x in others) > 0.05
        for table, row in zip(tables[name], law, strict=True):
            first = np.asarray(jax.nn.softmax(table[-1, 0]))  # all hidden
            rows = [a * (V + 1) + V for a in range(V)]  # the first token shown
            second = np.asarray(jax.nn.softmax(table[jnp.asarray(rows), 1], axis=-1))
            found = (first[:, None] * second).ravel()
            np.testing.assert_allclose(found, row, atol=0.03, err_msg=name)
    law = expected()["candidates"]
    nats = (law * np.log(law / BEHAVIOR)).sum(axis=1).mean()
    assert float(metrics["policy/target_kl"][0]) == pytest.approx(nats, abs=1e-5)


def test_loss_of_candidates_is_its_sum(x64):
    loss, q = RNG.normal(size=(2, 5, 4))
    lam = np.array([0.5, 1.0, 2.0, 0.1])
    found, metrics = matching.candidate_loss(*(jnp.asarray(x) for x in (loss, q, lam)))
    weight = np.exp(q / lam) / np.exp(q / lam).sum(axis=0)
    assert float(found) == pytest.approx((weight * loss).sum() / 4, rel=1e-12)
    assert float(metrics["policy/ess"]) == pytest.approx(np.mean(1 / (weight**2).sum(axis=0)))
    signed, metrics = matching.candidate_loss(jnp.asarray(loss), jnp.asarray(q), 1.0, kind="signed")
    up, down = (np.exp(s * q) / np.exp(s * q).sum(axis=0) for s in (1, -1))
    assert float(signed) == pytest.approx(((up - down) * loss).sum() / 4, rel=1e-12)
    assert "policy/ess" not in metrics


def test_a_hard_radius_weighs_every_state_by_its_own_temperature():
    q = jnp.asarray(RNG.normal(size=(16, S)) * np.array([0.1, 1.0, 10.0]), jnp.float32)
    _, metrics = matching.candidate_loss(q, q, targets.solve_temperature(q, 0.8))
    assert float(metrics["policy/target_kl"]) == pytest.approx(0.8, abs=1e-4)
