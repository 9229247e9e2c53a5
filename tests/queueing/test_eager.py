"""Public functions that loop, called as a notebook calls them: both precisions, compiled once."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import queueing as q

DAYS = 28
SITE = q.CALGARY_SITES[2]


def inputs(scale):
    return jax.tree.map(
        lambda x: scale * x if jnp.issubdtype(x.dtype, jnp.floating) else x,
        q.demo5(family="weibull", smax=6, num_days=DAYS),
    )


def site(scale):
    return jax.tree.map(lambda x: x[:1], inputs(scale))


def rho(scale):
    return scale * (6.0 + jnp.sin(jnp.arange(float(DAYS)) / 4.0))


def stays(scale):
    return scale * (0.5 + jnp.arange(30.0) % 7)


def counts(scale):
    return jnp.round(scale * (3.0 + jnp.arange(float(DAYS)) % 4))


def survival(u):
    return jnp.exp(-u / 3.0)


def table(scale):
    return jnp.exp(-jnp.arange(6.0)[None] / (3.0 * scale)) * jnp.ones((DAYS, 1))


ENDED = np.ones(30, bool)
CALLS = {
    "occupancy_mean": lambda s: q.occupancy_mean(*inputs(s)),
    "occupancy_batch": lambda s: q.occupancy_batch(*site(s), size_mean=1.1, size_pairs=0.2),
    "occupancy_mean_general": lambda s: q.occupancy_mean_general(rho(s), table(s)),
    "occupancy_cov": lambda s: q.occupancy_cov(rho(s), table(s), jnp.arange(3)),
    "departure_rate": lambda s: q.departure_rate(rho(s), table(s)),
    "dispersion_spread": lambda s: q.dispersion_spread(table(s)[0], DAYS),
    "beds_alpha": lambda s: q.beds_alpha(rho(s), 0.05),
    "overflow_risk": lambda s: q.overflow_risk(rho(s), jnp.arange(4, 12)),
    "beds_erlang": lambda s: q.beds_erlang(5.0 * s, 0.02),
    "beds_stationary": lambda s: q.beds_stationary(rho(s), 0.95),
    "erlang_b": lambda s: q.erlang_b(np.arange(4), 2.0 * s),
    "census_recursion": lambda s: q.census_recursion(rho(s), 5.0 * s),
    "initial_occupancy_pmf": lambda s: q.initial_occupancy_pmf(
        s * jnp.arange(3.0), jnp.ones(3, bool), jnp.arange(4.0), survival, rho(s)[:4], 12
    ),
    "initial_mean": lambda s: q.initial_mean(jnp.arange(3), jnp.arange(9), survival),
    "residual_survival": lambda s: q.residual_survival(s * jnp.arange(5.0), survival, 12),
    "stl": lambda s: q.stl(rho(s)),
    "stl_grid_select": lambda s: q.stl_grid_select(rho(s)[None], q.GRID[:1]),
    "poisson_glm": lambda s: q.poisson_glm(counts(s), np.ones((DAYS, 1))),
    "whittaker_poisson": lambda s: q.whittaker_poisson(counts(s), penalty=10.0),
    "fit_los": lambda s: q.fit_los(stays(s), ENDED, "weibull", u_max=32),
    "kaplan_meier": lambda s: q.kaplan_meier(stays(s), ENDED, jnp.arange(9.0)),
    "complete_stays": lambda s: q.complete_stays(stays(s), jnp.ones(30)),
    "los.quantile": lambda s: q.los.quantile("gamma", 0.5, q.LOSParams(1.5 * s, 3.0)),
    "truncated_share": lambda s: q.truncated_share(site(s)),
    "truncated_mean": lambda s: q.truncated_mean(site(s)),
    "what_if": lambda s: q.what_if(site(s), arrival=(1.0, 1.1), mean_los=(1.0,)),
    "simulate_free": lambda s: q.simulate_free(
        jax.random.key(0), site(s), jnp.asarray([12]), num_replications=32, hist_size=64, tile=2048
    ),
    "simulate_paths": lambda s: q.simulate_paths(jax.random.key(0), site(s), 4, tile=2048),
    "true_beds": lambda s: q.true_beds(truth(s), u_max=64),
    "sample_stays": lambda s: q.sample_stays(jax.random.key(0), truth(s), room=256),
}


def truth(scale):
    params = q.LOSParams(jnp.ones(1), jnp.full(1, 3.0 * scale))
    longest = jnp.full(1, jnp.inf)
    return q.Truth(rho(scale)[None], jnp.zeros(1, jnp.int32), params, longest)


QUICK = ("occupancy_mean", "beds_alpha", "simulate_free", "fit_los")
PRECISIONS = [
    pytest.param(
        name,
        x64,
        id=f"{name}-{'float64' if x64 else 'float32'}",
        marks=() if name in QUICK or not x64 else pytest.mark.slow,
    )
    for name in CALLS
    for x64 in (False, True)
]


@pytest.mark.parametrize(("name", "x64"), PRECISIONS)
def test_new_values_are_not_compiled_again(name, x64, caplog):
    with jax.enable_x64(x64), caplog.at_level(logging.WARNING):
        first = CALLS[name](1.0)
        jax.block_until_ready(first)
        caplog.clear()
        with jax.log_compiles():
            second = jax.block_until_ready(CALLS[name](1.25))
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert not compiled
    floats = [x for x in jax.tree.leaves(second) if jnp.issubdtype(x.dtype, jnp.floating)]
    wanted = jnp.float64 if x64 else jnp.float32
    if not name.startswith("simulate"):
        assert {x.dtype for x in floats} <= {jnp.dtype(wanted)}
    assert all(np.isfinite(np.asarray(x)).all() for x in floats)
