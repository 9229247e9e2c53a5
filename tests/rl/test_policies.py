"""Policies' own equations: densities by quadrature, smoothing, scores, refined actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from jaxlab import rl
from jaxlab.diffusion import ddpm
from jaxlab.learning import distributions
from jaxlab.nn import Mlp
from jaxlab.rl import backprop_diffusion, generators, soft_diffusion
from jaxlab.rl import critics as critics_lib
from jaxlab.rl.policy import Context
from jaxlab.rl.weights import Stats

pytestmark = pytest.mark.usefixtures("optax_promotes")


def context(q, *, batch=64, size=1, seed=0, **changes):
    """No two of its observations, actions or critics are alike."""
    rng = np.random.default_rng(seed)
    obs, next_obs = jnp.asarray(rng.normal(size=(2, batch, 2)), jnp.float32)
    actions = jnp.asarray(rng.uniform(-1, 1, (3, batch, size)), jnp.float32)
    defaults = {
        "obs": obs,
        "action": actions[0],
        "next_obs": next_obs,
        "terminated": jnp.zeros(batch, bool),
        "next_action": actions[1],
        "extras": actions[2],
        "q": q,
        "q_first": lambda o, a: 2.0 - 3.0 * q(o, a),
        "q_target": lambda o, a: -q(o, a) - 1,
        "alpha": jnp.asarray(0.5),
        "stats": Stats(jnp.zeros(()), jnp.ones(())),
        "updates": jnp.zeros((), jnp.int32),
    }
    return Context(**{**defaults, **changes})


def test_squashed_density_integrates_to_one(x64):
    """And is the change of variables, far into the tails."""
    mean, log_std = 0.7, -0.3
    x = jnp.linspace(-12.0, 12.0, 400_001)[:, None]
    noise = (x - mean) / np.exp(log_std)
    logp = np.asarray(distributions.squashed_logp(x, noise, jnp.full_like(x, log_std)))
    a = np.tanh(np.asarray(x)[:, 0])
    np.testing.assert_allclose(np.trapezoid(np.exp(logp), a), 1.0, atol=1e-6)
    want = scipy.stats.norm(mean, np.exp(log_std)).logpdf(np.asarray(x)[:, 0])
    # log(1 - tanh^2) = -2 log cosh
    want = want + 2 * (np.logaddexp(np.asarray(x)[:, 0], -np.asarray(x)[:, 0]) - np.log(2))
    np.testing.assert_allclose(logp, want, atol=1e-9)


def test_entropy_bonus_of_sac_is_that_of_its_action(key):
    policy = rl.sac(2, 1, hidden=(8,))
    params = policy.init(key)
    obs = jax.random.normal(key, (5, 2))
    action, bonus, _ = policy.propose(key, params, params, obs, None, 0.3)
    network = Mlp((8,), 2, jax.nn.gelu)
    out = np.asarray(network.apply(params, obs), np.float64)
    mean, std = out[:, :1], np.exp(out[:, 1:])
    x = np.arctanh(np.asarray(action, np.float64))
    logp = scipy.stats.norm(mean, std).logpdf(x) - np.log(1 - np.tanh(x) ** 2)
    np.testing.assert_allclose(bonus, -0.3 * logp[:, 0], rtol=1e-3)
    np.testing.assert_allclose(
        policy.act(key, params, obs, None, 0.3, explore=False), np.tanh(mean), rtol=1e-5
    )


@pytest.mark.parametrize("make", [rl.sac, rl.dime])
def test_temperature_falls_where_there_is_entropy_enough(key, make):
    policy = make(2, 1, hidden=(8,), target_entropy=-5.0)
    found = policy.loss(key, policy.init(key), context(lambda o, a: a[..., 0]))[1]
    entropy = found.metrics["policy/entropy"]
    np.testing.assert_allclose(found.entropy_gap, 0.5 * (entropy + 5.0), rtol=1e-5)
    assert found.entropy_gap > 0.0


def test_smoothing_of_td3_is_bounded(key):
    policy = rl.td3(2, 1, hidden=(8,))
    params, other = policy.init(key), policy.init(jax.random.fold_in(key, 1))
    obs = jnp.broadcast_to(jax.random.normal(key, (1, 2)), (20_000, 2))
    target = np.asarray(jnp.tanh(Mlp((8,), 1).apply(other, obs[:1])))[0, 0]
    action = np.asarray(policy.propose(key, params, other, obs, None, 1.0)[0])[:, 0]
    noise = action - target
    assert np.abs(noise).max() <= 0.5 + 1e-6
    want = scipy.stats.norm(scale=0.2)  # clipped at 2.5 standard deviations
    np.testing.assert_allclose(np.mean(noise <= 0.1), want.cdf(0.1), atol=0.02)
    np.testing.assert_allclose(noise.std(), 0.2, atol=0.01)


@pytest.mark.parametrize(
    "make, which",
    [(rl.sac, "q"), (rl.td3, "q_first"), (rl.dacer, "q"), (rl.dime, "q")],
    ids=["sac", "td3", "dacer", "dime"],
)
def test_loss_without_a_temperature_is_minus_the_value(key, make, which):
    """Of the state that was acted on: a value that does not depend on the action shows which."""
    policy = make(2, 1, hidden=(8,))
    info = context(lambda o, a: jnp.sin(o[..., 0]) + 0.0 * a[..., 0], alpha=jnp.zeros(()))
    loss, found = policy.loss(key, policy.init(key), info)
    values = getattr(info, which)(info.obs, info.action)
    np.testing.assert_allclose(found.values, values, rtol=1e-5)
    np.testing.assert_allclose(loss, -jnp.mean(values), rtol=1e-5)


def test_temperature_of_dacer_is_held_against_the_entropy_of_what_is_acted(key):
    """Noise of std 5 on actions in [-1, 1]: its entropy, but for a hundredth."""
    policy = rl.dacer(2, 1, hidden=(8,), num_samples=4000, num_components=1, alpha_every=4)
    info = context(lambda o, a: a[..., 0], alpha=jnp.asarray(50.0))
    params, gaps = policy.init(key), []
    for updates in (6, 8):  # two at a time: a multiple of four is passed by the second alone
        now = info._replace(updates=jnp.asarray(updates, jnp.int32))
        gaps.append(policy.loss(key, params, now)[1].entropy_gap)
    want = 0.5 * np.log(2 * np.pi * np.e * 25) + 0.9
    np.testing.assert_allclose(gaps, [0.0, want], atol=0.03)  # a variance of 25 to 26


def test_refined_actions_climb(key):
    """Concave values: thirty steps of Adam, whose gradient is cut, end nearer to the top."""
    policy = rl.dipo(2, 1, hidden=(8,))

    def top(obs):
        return 0.4 * jnp.sign(obs[..., :1])

    info = context(lambda o, a: -3.0 * jnp.sum((a - top(o)) ** 2, axis=-1))
    after = np.asarray(policy.refine(key, policy.init(key), info))
    before, best = np.asarray(info.extras), np.asarray(top(info.obs))
    assert np.all(np.abs(after - best) <= np.abs(before - best) + 0.06)
    assert np.abs(after - best).mean() < 0.25 * np.abs(before - best).mean()
    up = policy.refine(key, policy.init(key), context(lambda o, a: 9.0 * a[..., 0]))
    assert np.abs(np.asarray(up)).max() == 1.0  # kept within the bounds


def test_score_of_qsm_is_the_slope_of_the_critic(key):
    policy = rl.qsm(2, 1, hidden=(8,))
    params = policy.init(key)
    info = context(lambda o, a: jnp.sin(2.0 * a[..., 0]) * o[..., 0])
    loss = policy.loss(key, params, info)[0]
    out = Mlp((8,), 1).apply(params, info.obs, info.action)[:, 0]
    slope = 2.0 * np.cos(2.0 * info.action[:, 0]) * info.obs[:, 0]
    np.testing.assert_allclose(loss, np.mean((out - slope) ** 2), rtol=1e-5)


def test_langevin_steps_of_qsm(key):
    """A constant score of 0.8: the walk against NumPy's, by its mean, spread and bounds."""
    policy = rl.qsm(1, 1, hidden=(4,), num_steps=20)
    params = jax.tree.map(jnp.zeros_like, policy.init(key))
    params["params"]["layer_1"]["bias"] = jnp.full((1,), 0.8)
    action = policy.act(key, params, jnp.zeros((50_000, 1)), None, 1.0, explore=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=50_000)
    for i in range(20):
        d = 1 - i / 20
        x = np.clip(x + d / 2 * 0.8 + np.sqrt(d) * rng.normal(size=x.size), -1, 1)
    for statistic in (np.mean, np.std, lambda v: np.mean(v == 1.0), lambda v: np.mean(v == -1.0)):
        np.testing.assert_allclose(statistic(np.asarray(action)), statistic(x), atol=0.02)


def test_sdac_regresses_to_the_exact_noise(key):
    """The target of its loss, at the temperature and the clip that it is made with."""
    schedule = ddpm.make_schedule(np.array([0.5]))
    captured = {}

    def capture(predict, x, t, log_weight, noise):
        captured.update(x=x, t=t, out=predict(x, t))
        share = jax.nn.softmax(log_weight, 0)[..., None]
        captured["target"] = mean = jnp.sum(share * noise, 0)
        captured["error"] = jnp.sqrt(jnp.sum((share * (noise - mean[None])) ** 2, 0))
        return jnp.zeros(())

    policy = rl.sdac(
        2, 1, schedule=schedule, num_samples=20_000, hidden=(4,), num_particles=2, truncated=False
    )
    original = soft_diffusion.reverse_sampling.loss
    soft_diffusion.reverse_sampling.loss = capture
    try:
        k, alpha = 3.0, 2.5
        narrow = context(
            lambda o, a: -0.5 * k * (a[..., 0] - 0.5 * jnp.tanh(o[..., 0])) ** 2,
            alpha=jnp.asarray(alpha),
        )
        params = policy.init(key)
        policy.loss(key, params, narrow)
    finally:
        soft_diffusion.reverse_sampling.loss = original
    predict = generators.noise_predictor(1, (4,))(params, narrow.obs)
    np.testing.assert_allclose(captured["out"], predict(captured["x"], captured["t"]), rtol=1e-5)
    # Weights are exp(5 Q / alpha) of clipped candidates: the mean noise by quadrature.
    c = 0.5 * np.tanh(np.asarray(narrow.obs)[:, 0])
    noise = np.linspace(-7.0, 7.0, 4001)[:, None]
    tried = np.clip((np.asarray(captured["x"])[:, 0] - np.sqrt(0.5) * noise) / np.sqrt(0.5), -1, 1)
    weight = np.exp(-0.5 * noise**2 + 5.0 / alpha * -0.5 * k * (tried - c) ** 2)
    want = (weight * noise).sum(axis=0) / weight.sum(axis=0)
    error = np.asarray(captured["error"])[:, 0]  # of importance sampling by 20,000 draws
    assert np.median(error) < 0.02
    assert np.all(np.abs(np.asarray(captured["target"])[:, 0] - want) < 4.5 * error)
    assert np.ptp(want) > 0.5


def test_truncated_noise_keeps_candidates_within(key):
    schedule = ddpm.linear_schedule(20)
    x = jax.random.normal(key, (30, 2))
    t = jax.random.randint(key, (30,), 0, 20)
    noise = soft_diffusion._within(key, schedule, 200, x, t)
    tried = jax.vmap(lambda e: ddpm.predict_data(schedule, x, e, t))(noise)
    assert np.abs(tried).max() <= 1.0 + 1e-3


@pytest.mark.parametrize("weighting", ["advantage", "value"])
def test_weights_of_qvpo(key, weighting):
    policy = rl.qvpo(2, 1, hidden=(8,), weighting=weighting, num_particles=2, num_samples=16)
    params = policy.init(key)
    low = policy.loss(key, params, context(lambda o, a: a[..., 0] - 5.0))[1]
    weight = low.metrics["policy/weight_mean"]
    assert (weight > 0.0) == (weighting == "advantage")  # negative values teach the other nothing
    late = context(lambda o, a: a[..., 0] + 5.0, updates=jnp.asarray(10**6, jnp.int32))
    early = late._replace(updates=jnp.zeros((), jnp.int32))
    assert policy.loss(key, params, late)[0] < policy.loss(key, params, early)[0]
    with pytest.raises(ValueError, match="advantage or value"):
        rl.qvpo(2, 1, weighting="relu")


def test_weighted_loss_of_mirror_descent_is_the_generators(key):
    flow = generators.make_flow(2, 1, hidden=(8,), num_steps=3)
    policy = rl.make_mirror_descent(flow, num_particles=2)
    params = policy.init(key)
    info = context(
        lambda o, a: 4.0 * a[..., 0] + 2.0 * o[..., 0],
        stats=Stats(jnp.asarray(0.5), jnp.asarray(2.0)),
    )
    values = 4.0 * np.asarray(info.next_action)[:, 0] + 2.0 * np.asarray(info.next_obs)[:, 0]
    z = np.clip((values - 0.5) / 2.0, -3, 3)
    weight = jnp.asarray(np.exp(z / 0.5), jnp.float32)
    want = flow.loss(key, params, info.next_obs, info.next_action, weight)
    np.testing.assert_allclose(policy.loss(key, params, info)[0], want, rtol=1e-5)


def test_proposal_is_the_best_particle_and_noise(key):
    flow = generators.make_flow(2, 1, hidden=(8,), num_steps=3)
    policy = rl.make_mirror_descent(flow, num_particles=16)
    params, obs = policy.init(key), jax.random.normal(key, (4000, 2))

    def q(obs, a):
        return -jnp.abs(a[..., 0])

    propose = functools.partial(policy.propose, key, params, params, obs, q)
    noise = np.asarray(propose(jnp.asarray(1.0))[0] - propose(jnp.asarray(0.0))[0])
    np.testing.assert_allclose(noise.std(), 0.1, atol=0.005)
    best = np.abs(np.asarray(propose(jnp.asarray(0.0))[0]))
    assert best.mean() < 0.15  # of sixteen draws the nearest to zero


def test_bound_of_the_entropy_is_exact_for_the_reverse_of_the_noising(key):
    """Standard normal data stay so: their score is -x, and every path is exact."""
    schedule = ddpm.linear_schedule(8, scale=0.3)
    start = jax.random.normal(key, (4000, 2))
    x, integrand = backprop_diffusion.reverse_chain(
        jax.random.fold_in(key, 1), schedule, lambda x, t: -x, start
    )
    logp = scipy.stats.norm.logpdf(np.asarray(x, np.float64)).sum(axis=1)
    np.testing.assert_allclose(integrand, -logp, atol=1e-3)
    np.testing.assert_allclose(np.std(x), 1.0, atol=0.03)
    wide, bound = backprop_diffusion.reverse_chain(
        jax.random.fold_in(key, 1), schedule, lambda x, t: 0.0 * x, start
    )
    true = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(np.std(wide)))
    assert bound.mean() < true - 0.05  # elsewhere it is a bound from below


def test_entropy_of_a_mixture(key):
    """Three narrow modes far apart: the entropy of one, and log 3; one mode: its own."""
    rng = np.random.default_rng(0)
    modes = np.array([[-0.8, 0.0], [0.0, 0.7], [0.8, -0.5]])
    x = modes[rng.integers(0, 3, 3000)] + 0.05 * rng.normal(size=(3000, 2))
    one = np.log(2 * np.pi * np.e) + 2 * np.log(0.05)
    best = min(
        float(backprop_diffusion.mixture_entropy(jax.random.key(i), jnp.asarray(x, jnp.float32)))
        for i in range(5)
    )
    np.testing.assert_allclose(best, one + np.log(3), atol=0.1)
    single = jnp.asarray(0.3 * rng.normal(size=(4000, 2)), jnp.float32)
    entropy = backprop_diffusion.mixture_entropy(key, single, 1)
    np.testing.assert_allclose(entropy, np.log(2 * np.pi * np.e) + 2 * np.log(0.3), atol=0.05)


def test_gaussian_critics_find_mean_and_spread_of_returns():
    """Rewards of mean 2 and standard deviation 0.5, all terminal: that is the distribution."""
    critics = rl.make_gaussian_critics(1, 1, hidden=(16,))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(key):
        params = critics.init(key)

        def step(carry, key):
            params, opt_state = carry
            key_reward, key_loss = jax.random.split(key)
            zeros = jnp.zeros((128, 1))
            reward = 2.0 + 0.5 * jax.random.normal(key_reward, (128,))
            data = critics_lib.Transitions(
                zeros, zeros, reward, jnp.ones(128, bool), zeros, zeros, jnp.zeros(128)
            )
            slope = jax.grad(critics.loss, argnums=1, has_aux=True)
            grads = slope(key_loss, params, params, data, 0.9)[0]
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(key, 1500))[0][0]

    params = run(jax.random.key(0))
    zero = jnp.zeros((1, 1))
    np.testing.assert_allclose(critics.apply(params, zero, zero), 2.0, atol=0.1)
    out = jax.vmap(lambda p: Mlp((16,), 2).apply(p, zero, zero))(params)
    std = jax.nn.softplus(out[..., 1])
    np.testing.assert_allclose(std, 0.5, atol=0.1)


@pytest.mark.parametrize("t", [0, 1, 5, 19])
@pytest.mark.parametrize("x", [1.05, -1.3, 0.2, 5.0])
def test_truncated_noise_is_scipy_s(key, t, x):
    """Far in the tail too: x_t = 1.05 at t = 0 leaves noise above 5.6 alone."""
    schedule = ddpm.linear_schedule()
    alpha_bar = float(schedule.alpha_bar[t])
    point, time = jnp.full((1, 1), x, jnp.float32), jnp.full((1,), t, jnp.int32)
    drawn = np.asarray(soft_diffusion._within(key, schedule, 20_000, point, time))[:, 0, 0]
    center, reach = x / np.sqrt(1 - alpha_bar), np.sqrt(alpha_bar / (1 - alpha_bar))
    want = scipy.stats.truncnorm(center - reach, center + reach)
    np.testing.assert_allclose(drawn.mean(), want.mean(), atol=5 * want.std() / np.sqrt(20_000))
    np.testing.assert_allclose(drawn.std(), want.std(), rtol=0.03)


def test_learned_temperature_of_softmax_weights(key):
    """Its gradient is alpha (target - divergence); noise no longer follows alpha."""
    generator = generators.make_flow(2, 1, num_steps=2, hidden=(8,))
    policy = rl.make_mirror_descent(
        generator, weighting="softmax", num_samples=16, target_kl=0.7, num_particles=1
    )
    assert (policy.alpha_init, policy.alpha_every, policy.alpha_learning_rate) == (1.0, 2, 3e-4)
    params, obs = policy.init(key), jnp.ones((3, 2))

    def q(obs, action):
        return 4.0 * action[..., 0]

    zeros = jnp.zeros((3, 1))
    context = Context(
        obs,
        zeros,
        obs,
        jnp.zeros(3, bool),
        zeros,
        (),
        q,
        q,
        q,
        jnp.asarray(0.5),
        Stats(jnp.zeros(()), jnp.ones(())),
        jnp.zeros((), jnp.int32),
    )
    _, found = policy.loss(key, params, context)
    log_weight = scipy.special.log_softmax(np.asarray(found.values, np.float64) / 0.5, axis=0)
    kl = np.mean(np.sum(np.exp(log_weight) * (log_weight + np.log(16)), axis=0))
    np.testing.assert_allclose(found.entropy_gap, 0.5 * (0.7 - kl), rtol=1e-4)
    quiet, loud = (
        policy.act(key, params, obs, q, jnp.asarray(alpha), explore=True) for alpha in (1e-3, 5.0)
    )
    np.testing.assert_array_equal(quiet, loud)
    for options in ({"weighting": "raw"}, {"num_samples": 2}):
        with pytest.raises(ValueError, match="target_kl goes with"):
            rl.make_mirror_descent(
                generator, **{"weighting": "softmax", "target_kl": 0.7, **options}
            )


def test_entropy_of_sac_with_many_samples_is_its_policy_s(key):
    """The bonus of the best of eight has the mean of the Gaussian's own, squashed."""
    one, many = (rl.sac(1, 1, hidden=(8,), num_particles=k) for k in (1, 8))
    params, obs = one.init(key), jnp.zeros((20_000, 1))

    def q(obs, action):
        return action[..., 0]

    (alone, bonus, _), (best, bonus_best, _) = (
        jax.jit(lambda key, p=p: p.propose(key, params, params, obs, q, jnp.ones(())))(key)
        for p in (one, many)
    )
    assert best.mean() > alone.mean() + 0.2
    np.testing.assert_allclose(bonus_best.mean(), bonus.mean(), atol=4 * bonus.std() / 141)


@pytest.mark.parametrize("name", ["raw", "softmax", "sdac"])
def test_a_temperature_is_a_setting(key, name):
    """What the state says goes before what the policy was made with, and divides alike."""
    flow = rl.make_flow(2, 1, num_steps=2, hidden=(4,))

    def make(temperature):
        if name == "sdac":
            return rl.sdac(2, 1, hidden=(4,), num_samples=4, temperature=temperature)
        return rl.make_mirror_descent(
            flow, weighting=name, temperature=temperature, num_samples=4, num_particles=1
        )

    def q(obs, action):
        return jnp.sin(3.0 * action[..., 0]) + obs[..., 0]

    cold, warm = make(0.3), make(2.0)
    assert cold.loss_settings == {"temperature": 0.3}
    params = cold.init(key)
    swept = {"temperature": jnp.asarray(0.3)}
    want, own, got = (
        policy.loss(key, params, context(q, batch=8, **settings))[0]
        for policy, settings in ((cold, {}), (warm, {}), (warm, {"settings": swept}))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert abs(own - want) > 1e-3 * abs(want)


def test_numbers_out_of_range():
    flow = rl.make_flow(2, 1, hidden=(8,))
    for make, message in (
        (lambda: rl.make_mirror_descent(flow, weighting="raw", temperature=0.0), "positive"),
        (lambda: rl.sdac(2, 1, num_samples=0), "num_samples"),
        (lambda: rl.sdac(2, 1, temperature=-1.0), "temperature"),
        (lambda: rl.qvpo(2, 1, num_samples=1), "num_samples must be at least 2"),
        (lambda: rl.qvpo(2, 1, weighting="value", num_samples=0), "num_samples"),
        (lambda: rl.dipo(2, 1, num_ascents=0), "num_ascents"),
        (lambda: rl.dacer(2, 1, num_samples=2), "num_components"),
        (lambda: rl.dacer(2, 1, alpha_every=0), "alpha_every"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
