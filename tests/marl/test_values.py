"""Optimistic values and gradients in float64 against NumPy: loops, dense solves, autodiff."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxlab import envs, marl
from jaxlab.core import risk

GAMMA = 0.9
GAME = envs.random_game(0, 5, (3, 4), num_outcomes=3)
JOINT = list(itertools.product(range(3), range(4)))
MEASURES = {
    "entropic": (risk.entropic, 0.7),
    "chi2": (risk.chi2, 0.15),
    "cvar": (risk.cvar, 0.4),
    "expectile": (risk.expectile, 0.8),
    "neutral": (lambda _: risk.neutral(), 0.0),
}


@pytest.fixture(autouse=True)
def float64(x64):
    """All of this in double precision."""


def policies(seed=1, sizes=(3, 4), states=5):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(size), states) for size in sizes]


def dense(game, joint):
    """Mean reward `[S]` and transition matrix `[S, S]` of a joint policy, by loops."""
    reward, matrix = np.zeros(game.num_states), np.zeros((game.num_states,) * 2)
    for index in np.ndindex(*game.prob.shape):
        chance = joint[index[:-1]] * game.prob[index]
        reward[index[0]] += chance * game.reward[index]
        if not game.ends[index]:
            matrix[index[0], game.next_state[index]] += chance
    return reward, matrix


def numpy_q(game, v, gamma=GAMMA):
    return np.sum(game.prob * (game.reward + gamma * ~game.ends * v[game.next_state]), axis=-1)


def numpy_value(name, parameter, q, probs):
    """The measure of one state in NumPy, by other formulas than the library's."""
    if name == "entropic":
        return scipy.special.logsumexp(parameter * q, b=probs) / parameter
    if name == "chi2":  # as long as no tilted probability reaches 0
        mean = probs @ q
        assert np.all(1.0 + parameter * (q - mean) > 0.0)
        return mean + 0.5 * parameter * (probs @ (q - mean) ** 2)
    if name == "cvar":
        return min(nu + np.maximum(q - nu, 0.0) @ probs / parameter for nu in q)
    if name == "expectile":  # the best of all ways to call the largest ones above
        order = np.argsort(-q)
        share = np.tril(np.full((len(q),) * 2, 2.0 * parameter - 1.0)) + 1.0 - parameter
        share = share * probs[order]
        return np.max(share @ q[order] / share.sum(axis=1))
    return probs @ q


def numpy_evaluate(name, parameter, game, joint, gamma=GAMMA, sweeps=320):
    v = np.zeros(game.num_states)
    for _ in range(sweeps):
        q = numpy_q(game, v, gamma).reshape(len(v), -1)
        flat = joint.reshape(len(v), -1)
        v = np.array([numpy_value(name, parameter, *x) for x in zip(q, flat, strict=True)])
    return v


def as_jax(tables):
    return [jnp.asarray(table) for table in tables]


def test_joint_policy_is_the_product():
    first, second = policies()
    third = np.random.default_rng(3).dirichlet(np.ones(2), 5)
    joint = np.asarray(marl.joint_policy(as_jax([first, second, third])))
    np.testing.assert_allclose(joint, np.einsum("si,sj,sk->sijk", first, second, third), rtol=1e-14)
    np.testing.assert_allclose(marl.marginal(joint, 1), second, rtol=1e-14)


@pytest.mark.parametrize("name", MEASURES)
def test_values_and_gradients_of_every_measure(name):
    """Values against sweeps in NumPy; oracle 5: the theorem against autodiff of the fixed point."""
    make, parameter = MEASURES[name]
    tables = as_jax(policies())

    @jax.jit
    def ours(parameter, logits):
        def value(logits, parameter):
            joint = marl.joint_policy([jax.nn.softmax(x) for x in logits])
            found = marl.evaluate(GAME, joint, make(parameter), gamma=GAMMA)
            return jnp.asarray(GAME.start) @ found.v, found

        (_, found), grads = jax.value_and_grad(value, has_aux=True)(logits, parameter)
        pi = [jax.nn.softmax(x) for x in logits]
        soft = marl.policy_gradient(GAME, pi, make(parameter), gamma=GAMMA)
        direct = marl.policy_gradient(GAME, pi, make(parameter), gamma=GAMMA, form="direct")
        forward = jax.jvp(lambda x: value(logits, x)[0], (parameter,), (jnp.ones(()),))[1]
        return found, grads, soft, direct, forward

    logits = [jnp.log(table) for table in tables]
    found, grads, soft, direct, forward = ours(jnp.asarray(parameter), logits)
    joint = np.einsum("si,sj->sij", *map(np.asarray, tables))
    reference = numpy_evaluate(name, parameter, GAME, joint)
    np.testing.assert_allclose(found.v, reference, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.q, numpy_q(GAME, reference), rtol=0, atol=1e-12)
    assert found.residual < 1e-13
    for ours_i, auto in zip(soft.agents, grads, strict=True):
        np.testing.assert_allclose(ours_i, auto, rtol=0, atol=1e-11 * np.abs(auto).max())
    # The direct form along the simplex, against differences of the reference.
    rng, h = np.random.default_rng(5), 1e-5
    for agent, grad in enumerate(direct.agents):
        along = rng.normal(size=grad.shape)
        along -= along.mean(axis=1, keepdims=True)
        ends = []
        for sign in (1.0, -1.0):
            moved = [np.asarray(x) for x in tables]
            moved[agent] = moved[agent] + sign * h * along
            ends.append(
                GAME.start
                @ numpy_evaluate(name, parameter, GAME, np.einsum("si,sj->sij", *moved), sweeps=300)
            )
        slope = (ends[0] - ends[1]) / (2.0 * h)
        np.testing.assert_allclose(np.sum(np.asarray(grad) * along), slope, rtol=2e-5, atol=1e-8)
    if name in ("entropic", "expectile"):
        ends = [
            GAME.start @ numpy_evaluate(name, parameter + sign * h, GAME, joint, sweeps=300)
            for sign in (1.0, -1.0)
        ]
        np.testing.assert_allclose(forward, (ends[0] - ends[1]) / (2.0 * h), rtol=1e-5)


@pytest.fixture(scope="module")
def sweep():
    """Values over beta by one program, with what hangs on them."""
    betas = np.array([0.0, 1e-5, 0.3, 1.0, 4.0, np.inf])
    with jax.enable_x64(True):
        tables = as_jax(policies())
        joint = marl.joint_policy(tables)

        @jax.jit
        @jax.vmap
        def over(beta):
            measure = risk.entropic(beta)
            found = marl.evaluate(GAME, joint, measure, gamma=GAMMA)
            tilt = marl.tilted_policy(found.q, joint, measure)
            agents = [marl.agent_values(found.q, tables, i, measure) for i in range(2)]
            from_agents = [measure.value(q, pi) for q, pi in zip(agents, tables, strict=True)]
            weights = [marl.agent_weights(found.q, tables, i, measure) for i in range(2)]
            grads = [
                marl.policy_gradient(GAME, tables, measure, gamma=GAMMA, form=form).agents
                for form in ("softmax", "direct", "natural")
            ]
            visited = marl.visitation(GAME, tilt, gamma=GAMMA)
            return found, tilt, agents, from_agents, weights, grads, visited

        found = jax.device_get(over(jnp.asarray(betas)))
    return betas, found, np.asarray(joint), [np.asarray(table) for table in tables]


def test_small_and_large_beta(sweep):
    """Oracles 1, 2 and 7: the slope at 0 is a bonus for variance, the limit the best play."""
    betas, (found, *_), joint, _ = sweep
    reward, matrix = dense(GAME, joint)
    neutral = np.linalg.solve(np.eye(5) - GAMMA * matrix, reward)
    np.testing.assert_allclose(found.v[0], neutral, rtol=0, atol=1e-12)
    q = numpy_q(GAME, neutral)
    variance = np.sum(joint * (q - neutral[:, None, None]) ** 2, axis=(1, 2))
    slope = 0.5 * np.linalg.solve(np.eye(5) - GAMMA * matrix, variance)
    np.testing.assert_allclose((found.v[1] - found.v[0]) / betas[1], slope, rtol=1e-4)
    best = np.zeros(5)
    for _ in range(400):
        best = numpy_q(GAME, best).max(axis=(1, 2))
    np.testing.assert_allclose(found.v[-1], best, rtol=0, atol=1e-12)
    np.testing.assert_allclose(marl.optimal_values(GAME, gamma=GAMMA, dtype=jnp.float64).v, best)
    assert np.all(np.diff(found.v, axis=0) > 0.0)


def test_identities_of_the_entropic_measure(sweep):
    """Oracles 3, 4 and 6."""
    betas, (found, tilt, agents, from_agents, weights, _, _), joint, tables = sweep
    for k in (2, 3, 4):
        beta, v, q = betas[k], found.v[k], found.q[k]
        advantage = q - v[:, None, None]
        np.testing.assert_allclose(np.sum(joint * np.exp(beta * advantage), axis=(1, 2)), 1.0)
        np.testing.assert_allclose(tilt[k], joint * np.exp(beta * advantage), rtol=1e-11)
        kl = np.sum(tilt[k] * np.log(tilt[k] / joint), axis=(1, 2))
        np.testing.assert_allclose(np.sum(tilt[k] * q, axis=(1, 2)) - kl / beta, v, rtol=1e-11)
        for i, table in enumerate(tables):
            np.testing.assert_allclose(from_agents[i][k], v, rtol=0, atol=1e-12)
            share = table * np.exp(beta * (agents[i][k] - v[:, None]))
            np.testing.assert_allclose(tilt[k].sum(axis=2 - i), share, rtol=1e-10)
            expected = np.expm1(beta * (agents[i][k] - v[:, None])) / beta
            np.testing.assert_allclose(weights[i][k], expected, rtol=1e-9, atol=1e-11)


def test_forms_of_the_gradient_and_the_states_of_the_tilt(sweep):
    betas, (_, tilt, _, _, weights, grads, visited), _, tables = sweep
    for k in (0, 2, 4):
        _, matrix = dense(GAME, tilt[k])
        d = (1.0 - GAMMA) * np.linalg.solve((np.eye(5) - GAMMA * matrix).T, GAME.start)
        np.testing.assert_allclose(visited[k], d, rtol=1e-11)
        scale = d[:, None] / (1.0 - GAMMA)
        soft, direct, natural = grads
        for i, table in enumerate(tables):
            np.testing.assert_allclose(natural[i][k], weights[i][k], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(direct[i][k], scale * weights[i][k], rtol=1e-9, atol=1e-12)
            expected = scale * table * weights[i][k]
            if betas[k]:
                mine = tilt[k].sum(axis=2 - i)
                expected = scale * (mine - table) / betas[k]
            np.testing.assert_allclose(soft[i][k], expected, rtol=1e-8, atol=1e-12)


def test_shifts_scales_and_contraction():
    """Oracles 8 and 10."""
    joint = marl.joint_policy(as_jax(policies()))

    def value(game, beta, gamma=GAMMA):
        return marl.evaluate(game, joint, risk.entropic(beta), gamma=gamma).v

    v = value(GAME, 0.7)
    np.testing.assert_allclose(value(GAME._replace(reward=GAME.reward + 2.0), 0.7), v + 20.0)
    np.testing.assert_allclose(value(GAME._replace(reward=3.0 * GAME.reward), 0.7 / 3.0), 3.0 * v)
    rng = np.random.default_rng(0)
    measure = risk.entropic(0.7)
    step = jax.jit(lambda v: marl.state_values(marl.q_values(GAME, v, gamma=GAMMA), joint, measure))
    for _ in range(20):
        a, b = jnp.asarray(rng.normal(0.0, 5.0, (2, 5)))
        gap = jnp.max(jnp.abs(step(a) - step(b)))
        assert gap <= GAMMA * jnp.max(jnp.abs(a - b)) * (1.0 + 1e-12)


@pytest.mark.parametrize("sizes", [(4,), (3, 4)], ids=["one agent", "one joint policy"])
def test_becoming_the_tilted_policy_finds_the_optimum(sizes):
    """Oracle 9: policy iteration under a KL penalty, where outcomes are certain."""
    game = envs.random_game(3, 6, sizes)
    best = marl.optimal_values(game, gamma=GAMMA, dtype=jnp.float64).v
    measure = risk.entropic(1.0)

    @jax.jit
    def climb(joint):
        def step(joint, _):
            found = marl.evaluate(game, joint, measure, gamma=GAMMA)
            return marl.tilted_policy(found.q, joint, measure), found.v

        return jax.lax.scan(step, joint, length=400)[1]

    count = np.prod(sizes)
    values = climb(jnp.full((6, *sizes), 1.0 / count))
    np.testing.assert_allclose(values[-1], best, rtol=0, atol=1e-9)
    assert np.all(np.diff(values, axis=0) > -1e-12)


def test_means_and_maxima_of_the_other_measures():
    """Oracle 13, but for the formula of chi-squared, which the sweeps in NumPy use."""
    joint = marl.joint_policy(as_jax(policies()))

    def value(measure):
        return marl.evaluate(GAME, joint, measure, gamma=GAMMA).v

    neutral, best = value(risk.neutral()), value(risk.entropic(jnp.inf))
    np.testing.assert_allclose(value(risk.cvar(1.0)), neutral)
    np.testing.assert_allclose(value(risk.expectile(0.5)), neutral)
    np.testing.assert_allclose(value(risk.chi2(0.0)), neutral)
    np.testing.assert_allclose(value(risk.cvar(1e-6)), best)


def test_a_local_critic_is_optimistic_about_luck():
    """It equals the joint critic where outcomes are certain, and counts lotteries elsewhere."""
    certain = envs.random_game(3, 4, (2, 3))
    joint = marl.joint_policy(as_jax(policies(2, (2, 3), 4)))
    both = [
        marl.evaluate(certain, joint, risk.entropic(0.8), gamma=GAMMA, critic=critic).v
        for critic in ("joint", "local")
    ]
    np.testing.assert_allclose(*both, rtol=1e-12)
    lottery = envs.matrix_game([[[14.0, 0.0], [7.0, 7.0]]], chances=[0.5, 0.5])
    sure = jnp.asarray([[[1.0, 0.0]]])
    found = [
        marl.evaluate(lottery, sure, risk.entropic(1.0), gamma=0.0, critic=critic).v[0]
        for critic in ("joint", "local")
    ]
    np.testing.assert_allclose(found, [7.0, np.log(0.5 * np.exp(14.0) + 0.5)], rtol=1e-12)


def test_projection_on_the_simplex_against_a_program():
    rng = np.random.default_rng(0)
    for row in rng.normal(0.0, 2.0, (20, 5)):
        # The nearest point has one threshold; bisection finds it.
        low, high = row.min() - 1.0, row.max()
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (
                (middle, high) if np.maximum(row - middle, 0.0).sum() > 1.0 else (low, middle)
            )
        np.testing.assert_allclose(
            marl.project_simplex(jnp.asarray(row)), np.maximum(row - low, 0.0), atol=1e-13
        )


def test_refusals():
    joint = marl.joint_policy(as_jax(policies()))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got 1.0"):
        marl.evaluate(GAME, joint, risk.neutral(), gamma=1.0)
    with pytest.raises(ValueError, match=r"joint policy must be floats \(5, 3, 4\), got .*\(5, 3"):
        marl.evaluate(GAME, joint[..., :2], risk.neutral(), gamma=0.5)
    with pytest.raises(ValueError, match="critic must be joint or local, got 'central'"):
        marl.evaluate(GAME, joint, risk.neutral(), gamma=0.5, critic="central")
    with pytest.raises(ValueError, match="form must be one of softmax, direct, natural, got 'kl'"):
        marl.policy_gradient(GAME, as_jax(policies()), risk.neutral(), gamma=0.5, form="kl")
    with pytest.raises(ValueError, match=r"policies must be \[S, A_i\] of one S"):
        marl.joint_policy([jnp.ones(3)])
