"""Oracles for the mixture of experts: every expert on every token, weighted by a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxlab.serving.model import experts

N, D, F, E, K = 13, 6, 5, 4, 2


@pytest.fixture
def drawn(key):
    key_params, key_x = jax.random.split(key)
    return experts.init_moe(key_params, D, F, E), jax.random.normal(key_x, (N, D))


def silu(x):
    return x / (1.0 + np.exp(-x))


def dense(params, x):
    """NumPy: all experts on all tokens."""
    x = np.asarray(x, float)
    p = softmax(x @ np.asarray(params.router, float), axis=-1)
    gate, up, down = (np.asarray(w, float) for w in params.experts)
    every = np.stack([(silu(x @ gate[e]) * (x @ up[e])) @ down[e] for e in range(E)], 1)
    kept = p >= np.sort(p, -1)[:, -K][:, None]
    s_gate, s_up, s_down = (np.asarray(w, float) for w in params.shared)
    shared = (silu(x @ s_gate) * (x @ s_up)) @ s_down
    return shared + (every * np.where(kept, p, 0.0)[..., None]).sum(1), p, kept


def test_equals_every_expert_under_a_mask(drawn):
    """Probabilities of the whole softmax, not renormalized over the chosen."""
    params, x = drawn
    want, p, kept = dense(params, x)
    routing = experts.route(params.router, x, K)
    np.testing.assert_allclose(
        jax.jit(experts.moe, static_argnames="num_active")(params, x, num_active=K), want, atol=2e-6
    )
    np.testing.assert_allclose(routing.prob, p, rtol=1e-5)
    assert np.all(np.take_along_axis(kept, np.asarray(routing.expert), 1))
    assert np.all(np.diff(np.asarray(routing.weight), axis=1) <= 0.0)


def test_no_token_is_dropped_when_all_visit_one_expert(drawn):
    """Expert 2 first for every token: no capacity cuts the queue before it."""
    params, x = drawn
    x = jnp.abs(x)
    params = params._replace(router=params.router.at[:, 2].set(50.0))
    assert np.all(np.asarray(experts.route(params.router, x, K).expert)[:, 0] == 2)
    np.testing.assert_allclose(
        experts.moe(params, x, num_active=K), dense(params, x)[0], rtol=1e-4, atol=1e-5
    )


def test_double_precision_is_kept(x64, key):
    """Routing, experts and losses in float64, against NumPy's."""
    key_params, key_x = jax.random.split(key)
    params = experts.init_moe(key_params, D, F, E)
    x = jax.random.normal(key_x, (N, D))
    assert x.dtype == params.router.dtype == jnp.float64
    want, p, _ = dense(params, x)
    routing = experts.route(params.router, x, K)
    np.testing.assert_allclose(experts.moe(params, x, num_active=K), want, atol=1e-12)
    np.testing.assert_allclose(routing.prob, p, atol=1e-14)
    visits = np.bincount(np.asarray(routing.expert).reshape(-1), minlength=E) / (N * K)
    balance = E * np.sum(visits * p.mean(0))
    np.testing.assert_allclose(experts.load_balance_loss(routing), balance, rtol=1e-14)
    logits = np.asarray(x) @ np.asarray(params.router)
    z = (logsumexp(logits, axis=-1) ** 2).mean()
    np.testing.assert_allclose(experts.router_z_loss(params.router, x), z, rtol=1e-13)


def test_no_tokens_are_no_work(drawn):
    assert experts.moe(drawn[0], jnp.zeros((2, 0, D)), num_active=K).shape == (2, 0, D)


def test_order_of_tokens_does_not_matter(drawn):
    """No token's result depends on who else is in the batch, but for rounding in its block."""
    params, x = drawn
    order = np.random.default_rng(0).permutation(N)
    run = jax.jit(lambda x: experts.moe(params, x, num_active=K))
    np.testing.assert_allclose(run(x[order]), run(x)[order], atol=1e-6)


def test_gradients_equal_those_of_the_dense_form(x64, key):
    key_params, key_x = jax.random.split(key)
    params = jax.tree.map(lambda w: w.astype(float), experts.init_moe(key_params, D, F, E))
    x = jax.random.normal(key_x, (N, D), float)

    def masked(params, x):
        routing = experts.route(params.router, x, K)
        weight = (
            jnp.zeros((N, E), float)
            .at[jnp.arange(N)[:, None], routing.expert]
            .set(routing.weight.astype(float))
        )
        hidden = jax.nn.silu(jnp.einsum("nd,edf->nef", x, params.experts.gate))
        hidden = hidden * jnp.einsum("nd,edf->nef", x, params.experts.up)
        out = jnp.einsum("nef,efd,ne->nd", hidden, params.experts.down, weight)
        return out + experts.swiglu(params.shared, x)

    loss = lambda fn: lambda p, x: jnp.sum(jnp.sin(fn(p, x)))  # noqa: E731
    ours = lambda p, x: experts.moe(p, x, num_active=K)  # noqa: E731
    got, want = (jax.jit(jax.grad(loss(f), argnums=(0, 1)))(params, x) for f in (ours, masked))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_losses(drawn):
    """1 if tokens spread evenly, E if all probability is on one expert; the z-loss by hand."""
    params, x = drawn
    even = experts.Routing(
        jnp.full((E, 1), 1.0 / E), jnp.arange(E, dtype=jnp.int32)[:, None], jnp.full((E, E), 1 / E)
    )
    one = experts.Routing(
        jnp.ones((E, 1)), jnp.zeros((E, 1), jnp.int32), jnp.eye(E)[jnp.zeros(E, jnp.int32)]
    )
    np.testing.assert_allclose(experts.load_balance_loss(even), 1.0, rtol=1e-6)
    np.testing.assert_allclose(experts.load_balance_loss(one), E, rtol=1e-6)
    logits = np.asarray(x, float) @ np.asarray(params.router, float)
    want = (logsumexp(logits, axis=-1) ** 2).mean()
    np.testing.assert_allclose(experts.router_z_loss(params.router, x), want, rtol=1e-5)


def test_number_of_active_experts_is_checked(drawn):
    params, x = drawn
    for wrong in (0, E + 1):
        with pytest.raises(ValueError, match="num_active"):
            experts.moe(params, x, num_active=wrong)
