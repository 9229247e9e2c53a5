"""Completed stays against a loop over the Kaplan-Meier curve and against the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lifelines import KaplanMeierFitter

from jaxlab import queueing as q


def test_censored_stays_equal_the_conditional_mean_of_the_curve(x64):
    rng = np.random.default_rng(3)
    los = np.round(rng.gamma(1.5, 6.0, 80) + 0.1, 1)
    event = (rng.random(80) < 0.7).astype(float)
    weight = (np.arange(80) < 70).astype(float)
    found = jax.jit(lambda *x: q.complete_stays(*x[:2], weight=x[2]))(los, event, weight)
    kept = weight > 0
    km = KaplanMeierFitter().fit(los[kept], event[kept])
    days = np.linspace(0, los[kept].max(), 200001)[:-1]
    curve = km.survival_function_at_times(days).to_numpy()
    for x, e, value in zip(los[kept], event[kept], found[kept], strict=True):
        expected = x
        if not e and (at_x := float(km.predict(x))) > 0:
            expected += curve[days >= x].sum() * (days[1] - days[0]) / at_x
        assert float(value) == pytest.approx(expected, abs=2e-3)
    np.testing.assert_array_equal(found[~kept], los[~kept])


def test_the_mean_stay_survives_censoring_in_the_plan():
    """A third of the stays cut off at random moves the plan by noise, not by a third."""
    stays = q.calgary_like(11, num_days=730, sites=q.CALGARY_SITES[2:3])
    cut = np.random.default_rng(0).exponential(30.0, stays.los.size)
    censored = stays._replace(event=stays.los <= cut, los=np.minimum(stays.los, cut))
    assert 0.2 < 1 - censored.event.mean() < 0.4
    with jax.enable_x64(True):
        run = jax.jit(
            lambda p: q.plan(
                p,
                730,
                u_max=192,
                queue=q.QueueModel(warmup="drop"),
                series_options=q.SeriesOptions(grid=q.GRID[:1]),
                law_options=q.LawOptions(families=("exponential",)),
            )
        )
        whole, cut_off = (
            jax.device_get(run(jax.tree.map(jnp.asarray, q.pooled_by_site(s))))
            for s in (stays, censored)
        )
    assert cut_off.laws.mean_los[0] == pytest.approx(whole.laws.mean_los[0], rel=0.06)
    assert np.nanmean(cut_off.rho) == pytest.approx(np.nanmean(whole.rho), rel=0.06)
    assert abs(int(cut_off.beds.risk[0, 0]) - int(whole.beds.risk[0, 0])) <= 3
