"""Gradients through sampling: by quadrature, by enumeration, and where they lead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from jaxlab.diffusion.discrete import exact, path, schedules
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete

pytestmark = pytest.mark.usefixtures("optax_promotes")


def slope_of_share(logit, temperature=1.0):
    """E[d sigmoid((logit + noise) / temperature) / d logit] with logistic noise: of two tokens."""

    def at(noise):
        share = 1.0 / (1.0 + np.exp(-(logit + noise) / temperature))
        return stats.logistic.pdf(noise) * share * (1.0 - share) / temperature

    return integrate.quad(at, -40, 40, points=[-logit])[0]


@pytest.mark.parametrize(
    ("temperature", "num_grad_steps", "share"), [(1.0, 3, 1.0), (0.5, 3, 1.0), (1.0, 1, 1 / 3)]
)
def test_gradient_of_a_linear_reward_is_that_of_the_softmax(temperature, num_grad_steps, share):
    """One token of two; it is revealed in each of three steps with the same probability."""
    logits = jnp.asarray([0.7, -0.2])
    reward = jnp.asarray([1.5, -0.5])
    schedule = schedules.make_schedule(3)
    other = exact.table_denoiser(jnp.zeros((3, 1, 2)))

    def gain(logits, key):
        denoise = exact.table_denoiser(jnp.zeros((3, 1, 2)).at[2, 0].set(logits))
        drawn = discrete.relaxed_sample(
            key,
            denoise,
            other,
            50,
            1,
            vocab=2,
            schedule=schedule,
            num_grad_steps=num_grad_steps,
            gumbel_temperature=temperature,
        )
        return jnp.mean(drawn.soft @ reward)

    keys = jax.random.split(jax.random.key(0), 400)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(gain), in_axes=(None, 0)))(logits, keys))
    expected = share * 2.0 * slope_of_share(0.9, temperature)
    error = slopes.std(axis=0) / np.sqrt(400)
    assert (abs(slopes.mean(axis=0) - np.array([expected, -expected])) < 5 * error).all()


def test_drawn_sequences_and_divergences_are_those_of_the_sampler():
    """Two tokens of three in three steps: against every partial sequence, and path by path."""
    V, K, N, num = 3, 2, 3, 20_000
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=((V + 1) ** K, K, V)) for _ in range(2)]
    new, base = (exact.table_denoiser(jnp.asarray(t, jnp.float32)) for t in tables)
    schedule = schedules.make_schedule(N, "cosine")
    drawn = jax.jit(
        lambda key: discrete.relaxed_sample(
            key, new, base, num, K, vocab=V, schedule=schedule, num_grad_steps=2
        )
    )(jax.random.key(1))
    tokens, reveal, logp = drawn.sample
    np.testing.assert_array_equal(drawn.soft, np.eye(V)[np.asarray(tokens)])
    steps = jnp.arange(1, N + 1)
    options = {"vocab": V, "schedule": schedule}
    np.testing.assert_allclose(
        logp, path.step_logp(new, tokens, reveal, steps, **options), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        drawn.kl,
        path.compare_steps(new, base, tokens, reveal, steps, **options).kl,
        rtol=1e-4,
        atol=1e-5,
    )

    law, law_base = (
        np.asarray(exact.sampler_law(d, schedule, vocab=V, length=K), np.float64)
        for d in (new, base)
    )
    counts = np.bincount(np.asarray(exact.number(tokens, V)), minlength=V**K)
    assert stats.chisquare(counts, num * (law / law.sum())).pvalue > 1e-6
    logs, logs_base = (t - np.log(np.exp(t).sum(axis=-1, keepdims=True)) for t in tables)
    divergence = (np.exp(logs) * (logs - logs_base)).sum(axis=-1)
    partial = exact.sequences(V + 1, K)
    state, total = np.zeros(len(partial)), 0.0
    state[-1] = 1.0
    for n in range(N, 0, -1):
        chance = float(schedule.reveal[n])
        total += chance * state @ (divergence * (partial == V)).sum(axis=1)
        after = np.zeros_like(state)
        for i, row in enumerate(partial):
            for j, to in enumerate(partial):
                prob = state[i]
                for k in range(K):
                    if row[k] != V:
                        prob *= row[k] == to[k]
                    else:
                        stay = 1.0 - chance
                        prob *= stay if to[k] == V else chance * np.exp(logs[i, k, to[k]])
                after[j] += prob
        state = after
    found = np.asarray(drawn.kl).sum(axis=0)
    assert abs(found.mean() - total) < 5 * found.std() / np.sqrt(num)
    assert total > (law * np.log(law / law_base)).sum() > 0.0


def test_training_ends_where_the_price_balances_the_gradient():
    """Independent tokens of two, a linear reward: the logit's fixed point is known."""
    worth, start = np.array([0.5, -0.3]), np.array([0.4, -0.8])
    policy = discrete.make_factored_policy(2, 2)
    pretrained = jnp.stack([jnp.asarray(start, jnp.float32), jnp.zeros(2)], axis=-1)
    prices = [0.8, 2.0]  # below the larger worth the reward would win without end
    algorithm = over_seeds(
        discrete.drakes(
            lambda soft: soft[..., 0] @ jnp.asarray(worth, jnp.float32),
            policy,
            pretrained,
            num_steps=2,
            num_grad_steps=2,
            batch=128,
            num_batches=2,
            learning_rate=2e-2,
        ),
        2,
        settings={"kl_coef": jnp.asarray(prices)},
    )

    def body(state, _):
        state, metrics = algorithm.step(state)
        return state, (state.params, metrics["policy/kl"])

    _, (path_of, kl) = jax.jit(lambda key: jax.lax.scan(body, algorithm.init(key), length=400))(
        jax.random.key(0)
    )
    late = np.asarray(path_of)[-100:].mean(axis=0)
    found = late[..., 0] - late[..., 1]
    for price, logits, divergence in zip(prices, found, np.asarray(kl)[-100:].mean(0), strict=True):
        expected = []
        for w, first in zip(worth, start, strict=True):

            def balance(logit, w=w, first=first, price=price):
                p = 1.0 / (1.0 + np.exp(-logit))
                return w * slope_of_share(logit) - price * p * (1.0 - p) * (logit - first)

            expected.append(optimize.brentq(balance, -9, 9))
        np.testing.assert_allclose(logits, expected, atol=0.05)
        p, q = (1.0 / (1.0 + np.exp(-np.array(x))) for x in (expected, start))
        nats = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
        assert divergence == pytest.approx(nats, abs=0.03)


@pytest.mark.slow
def test_dependence_is_learned_and_the_price_keeps_the_law_near():
    """An even number of ones among three bits: no single token says anything of the reward."""
    policy = discrete.make_table_policy(2, 3)
    rng = np.random.default_rng(1)
    pretrained = jnp.asarray(0.3 * rng.normal(size=(27, 3, 2)), jnp.float32)
    algorithm = over_seeds(
        discrete.drakes(
            lambda soft: 0.5 + 0.5 * jnp.prod(soft[..., 0] - soft[..., 1], axis=-1),
            policy,
            pretrained,
            num_steps=3,
            num_grad_steps=3,
            batch=64,
            num_batches=2,
            learning_rate=3e-2,
        ),
        3,
        settings={"kl_coef": jnp.asarray([0.0, 0.3, 3.0])},
    )
    state, metrics = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=150
        )
    )(jax.random.key(0))
    schedule = schedules.make_schedule(3)
    even = exact.sequences(2, 3).sum(axis=1) % 2 == 0  # ones count as -1 each: a product of 1
    laws = [
        np.asarray(exact.sampler_law(policy.denoise(p), schedule, vocab=2, length=3))
        for p in (pretrained, *state.params)
    ]
    good = [law[even].sum() for law in laws]
    nats = [(law * np.log(law / laws[0])).sum() for law in laws]
    assert good[1] > good[2] > good[3] > good[0] and good[1] > good[0] + 0.15, good
    assert nats[1] > 2 * nats[2] > 4 * nats[3] > 0.0, nats
    assert np.asarray(state.num_rewards).tolist() == [150 * 128] * 3
    assert np.asarray(metrics["reward/max"]).max() == 1.0


def test_a_reward_that_fails_is_counted_and_spares_the_parameters():
    policy = discrete.make_factored_policy(2, 2)

    def reward(soft):
        ones = soft[..., 1].sum(axis=-1)
        return jnp.sqrt(1.5 - ones) + jnp.where(ones < 0.5, jnp.inf, 0.0)

    algorithm = discrete.drakes(
        reward, policy, jnp.zeros((2, 2)), num_steps=2, num_grad_steps=1, batch=64
    )
    state, metrics = jax.jit(lambda key: algorithm.step(algorithm.init(key)))(jax.random.key(0))
    assert jnp.isfinite(state.params).all()
    assert abs(float(metrics["reward/failed"]) - 0.5) < 0.16
    assert float(state.best_reward) == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_grad_steps": 3}, "num_grad_steps"),
        ({"num_grad_steps": 0}, "num_grad_steps"),
        ({"batch": 1, "num_batches": 1}, "at least 4 sequences"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"gumbel_temperature": 0.0}, "gumbel_temperature"),
        ({"num_batches": 0}, "num_batches"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        discrete.drakes(
            lambda soft: soft.sum(axis=(1, 2)),
            discrete.make_factored_policy(2, 2),
            jnp.zeros((2, 2)),
            **{"num_steps": 2, "num_grad_steps": 2, "batch": 8, **options},
        )
    with pytest.raises(ValueError, match="num_grad_steps"):
        denoise = exact.table_denoiser(jnp.zeros((9, 2, 2)))
        discrete.relaxed_sample(
            jax.random.key(0),
            denoise,
            denoise,
            2,
            2,
            vocab=2,
            schedule=schedules.make_schedule(2),
            num_grad_steps=3,
        )
