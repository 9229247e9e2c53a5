"""Games against enumeration, plain loops and known optima."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs


def value_iteration(game, gamma, sweeps=600):
    v = np.zeros(game.num_states)
    for _ in range(sweeps):
        q = np.sum(game.prob * (game.reward + gamma * ~game.ends * v[game.next_state]), axis=-1)
        v = q.reshape(game.num_states, -1).max(axis=1)
    return v


def test_payoffs_and_lotteries():
    assert envs.climbing().reward[0, :, :, 0].tolist() == [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]
    partly, fully = envs.climbing("partly"), envs.climbing("fully")
    mean = np.sum(partly.prob * partly.reward, axis=-1)[0]
    assert mean.tolist() == [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]
    mean = np.sum(fully.prob * fully.reward, axis=-1)[0]
    assert mean.tolist() == [[11, -30, 0], [-30, 7, 6], [0, 0, 5]]
    assert envs.penalty(25.0).reward[0, 0, 0, 0] == -25.0
    assert envs.asymmetric().num_actions == (3, 2)


def test_gold_mine_against_its_closed_form():
    """Two steps that pay 4 at the end of the second, for ever."""
    found = value_iteration(envs.gold_mine(), 0.95)
    np.testing.assert_allclose(found[0], 4.0 * 0.95 / (1.0 - 0.95**2), rtol=1e-12)
    np.testing.assert_allclose(found[0], 38.974, atol=5e-4)


def hunt(i, j, a, b, loss):
    """One step of the stag hunt by hand: next cells, reward, whether it ends."""
    after = []
    for cell, move in ((i, a), (j, b)):
        row, column = divmod(cell, 5)
        row += {0: -1, 1: 1}.get(move, 0)
        column += {2: -1, 3: 1}.get(move, 0)
        after.append((min(max(row, 0), 4), min(max(column, 0), 4)))
    at_stag, at_hare = after.count((2, 2)), after.count((0, 4)) + after.count((4, 0))
    reward = {0: 0.0, 1: -loss, 2: 10.0}[at_stag] + at_hare - 0.05
    cells = [5 * row + column for row, column in after]
    return 25 * cells[0] + cells[1], reward, at_stag == 2 or at_hare > 0


def test_stag_grid_against_a_loop():
    game = envs.stag_grid(5.0)
    for i, j, a, b in itertools.product(range(25), range(25), range(5), range(5)):
        at = (25 * i + j, a, b, 0)
        found = game.next_state[at], game.reward[at], game.ends[at]
        assert found == pytest.approx(hunt(i, j, a, b, 5.0))
    best = game.start @ value_iteration(game, 0.95)
    np.testing.assert_allclose(best, 10 * 0.95**3 - 0.05 * sum(0.95**t for t in range(4)))
    np.testing.assert_allclose(best, 8.388, atol=5e-4)
    slippery = envs.stag_grid(5.0, slip=0.1)
    at = (25 * 7 + 18, 1, 4)  # one stands north of the stag and goes south, the other stays
    outcomes = {}
    for k in range(25):
        key = (slippery.next_state[*at, k], slippery.reward[*at, k], slippery.ends[*at, k])
        outcomes[key] = outcomes.get(key, 0.0) + slippery.prob[*at, k]
    expected = {}
    for a, b in itertools.product(range(5), repeat=2):
        key = hunt(7, 18, a, b, 5.0)
        chance = (0.9 * (a == 1) + 0.02) * (0.9 * (b == 4) + 0.02)
        expected[key] = expected.get(key, 0.0) + chance
    assert outcomes.keys() == expected.keys()
    for key, chance in expected.items():
        np.testing.assert_allclose(outcomes[key], chance, rtol=1e-12)


def test_playing_a_game_step_by_step(key):
    game = envs.gold_mine(time_limit=6)
    env = envs.make_env(envs.game_task(game), num_envs=3)
    state, at = env.reset(key), np.zeros(3, int)
    rng = np.random.default_rng(0)
    step = jax.jit(env.step)
    for t in range(12):
        action = rng.choice(3, (3, 2), p=[0.1, 0.7, 0.2])
        np.testing.assert_array_equal(envs.state_of(game, state.obs), at)
        np.testing.assert_array_equal(state.obs[:, :, 3:], np.broadcast_to(np.eye(2), (3, 2, 2)))
        state = step(state, jnp.asarray(action, jnp.int32))
        where = (at, action[:, 0], action[:, 1], 0)
        np.testing.assert_allclose(state.reward, game.reward[where])
        at = game.next_state[where]
        np.testing.assert_array_equal(envs.state_of(game, state.final_obs), at)
        assert np.all(state.truncated == (t % 6 == 5)) and not np.any(state.terminated)
        at = np.zeros(3, int) if t % 6 == 5 else at


def test_lotteries_are_drawn_by_their_chances_and_masks_forbid_what_is_not_there(key):
    game = envs.climbing("partly")
    env = envs.make_env(envs.game_task(game), num_envs=4000)
    state = env.step(env.reset(key), jnp.ones((4000, 2), jnp.int32))
    assert set(np.unique(state.reward)) == {0.0, 14.0} and np.all(state.terminated)
    # Four standard errors of a fair coin.
    assert abs(np.mean(state.reward == 14.0) - 0.5) < 4 * 0.5 / np.sqrt(4000)
    env = envs.make_env(envs.game_task(envs.asymmetric()), num_envs=1)
    np.testing.assert_array_equal(
        env.reset(key).action_mask[0], [[True, True, True], [True, True, False]]
    )


def balance_by_hand(steps, controller, noise=None):
    x, speed, total = 0.5, 0.1, 0.0
    for _ in range(steps):
        h1, h2 = controller(x, speed)
        push = (-0.01 * speed + 0.5 * 9.8 * (h1 - h2) / 2.0) / 0.5
        x, speed = (
            x + speed * 0.03 + 0.5 * push * 0.03**2,
            min(max(speed + push * 0.03, -3.0), 3.0),
        )
        if abs(x) > 1.0:
            return total, x
        total += 0.8 * np.exp(-((x / 0.25) ** 2)) + 0.2 * np.exp(-((speed / 0.25) ** 2))
    return total, x


def test_ball_against_a_loop(key):
    """The controller that knows all scores 652.5 of 667; hands in the lap let the ball fall."""
    env = envs.make_env(envs.ball_balancing(), num_envs=1)

    def rollout(act):
        def one(state, _):
            state = env.step(state, act(state.obs))
            return state, (state.reward[0], state.terminated[0], state.final_obs[0, 0, 0])

        return jax.lax.scan(one, env.reset(key), length=667)[1]

    reward, fell, x = jax.jit(lambda: rollout(envs.balance))()

    def controller(x, speed):
        tilt = min(max(-(8 * x + 2.5 * speed), -2.0), 2.0)
        return np.round((0.5 * tilt + 1) * 7) / 7 - 1, np.round((-0.5 * tilt + 1) * 7) / 7 - 1

    total, _ = balance_by_hand(667, controller)
    assert not np.any(fell)
    np.testing.assert_allclose(reward.sum(), total, rtol=1e-3)
    np.testing.assert_allclose(total, 652.5, atol=0.1)
    level = jnp.asarray([[9, 7]], jnp.int32)
    reward, fell, x = jax.jit(lambda: rollout(lambda obs: level))()
    total, last = balance_by_hand(667, lambda x, speed: (2 / 7, 0.0))
    first = int(np.argmax(fell))
    np.testing.assert_allclose(x[first], last, rtol=1e-4)
    np.testing.assert_allclose(reward[: first + 1].sum(), total, rtol=1e-4)


def test_bins_of_the_ball():
    obs = jnp.asarray([[-1.0, -3.0], [0.999, 2.99], [1.3, -9.0], [0.0, 0.0], [0.019, 0.0]])
    found = envs.ball_index(jnp.broadcast_to(obs[:, None], (5, 2, 2)))
    assert found.tolist() == [0, 99 * 50 + 49, 99 * 50, 50 * 50 + 25, 50 * 50 + 25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: envs.matrix_game([1.0, 2.0]), r"payoff must be \[A_1, ..., A_N\] .*got shape \(2"),
        (lambda: envs.matrix_game([[1.0]], chances=[1.0]), r"payoff must be .*K\] .*shape \(1, 1"),
        (lambda: envs.matrix_game(np.zeros((2, 0))), r"got shape \(2, 0\)"),
        (lambda: envs.matrix_game([["a", "b"]]), "payoff must be numbers, got <U1"),
        (
            lambda: envs.matrix_game([[1.0, np.nan]]),
            r"rewards must be finite, got nan at \(0, 0, 1, 0",
        ),
        (lambda: envs.matrix_game([[1.0, np.inf]]), "rewards must be finite, got inf"),
        (lambda: envs.matrix_game([[1.0, 2.0], [3.0]]), "payoff must be a tensor, got rows of sev"),
        (lambda: envs.matrix_game([[[1.0, 2.0]]], chances=[0.5, 0.6]), "prob must .*sum to 1"),
        (lambda: envs.matrix_game([[[1.0, 2.0]]], chances=[1.0]), r"chances must be \(2,\)"),
        (lambda: envs.matrix_game([[1.0, 2.0]], num_steps=0), "time_limit must be at least 1"),
        (lambda: envs.climbing("wholly"), "random must be none, partly or fully, got 'wholly'"),
        (lambda: envs.stag_grid(slip=1.5), r"slip must lie in \[0, 1\], got 1.5"),
        (lambda: envs.ball_balancing(noise=-1.0), "noise must not be negative"),
        (
            lambda: envs.game_task(envs.gold_mine()._replace(next_state=np.full((3, 3, 3, 1), 3))),
            "next_state must be integers from 0 to 2",
        ),
        (
            lambda: envs.game_task(envs.gold_mine()._replace(start=np.ones(2) / 2)),
            r"start must be \(3,\), got \(2,\)",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
