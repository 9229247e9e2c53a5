"""Distribution matching on finite processes: linear solves against sums, gradients and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from jaxlab import imitation
from jaxlab.imitation.problems import tabular

pytestmark = pytest.mark.usefixtures("x64")


def problem(seed, **options):
    """A process, a policy, the occupancy of an expert and that of a replay."""
    key = jax.random.key(seed)
    low_rank = imitation.low_rank_process(key, **options)
    num_states, num_actions = low_rank.phi.shape[:2]
    keys = jax.random.split(jax.random.fold_in(key, 1), 3)
    draws = [jax.random.normal(k, (num_states, num_actions)) for k in keys]
    policy, *others = (jax.nn.softmax(x, axis=1) for x in draws)
    expert, replay = (imitation.occupancy(low_rank.process, other) for other in others)
    return low_rank, policy, others[0], expert, replay, draws[0]


def test_occupancy_is_the_discounted_sum_over_steps():
    low_rank, policy, *_ = problem(0)
    process = low_rank.process
    transition, policy = np.asarray(process.transition), np.asarray(policy)
    law, total = np.asarray(process.start), np.zeros(policy.shape)
    for t in range(400):
        total += (1 - process.gamma) * process.gamma**t * law[:, None] * policy
        law = np.einsum("s,sa,sat->t", law, policy, transition)
    np.testing.assert_allclose(imitation.occupancy(process, policy), total, atol=1e-14)
    np.testing.assert_allclose(transition.sum(axis=2), 1.0, atol=1e-12)
    exact = np.einsum("sak,tk,t->sat", low_rank.phi, low_rank.mu, low_rank.noise)
    np.testing.assert_allclose(exact, transition, atol=1e-14)
    assert np.linalg.matrix_rank(transition.reshape(-1, 12), tol=1e-10) == 4


@pytest.mark.parametrize("seed, alpha", [(0, 0.0), (1, 0.05), (2, 0.6)])
def test_least_dual_is_minus_the_divergence(seed, alpha):
    low_rank, policy, _, expert, replay, _ = problem(seed)
    process = low_rank.process
    given = {"replay": replay, "alpha": alpha}
    nu = imitation.dual_optimum(process, policy, expert, **given)

    def J(x):
        return imitation.dual_objective(x, process, policy, expert, **given)

    own, other = (
        (1 - alpha) * law + alpha * replay for law in (imitation.occupancy(process, policy), expert)
    )
    want = float(np.sum(np.asarray(own) * np.log(np.asarray(own) / np.asarray(other))))
    np.testing.assert_allclose(-J(nu), want, atol=1e-12)
    np.testing.assert_allclose(imitation.kl(own, other), want, atol=1e-14)
    np.testing.assert_allclose(jax.grad(J)(nu), 0.0, atol=1e-12)
    np.testing.assert_allclose(J(nu + 3.7), J(nu), atol=1e-12)
    # Convex: along twenty random lines the value lies below the chord.
    ends = jax.random.normal(jax.random.key(9), (2, 20, *nu.shape))
    middle, first, second = (jax.vmap(J)(x) for x in (jnp.mean(ends, axis=0), *ends))
    assert np.all(middle <= 0.5 * (first + second) + 1e-12)
    assert np.all(first > J(nu))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_policy_gradient_is_that_of_the_divergence(alpha):
    """The envelope theorem: nu is held at its optimum."""
    low_rank, policy, _, expert, replay, logits = problem(1)
    process = low_rank.process
    given = {"replay": replay, "alpha": alpha}
    nu = imitation.dual_optimum(process, policy, expert, **given)

    def saddle(x):
        return imitation.dual_objective(nu, process, jax.nn.softmax(x, axis=1), expert, **given)

    def divergence(x):
        own = imitation.occupancy(process, jax.nn.softmax(x, axis=1))
        mixed = [(1 - alpha) * law + alpha * replay for law in (own, expert)]
        return -imitation.kl(*mixed)

    np.testing.assert_allclose(jax.grad(saddle)(logits), jax.grad(divergence)(logits), atol=1e-12)


@pytest.mark.parametrize("start_is_noise", [False, True])
def test_features_carry_the_optimum(start_is_noise):
    """The representation identity, ten processes; its practical form where starts are the noise."""

    @jax.jit
    @jax.vmap
    def sides(key):
        low_rank = imitation.low_rank_process(key, start_is_noise=start_is_noise)
        process = low_rank.process
        policy, other = jax.nn.softmax(jax.random.normal(key, (2, 12, 3)), axis=2)
        expert = imitation.occupancy(process, other)
        parts = imitation.parts_of_optimum(low_rank, policy, expert)
        nu = imitation.dual_optimum(process, policy, expert)
        own = imitation.occupancy(process, policy)
        return low_rank, parts, nu, imitation.represented(low_rank, parts), own

    low_rank, parts, nu, form, own = jax.tree.map(
        np.asarray, sides(jax.random.split(jax.random.key(5), 10))
    )
    np.testing.assert_allclose(form, -nu, atol=1e-10)
    reached = np.einsum("isk,ik->is", low_rank.mu, parts.theta)
    linear = parts.f + np.einsum("isak,ik->isa", low_rank.phi, parts.omega)
    if start_is_noise:
        np.testing.assert_allclose(linear - np.log(reached + 0.1)[..., None], -nu)
    ratio = reached + 0.1 * low_rank.process.start / low_rank.noise
    np.testing.assert_allclose(ratio * low_rank.noise, own.sum(axis=2), atol=1e-14)


def test_minimizing_over_the_parts_reaches_the_divergence():
    low_rank, policy, _, expert, _, _ = problem(2)
    process = low_rank.process
    shapes = [expert.shape, (4,), (4,)]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def J(x):
        parts = [y.reshape(shape) for y, shape in zip(jnp.split(x, cuts), shapes, strict=True)]
        nu = -imitation.represented(low_rank, tabular.Linear(*parts))
        return imitation.dual_objective(nu, process, policy, expert)

    start = np.concatenate([np.zeros(expert.size + 4), np.full(4, 0.9)])
    value = jax.jit(jax.value_and_grad(J))
    found = scipy.optimize.minimize(lambda x: [np.asarray(y) for y in value(x)], start, jac=True)
    want = imitation.kl(imitation.occupancy(process, policy), expert)
    np.testing.assert_allclose(-found.fun, want, atol=1e-6)


def test_both_players_moving_at_once_find_the_expert(optax_promotes):
    """As the learner moves them: head on exact features down, policy up, with and without logs."""
    low_rank, _, own, expert, replay, logits = problem(4)
    process = low_rank.process

    def J(parts, logits, alpha):
        policy = jax.nn.softmax(logits, axis=1)
        nu = -imitation.represented(low_rank, parts)
        return imitation.dual_objective(nu, process, policy, expert, replay=replay, alpha=alpha)

    def run(alpha):
        parts = tabular.Linear(jnp.zeros_like(expert), jnp.zeros(4), jnp.full(4, 0.9))
        head, actor = optax.adam(0.03), optax.adam(0.003)

        def step(carry, _):
            parts, logits, head_state, actor_state = carry
            down, up = jax.grad(J, argnums=(0, 1))(parts, logits, alpha)
            moved, head_state = head.update(down, head_state)
            raised, actor_state = actor.update(-up, actor_state)
            parts, logits = optax.apply_updates(parts, moved), optax.apply_updates(logits, raised)
            return (parts, logits, head_state, actor_state), None

        first = (parts, logits, head.init(parts), actor.init(logits))
        return jax.lax.scan(step, first, length=4000)[0][1]

    def divergence(logits):
        return imitation.kl(imitation.occupancy(process, jax.nn.softmax(logits, axis=1)), expert)

    found = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 0.05]))
    assert divergence(logits) > 0.25
    for each in found:
        assert divergence(each) < 1e-4
        np.testing.assert_allclose(jax.nn.softmax(each, axis=1), own, atol=0.02)


def test_the_expert_itself_has_a_constant_dual():
    low_rank, _, own, expert, replay, _ = problem(3)
    process = low_rank.process
    nu = imitation.dual_optimum(process, own, expert)
    np.testing.assert_allclose(nu, nu[0, 0], atol=1e-12)
    np.testing.assert_allclose(imitation.dual_objective(nu, process, own, expert), 0.0, atol=1e-12)

    def J(x):
        return imitation.dual_objective(nu, process, jax.nn.softmax(x, axis=1), expert)

    np.testing.assert_allclose(jax.grad(J)(jnp.log(own)), 0.0, atol=1e-12)
    _, policy, *_ = problem(3)
    flat = imitation.dual_optimum(process, policy, expert, replay=replay, alpha=1.0)
    np.testing.assert_allclose(flat, 0.0, atol=1e-12)
    given = {"replay": replay, "alpha": 1.0}
    J = jax.vmap(lambda x: imitation.dual_objective(x, process, policy, expert, **given))
    assert np.all(J(jax.random.normal(jax.random.key(0), (20, *policy.shape))) > 0.0)
    np.testing.assert_allclose(J(flat[None]), 0.0, atol=1e-12)


def test_rows_of_no_mass_add_nothing_and_bad_sizes_are_refused():
    half = jnp.asarray([0.5, 0.5, 0.0])
    np.testing.assert_allclose(imitation.kl(half, jnp.asarray([0.25, 0.25, 0.5])), np.log(2.0))
    for options in ({"rank": 0}, {"rank": 2.5}, {"gamma": 1.0}):
        with pytest.raises(ValueError, match="must be at least 1 and gamma lie in"):
            imitation.low_rank_process(jax.random.key(0), **options)
    low_rank, policy, _, expert, *_ = problem(0)
    given = (low_rank.process, policy, expert)
    for call in (
        lambda: imitation.dual_objective(expert, *given, alpha=0.1),
        lambda: imitation.dual_optimum(*given, alpha=0.1),
    ):
        with pytest.raises(ValueError, match="a share alpha = 0.1 of other data needs replay"):
            call()
