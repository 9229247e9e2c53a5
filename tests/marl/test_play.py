"""Exact play: where it ends is a deterministic consequence of the risk parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, marl
from jaxlab.core import loop, risk


def ends_at(
    game, betas, num_steps, *, kind="natural", num_starts=1, measure=risk.entropic, **given
):
    """Neutral values of the start after play, `[betas, starts]`."""
    play = marl.make_play(game, kind=kind, measure=measure, beta=float(betas[-1]), **given)

    @jax.jit
    def all_of_them(betas):
        def one(beta, i):
            state = play.init(jax.random.fold_in(jax.random.key(0), i), {"beta": beta})
            state, _ = jax.lax.scan(lambda s, _: play.step(s), state, length=num_steps)
            return marl.score(game, state, kind)

        starts = jnp.arange(num_starts)
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(betas, starts)

    return np.asarray(all_of_them(jnp.asarray(betas)))


def test_climbing_from_uniform_turns_between_0_08_and_0_09():
    found = ends_at(
        envs.climbing(), [0.0, 0.05, 0.08, 0.09, 0.3, 1.0], 4500, kind="gradient", learning_rate=0.5
    )
    np.testing.assert_allclose(found[:, 0], [7.0] * 3 + [11.0] * 3, rtol=0.01)


def test_success_from_random_starts_rises_with_beta():
    """From 31 % to 100 % of 200 starts; the bounds are three standard errors."""
    found = ends_at(envs.climbing(), [0.0, 0.1, 0.3, 1.0], 1500, num_starts=200, init_scale=1.0)
    success = np.mean(found > 0.97 * 11.0, axis=1)
    np.testing.assert_allclose(success, [0.31, 0.46, 0.82, 1.0], atol=0.11)
    assert np.all(np.diff(success) > 0.0) and success[-1] == 1.0


def test_penalty_and_the_asymmetric_game():
    found = ends_at(envs.penalty(100.0), [0.0, 0.1, 1.0], 1500, num_starts=8, init_scale=0.05)
    assert np.all(found[0] < 2.1) and np.all(found[1:] > 9.9)
    found = ends_at(envs.asymmetric(), [0.0, 1.0, 5.0, 20.0], 3000)[:, 0]
    np.testing.assert_allclose(found, [0.16, 0.16, 0.2, 0.2], atol=0.0025)


@pytest.mark.parametrize(
    ("measure", "neutral", "optimist"),
    [(risk.expectile, 0.5, 0.95), (risk.chi2, 0.0, 0.3)],
    ids=["expectile", "chi2"],
)
def test_any_measure_by_one_argument(measure, neutral, optimist):
    found = ends_at(
        envs.climbing(),
        [neutral, optimist],
        2000,
        measure=measure,
        kind="projected",
        learning_rate=0.01,
    )
    np.testing.assert_allclose(found[:, 0], [7.0, 11.0], rtol=1e-3)


def test_cvar_is_content_with_a_share_of_the_best():
    """The best joint action has a ninth of the mass: the best tenth is 11, and nothing pulls."""
    thirds = [jnp.full((1, 3), 1.0 / 3.0)] * 2
    q = jnp.asarray(envs.games.CLIMBING, jnp.float32)[None]
    for share, pulls in ((0.1, False), (0.2, True)):
        weights = marl.agent_weights(q, thirds, 0, risk.cvar(share))
        assert bool(jnp.any(jnp.abs(weights) > 1e-6)) == pulls


@pytest.mark.slow
def test_gold_mine():
    """Success of 48 starts at beta 0 and 1: 88 % and 100 %, within three standard errors."""
    found = ends_at(
        envs.gold_mine(), [0.0, 1.0], 300, num_starts=48, init_scale=0.5, learning_rate=0.1
    )
    success = np.mean(found > 0.97 * 38.974, axis=1)
    assert abs(success[0] - 0.88) < 0.15 and success[1] == 1.0


@pytest.mark.slow
def test_stag_hunt_at_a_loss_of_5():
    found = ends_at(envs.stag_grid(5.0), [0.0, 0.1, 0.3, 1.0], 300, learning_rate=0.1)[:, 0]
    np.testing.assert_allclose(found, [1.51, 8.388, 8.388, 8.388], atol=0.005)


def test_projected_steps_against_numpy(x64):
    """One step from the middle, by hand: pi + rate d w, less its excess over the simplex."""
    game = envs.climbing()
    play = marl.make_play(game, beta=0.3, kind="projected", learning_rate=0.01)
    state, metrics = play.step(play.init(jax.random.key(0)))
    payoff = envs.games.CLIMBING
    v = np.log(np.mean(np.exp(0.3 * payoff))) / 0.3
    np.testing.assert_allclose(metrics["policy/value"], v, rtol=1e-6)
    for agent, axis in ((0, 1), (1, 0)):
        weight = (np.mean(np.exp(0.3 * payoff), axis=axis) / np.exp(0.3 * v) - 1.0) / 0.3
        pi = 1.0 / 3.0 + 0.01 * weight
        assert pi.min() > 0.0  # so that the projection is the shift alone
        np.testing.assert_allclose(state.tables[agent][0], pi - (pi.sum() - 1.0) / 3.0, rtol=1e-6)


def test_the_loop_runs_it_and_sweeps_settings(key):
    play = marl.make_play(envs.climbing())
    betas = jnp.array([0.0, 1.0])
    sweep = learning.over_seeds(play, 2, settings={"beta": betas})
    result = loop.run(sweep, key, num_steps=1000, chunk_size=500)
    found = jax.vmap(lambda state: marl.score(envs.climbing(), state))(result.state)
    np.testing.assert_allclose(found, [7.0, 11.0], rtol=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": float("nan")}, "beta must be a number, got nan"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"gamma": 1.0}, r"gamma must lie in \[0, 1\), got 1.0"),
        ({"kind": "mirror"}, "kind must be one of gradient, natural, projected, got 'mirror'"),
        ({"measure": risk.cvar, "beta": 2.0}, r"alpha must lie in \[-1, 1\]"),
        ({"measure": risk.neutral()}, "measure must make a risk measure of a number, .* got Risk"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        marl.make_play(envs.climbing(), **given)
