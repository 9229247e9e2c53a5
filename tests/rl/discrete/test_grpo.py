"""Policies whose probabilities are exact, one that writes and a factored one, and GRPO."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete
from jaxlab.rl.discrete import matching

V, K = 2, 3


def parity(tokens):
    """1 for an even number of ones."""
    return (jnp.sum(tokens, axis=-1) % 2 == 0).astype(jnp.float32)


def run(algorithm, steps):
    def body(state, _):
        return algorithm.step(state)

    return jax.jit(lambda key: jax.lax.scan(body, algorithm.init(key), length=steps))(
        jax.random.key(0)
    )


def exact_policies():
    """A factored and a writing policy with their parameters, not even."""
    writing = discrete.make_writing_policy(V, K, width=8, num_layers=1, num_heads=2)
    params = writing.init(jax.random.key(0))
    params = params._replace(head=jax.random.normal(jax.random.key(1), params.head.shape))
    factored = discrete.make_factored_policy(V, K)
    return (writing, params), (factored, jax.random.normal(jax.random.key(2), (K, V)))


@pytest.mark.parametrize("which", [0, 1], ids=["writing", "factored"])
def test_policies_with_exact_probabilities_have_the_policy_gradient(which):
    """Every sequence as often as it is drawn: GRPO by token, and steps of one that writes."""
    policy, params = exact_policies()[which]
    clean = jnp.asarray(exact.sequences(V, K))
    old = jax.tree.map(jnp.array, params)

    def law(params):
        return jnp.exp(jnp.sum(matching.token_logp(policy, params, clean), axis=-1))

    worth = jnp.asarray(np.random.default_rng(3).normal(size=V**K), jnp.float32)
    prob = jax.jit(law)(params)
    assert float(prob.sum()) == pytest.approx(1.0, abs=1e-5)
    drawn = prob * V**K * (worth - prob @ worth)
    none = {"clip_eps": 0.2}

    def grpo(params):
        logp, logp_old = (matching.token_logp(policy, p, clean) for p in (params, old))
        loss, _ = matching.grpo_loss(logp, logp_old, logp_old, drawn, kl_coef=0.1, **none)
        return -K * loss

    def written(params, whole):
        each = matching.written_steps(policy, params, old, clean)
        logp, logp_old, kl = (x.sum(axis=0, keepdims=True) for x in each) if whole else each
        loss, _ = matching.reverse_kl(
            logp, logp_old, drawn, kl, num_steps=len(logp), temperature=0.1, **none
        )
        return -loss

    losses = [lambda p: law(p) @ worth, grpo]
    if which == 0:
        losses += [lambda p: written(p, False), lambda p: written(p, True)]
    true, *others = jax.jit(lambda p: [jax.grad(loss)(p) for loss in losses])(params)
    for found in others:
        for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-6)
        a, b = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]).astype(float)
            for g in (found, true)
        )
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 1 - 1e-6


def test_divergences_of_written_tokens_add_up_to_that_of_sequences():
    policy, params = exact_policies()[0]
    moved = params._replace(head=params.head + 0.5 * params.head[::-1])
    clean = jnp.asarray(exact.sequences(V, K))
    logp, logp_old, kl = (
        np.asarray(x, np.float64) for x in matching.written_steps(policy, moved, params, clean)
    )
    new, old = np.exp(logp.sum(axis=0)), np.exp(logp_old.sum(axis=0))
    expected = (new * np.log(new / old)).sum()
    assert expected > 0.05 and new @ kl.sum(axis=0) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(new, np.exp(policy.log_prob(moved, clean)), rtol=1e-5)


def test_grpo_is_its_formula():
    rng = np.random.default_rng(4)
    logp, logp_old, logp_ref = -np.abs(rng.normal(size=(3, 6, 5)))
    advantage = rng.normal(size=6)
    total = outside = price = 0.0
    for b in range(6):
        for k in range(5):
            ratio = math.exp(logp[b, k] - logp_old[b, k])
            clipped = min(max(ratio, 0.7), 1.3)
            d = logp_ref[b, k] - logp[b, k]
            price += math.exp(d) - d - 1.0
            total += 0.3 * (math.exp(d) - d - 1.0)
            total -= min(ratio * advantage[b], clipped * advantage[b])
            outside += ratio != clipped
    with jax.enable_x64(True):
        loss, metrics = matching.grpo_loss(
            *(jnp.asarray(x) for x in (logp, logp_old, logp_ref, advantage)),
            clip_eps=0.3,
            kl_coef=0.3,
        )
    assert float(loss) == pytest.approx(total / 30, rel=1e-12)
    assert float(metrics["policy/clipped"]) == pytest.approx(outside / 30, rel=1e-12)
    assert float(metrics["policy/reference_kl"]) == pytest.approx(price / 6, rel=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("ratio", ["step", "exact", "grpo"])
def test_a_policy_that_writes_learns_parity(ratio):
    """The first tokens say nothing, the last depends on all: half are right at first."""
    policy = discrete.make_writing_policy(V, K, width=8, num_layers=1, num_heads=2)
    options = {"batch": 64, "num_minibatches": 2, "learning_rate": 2e-2}
    if ratio == "grpo":
        start = policy.init(jax.random.key(1))
        algorithm = discrete.grpo(parity, policy, start, kl_coef=0.01, **options)
    else:
        algorithm = discrete.reverse(parity, policy, ratio=ratio, **options)
    state, metrics = run(algorithm, 40)
    every = jnp.asarray(exact.sequences(V, K))
    law = np.exp(np.asarray(policy.log_prob(state.params, every)))
    assert law @ np.asarray(parity(every)) > 0.95
    assert float(metrics["reward/mean"][0]) < 0.75 and "loss/band_0" not in metrics
    assert int(state.num_rewards) == 40 * 64


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_grpo_learns_independent_tokens_and_its_price_holds_them_back():
    task = discrete.tasks.product(np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.2]]))
    policy = discrete.make_factored_policy(3, 2)
    algorithm = over_seeds(
        discrete.grpo(
            task.reward,
            policy,
            policy.init(jax.random.key(0)),
            num_steps=2,
            batch=64,
            num_epochs=2,
            learning_rate=3e-2,
        ),
        2,
        settings={"kl_coef": jnp.asarray([0.0, 3.0])},
    )
    state, _ = run(algorithm, 60)
    laws = np.asarray(jax.nn.softmax(state.params, axis=-1))
    assert laws[0, 0, 1] > 0.95 and laws[0, 1, 0] > 0.95
    assert laws[1, 0, 1] > 0.36 and laws[1].max() < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10}, "divide"),
        ({"batch": 2, "num_minibatches": 1}, "at least 4 sequences"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"num_epochs": 0}, "num_epochs"),
    ],
)
def test_bad_options_of_grpo_are_refused(options, message):
    policy = discrete.make_table_policy(2, 2)
    with pytest.raises(ValueError, match=message):
        discrete.grpo(
            parity,
            policy,
            policy.init(jax.random.key(0)),
            **{"num_steps": 2, "batch": 8, **options},
        )
