"""Advantages and targets: loops in float64, macro-actions against their primitive steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.learning import returns


def tables(T, B, seed=0):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T, B)).astype(np.float32)
    terminated, truncated = rng.random((2, T, B)) < 0.15
    return rng, reward, value, next_value, terminated, truncated


def test_advantages_by_a_loop():
    _, reward, value, next_value, terminated, truncated = tables(T := 12, B := 5)
    got, target = returns.gae(
        *map(jnp.asarray, (reward, value, next_value)),
        jnp.asarray(0.9 * ~terminated, jnp.float32),
        jnp.asarray(terminated | truncated),
        gae_lambda=0.8,
    )
    want = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            for j in range(t, T):
                delta = reward[j, b] + 0.9 * (not terminated[j, b]) * next_value[j, b] - value[j, b]
                want[t, b] += 0.72 ** (j - t) * delta
                if terminated[j, b] or truncated[j, b]:
                    break
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(target, want + value, atol=1e-5)


def test_discounts_of_their_own_by_a_loop():
    """Every step has another length k, and the sum is cut by its discounts and by lambda."""
    rng, reward, value, next_value, terminated, truncated = tables(T := 9, B := 4, seed=1)
    discount = 0.9 ** rng.integers(1, 6, (T, B)) * ~terminated
    done = terminated | truncated
    got, _ = jax.jit(returns.gae, static_argnames="gae_lambda")(
        *map(jnp.asarray, (reward, value, next_value, discount.astype(np.float32), done)),
        gae_lambda=0.7,
    )
    want = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for j in range(t, T):
                delta = reward[j, b] + discount[j, b] * next_value[j, b] - value[j, b]
                want[t, b] += weight * delta
                if done[j, b]:
                    break
                weight *= discount[j, b] * 0.7
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_macro_actions_have_the_return_of_their_steps():
    """With lambda 1 and values from above, the target is the discounted return, however cut."""
    rng = np.random.default_rng(2)
    gamma, lengths = 0.95, np.array([3, 1, 4, 2])
    reward = rng.normal(size=lengths.sum())
    ends = np.cumsum(lengths)
    sums = [
        np.sum(gamma ** np.arange(k) * reward[end - k : end])
        for k, end in zip(lengths, ends, strict=True)
    ]
    last = 2.5  # value of where a cut episode ended
    for terminated in (True, False):
        discount = gamma ** lengths.astype(float)
        discount[-1] *= not terminated
        done = np.array([False, False, False, True])
        value = rng.normal(size=4)
        next_value = np.append(value[1:], last)
        _, target = returns.gae(
            *(jnp.asarray(x, jnp.float32) for x in (sums, value, next_value, discount)),
            jnp.asarray(done),
            gae_lambda=1.0,
        )
        rest = 0.0 if terminated else last
        whole = np.append(reward, rest)
        starts = ends - lengths
        want = [np.sum(gamma ** np.arange(len(whole) - s) * whole[s:]) for s in starts]
        np.testing.assert_allclose(target, want, rtol=1e-5)


def test_lambda_zero_is_the_td_error():
    _, reward, value, next_value, terminated, truncated = tables(6, 3, seed=3)
    discount = jnp.asarray(0.9 * ~terminated, jnp.float32)
    reward, value, next_value = map(jnp.asarray, (reward, value, next_value))
    done = jnp.asarray(terminated | truncated)
    got, target = returns.gae(reward, value, next_value, discount, done, gae_lambda=0.0)
    np.testing.assert_allclose(target, returns.td_target(next_value, reward, discount), atol=1e-6)
    np.testing.assert_allclose(got, reward + discount * next_value - value, atol=1e-6)


def test_termination_ends_the_bootstrap_and_truncation_does_not():
    q, reward = jnp.asarray([2.0, 2.0]), jnp.asarray([1.0, 1.0])
    target = returns.td_target(q, reward, jnp.asarray([0.0, 0.9]))
    np.testing.assert_allclose(target, [1.0, 2.8])


def test_targets_have_no_gradient():
    """Neither way: a target that follows its own prediction would chase itself."""
    one = jnp.ones((3,))

    def total(value, reward, discount):
        outputs = returns.gae(reward, value, value, discount, one > 2, gae_lambda=0.9)
        return sum(map(jnp.sum, outputs)) + jnp.sum(returns.td_target(value, reward, discount))

    gradients = jax.grad(total, argnums=(0, 1, 2))(one, one, 0.5 * one)
    assert not any(g.any() for g in gradients)


def test_bad_arrays_are_refused():
    one, done = jnp.ones((3, 2)), jnp.zeros((3, 2), bool)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\), .*\(3,\)"):
        returns.gae(one, one, one, one, done[:, 0], gae_lambda=0.9)
    with pytest.raises(ValueError, match="done must be bool"):
        returns.gae(one, one, one, one, one, gae_lambda=0.9)
    with pytest.raises(ValueError, match="gae_lambda must lie in"):
        returns.gae(one, one, one, one, done, gae_lambda=1.1)
    with pytest.raises(ValueError, match="one shape"):
        returns.td_target(one, one[0], one)
    with pytest.raises(ValueError, match=r"one shape, got .*, \(\), "):
        returns.gae(one, one, one, 0.9, done, gae_lambda=0.9)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\), \(3, 2\), \(\)"):
        returns.td_target(one, one, 0.9)
