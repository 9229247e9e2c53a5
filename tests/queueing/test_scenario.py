"""Scenarios and the variance sensitivity against numpy loops and the demo units' published beds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from jaxlab.queueing import scenario
from jaxlab.queueing.census import occupancy
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import conditional

DEMO = {"base": 3.2, "amplitude": 0.2, "los": 9.5, "phase": 20}


def _inputs(families, *, num_days=365, kappa=1.5, smax=60, spread=1.0, seed=None):
    """The same demonstration unit under several laws, one site each."""
    t = np.arange(num_days)
    angle = 2 * np.pi * (t + DEMO["phase"]) / 365
    lam = DEMO["base"] * (1 + DEMO["amplitude"] * np.sin(angle))
    mu = DEMO["los"] * (1 + 0.1 * np.sin(angle + 2 * np.pi * 60 / 365))
    count = len(families)
    noise = (
        1.0 if seed is None else np.random.default_rng(seed).uniform(0.8, 1.2, (count, num_days))
    )
    tile = lambda x: jnp.asarray(np.tile(x, (count, 1)) * noise)  # noqa: E731
    return QueueInputs(
        lam=tile(lam),
        mu=tile(mu),
        sig2=tile(spread * mu**2),
        kappa=jnp.full((count,), kappa),
        family=jnp.asarray([conditional.FAMILIES.index(f) for f in families], jnp.int32),
        smax=jnp.full((count,), smax, jnp.int32),
    )


def _lognormal_survival(u, mu, sig2):
    tau2 = np.log1p(sig2 / mu**2)
    return ndtr(-(np.log(max(u, 1e-300)) - np.log(mu) + tau2 / 2) / np.sqrt(tau2))


def _rho(lam, surv, smax):
    """Brute force; `surv(u, day)`."""
    days = range(len(lam))
    return np.array(
        [sum(lam[t - u] * surv(u, t - u) for u in range(min(t, smax) + 1)) for t in days]
    )


def _beds(rho, alphas=(0.05, 0.01)):
    risk = [
        next(b for b in range(1, 500) if stats.poisson.sf(b, rho).mean() <= alpha)
        for alpha in alphas
    ]
    return [*risk, int(np.ceil(rho.max() + np.sqrt(rho.max())))]


def test_demo_unit_beds(x64):
    """Published beds of the companion tool's second demonstration unit."""
    model = scenario.BedModel(num_lags=60)
    smooth = _inputs(["exponential", "weibull", "gamma", "lognormal"])
    beds, rho = jax.jit(lambda x: scenario.bed_counts(x, model))(smooth)
    want = [[36, 46, 51, 48], [36, 46, 52, 48], [36, 46, 52, 48], [36, 45, 51, 47]]
    np.testing.assert_array_equal(beds, want)
    np.testing.assert_allclose(rho.mean(1), [31.174697, 31.438121, 31.340383, 30.994904], atol=1e-6)
    assert model.strategies == ("average", "0.05", "0.01", "max")
    fisk = _inputs(["fisk"])
    for variant, row in (
        ("fisk_paper", [36, 41, 46, 43]),
        ("fisk_mean", [36, 37, 42, 39]),
        ("burr_tool", [36, 33, 38, 35]),
    ):
        beds, _ = scenario.bed_counts(fisk, scenario.BedModel(queue=QueueModel(variant=variant)))
        np.testing.assert_array_equal(beds[0], row)


def test_identity_scenario_changes_nothing():
    inputs = _inputs(["exponential", "lognormal"], seed=1)
    same = jax.jit(lambda x: scenario.apply_scenario(x))(inputs)
    chex.assert_trees_all_equal(same, inputs)
    empty = scenario.apply_scenario(inputs, arrival=7.0, mean_los=3.0, variance=2.0, window=(9, 9))
    chex.assert_trees_all_equal(empty, inputs)


def test_scenario_scales_inside_the_window_only(x64):
    inputs = _inputs(["exponential", "lognormal"], seed=2)
    by_site = np.array([0.5, 3.0])
    run = jax.jit(
        lambda a, b, start, stop: scenario.apply_scenario(
            inputs, arrival=a, mean_los=b, variance=1.8, window=(start, stop)
        )
    )
    got = run(by_site, 1.2, 100, 130)
    for name, factor in (("lam", by_site[:, None]), ("mu", 1.2), ("sig2", 1.8)):
        want = np.array(getattr(inputs, name))
        want[:, 100:130] *= factor
        np.testing.assert_allclose(getattr(got, name), want, rtol=1e-15)
    static = scenario.apply_scenario(
        inputs, arrival=by_site, mean_los=1.2, variance=1.8, window=(100, 130)
    )
    chex.assert_trees_all_close(got, static, rtol=1e-15)
    assert got.kappa is not None and np.array_equal(got.smax, inputs.smax)


def test_occupancy_is_linear_in_demand(x64):
    inputs = _inputs(["exponential", "weibull"], seed=3)

    @jax.jit
    def mean_rho(a):
        return occupancy.occupancy_mean(*scenario.apply_scenario(inputs, arrival=a), num_lags=60)

    base = mean_rho(1.0)
    np.testing.assert_array_equal(mean_rho(2.0), 2.0 * base)
    np.testing.assert_allclose(mean_rho(1.1), 1.1 * base, rtol=1e-13)
    np.testing.assert_array_equal(mean_rho(0.0), 0.0)
    slope = jax.jit(jax.jacfwd(mean_rho))(0.9)
    np.testing.assert_allclose(slope, base, rtol=1e-12)


def test_variance_to_zero_is_a_step_at_the_mean(x64):
    inputs = _inputs(["lognormal"], seed=4)
    step = scenario.apply_scenario(inputs, variance=0.0)
    _, rho = scenario.bed_counts(step)
    lam, mu = np.asarray(inputs.lam[0]), np.asarray(inputs.mu[0])
    np.testing.assert_allclose(rho[0], _rho(lam, lambda u, d: 1.0 * (u < mu[d]), 60), rtol=1e-12)


def test_variance_sensitivity_equals_brute_force(x64):
    inputs = _inputs(["lognormal", "exponential"], num_days=150, smax=25, seed=5)
    betas = (0.2, 1.0, 1.8)
    got = jax.jit(
        lambda x: scenario.variance_sensitivity(x, betas, model=scenario.WARM._replace(num_lags=25))
    )(inputs)
    lam, mu, sig2 = (np.asarray(x[0]) for x in inputs[:3])
    table = []
    for k, beta in enumerate(betas):
        tau2 = np.log1p(beta * sig2 / mu**2)

        def surv(u, day, tau2=tau2):
            z = (np.log(max(u, 1e-300) / mu[day]) + tau2[day] / 2) / np.sqrt(tau2[day])
            return ndtr(-z)

        rho = _rho(lam, surv, 25)[25:]
        table.append(_beds(rho))
        np.testing.assert_array_equal(got.beds[k, 0, 1:], table[-1])
        np.testing.assert_allclose(got.rho_mean[k, 0], rho.mean(), rtol=1e-12)
        cut = [surv(25, day) for day in range(150)]
        np.testing.assert_allclose(got.truncated[k, 0], np.average(cut, weights=lam), rtol=1e-12)
    table = np.array(table)
    np.testing.assert_allclose(got.change[:, 0, 1:], 100 * (table - table[1]) / table[1])
    assert np.any(got.change[:, 0] != 0)
    # A law of one parameter does not know the variance; B_average never does.
    np.testing.assert_array_equal(got.change[:, 1], 0.0)
    np.testing.assert_array_equal(got.change[:, :, 0], 0.0)
    cut = np.average(np.exp(-25 / np.asarray(inputs.mu[1])), weights=np.asarray(inputs.lam[1]))
    np.testing.assert_allclose(got.truncated[:, 1], cut, rtol=1e-12)


def test_two_moment_gamma_reacts_to_the_variance(x64):
    inputs = _inputs(["gamma"], num_days=120, smax=40)
    model = scenario.BedModel(queue=QueueModel(moments="two", warmup="drop"))
    got = scenario.variance_sensitivity(inputs, (0.5, 1.0), model=model)
    lam, mu, sig2 = (np.asarray(x[0]) for x in inputs[:3])
    for k, beta in enumerate((0.5, 1.0)):
        shape = mu**2 / (beta * sig2)
        surv = lambda u, d, shape=shape: stats.gamma.sf(u, shape[d], scale=mu[d] / shape[d])  # noqa: E731
        np.testing.assert_array_equal(got.beds[k, 0, 1:], _beds(_rho(lam, surv, 40)[40:]))


def test_missing_bed_counts_are_data():
    inputs = _inputs(["exponential"])
    model = scenario.WARM._replace(rules=BedRules(bed_cap=20))
    got = scenario.variance_sensitivity(inputs, model=model)
    np.testing.assert_array_equal(got.beds[:, 0, 1:3], -1)
    assert np.all(np.isnan(got.change[:, 0, 1:3])) and np.all(got.change[:, 0, 3] == 0)
    np.testing.assert_allclose(got.betas, scenario.BETAS, rtol=1e-6)


def test_what_if_table_equals_single_scenarios(x64):
    inputs = _inputs(["exponential", "lognormal"], num_days=100, smax=30, seed=6)
    arrival, mean_los = (0.9, 1.0, 1.1), (0.8, 1.25)
    table = jax.jit(
        lambda x, a, b: scenario.what_if(
            x, arrival=a, mean_los=b, model=scenario.BedModel(num_lags=30), window=(10, 80), chunk=4
        )
    )(inputs, jnp.asarray(arrival), jnp.asarray(mean_los))
    lam, mu, sig2 = (np.array(x) for x in inputs[:3])
    for i, a in enumerate(arrival):
        for j, b in enumerate(mean_los):
            lam_s, mu_s = lam.copy(), mu.copy()
            lam_s[:, 10:80] *= a
            mu_s[:, 10:80] *= b
            laws = [
                lambda u, d, m=mu_s[0]: np.exp(-u / m[d]),
                lambda u, d, m=mu_s[1]: _lognormal_survival(u, m[d], sig2[1, d]),
            ]
            for s, law in enumerate(laws):
                rho = _rho(lam_s[s], law, 30)
                mean = np.mean(lam_s[s]) * np.mean(mu_s[s])
                want = [int(np.ceil(mean + np.sqrt(mean))), *_beds(rho)]
                np.testing.assert_array_equal(table.beds[i, j, s], want)
                np.testing.assert_allclose(table.rho_mean[i, j, s], rho.mean(), rtol=1e-12)


def test_average_rule_can_weigh_the_stay_by_patients(x64):
    inputs = _inputs(["exponential"])
    beds, _ = scenario.bed_counts(inputs, scenario.BedModel(mean_stay="patients"))
    load = float(jnp.mean(inputs.lam * inputs.mu))  # the true mean load, above mean x mean
    assert int(beds[0, 0]) == int(np.ceil(load + np.sqrt(load))) == 37
    with pytest.raises(ValueError, match="mean_stay must be"):
        scenario.bed_counts(inputs, scenario.BedModel(mean_stay="median"))  # pyright: ignore


def test_no_retrace_on_new_factors():
    inputs = _inputs(["exponential"], num_days=60, smax=10)
    run = jax.jit(
        chex.assert_max_traces(
            lambda a, b: scenario.bed_counts(
                scenario.apply_scenario(inputs, arrival=a, mean_los=b)
            )[0],
            1,
        )
    )
    few, many = run(1.0, 1.0), run(2.0, 1.5)
    assert np.all(many > few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrival": -0.1}, "arrival must be a factor >= 0"),
        ({"mean_los": np.array([1.0, -1.0])}, "mean_los must be a factor >= 0"),
        ({"variance": float("nan")}, "variance must be a factor >= 0"),
        ({"arrival": np.ones(3)}, "one per site"),
        ({"window": (5, 2)}, "window must be"),
        ({"window": (-1, 2)}, "window must be"),
    ],
)
def test_scenario_errors(arguments, message):
    inputs = _inputs(["exponential", "exponential"], num_days=20)
    with pytest.raises(ValueError, match=message):
        scenario.apply_scenario(inputs, **arguments)


def test_grid_errors():
    inputs = _inputs(["exponential"], num_days=20)
    with pytest.raises(ValueError, match="betas must be >= 0"):
        scenario.variance_sensitivity(inputs, (1.0, -1.0))
    with pytest.raises(ValueError, match="mean_los must hold"):
        scenario.what_if(inputs, mean_los=(-1.0,))
