"""A planning study against statsmodels and scipy, and its bootstrap against counting."""

import jax
import numpy as np
import pytest

from experiments.rivals import pipeline
from jaxlab import queueing as q
from jaxlab.queueing import planning

NUM_DAYS = 160
UNITS = q.CALGARY_SITES[2:5:2]  # an exponential and a Weibull unit


@pytest.fixture(scope="module")
def study():
    return q.plan_study(q.calgary_like(3, num_days=NUM_DAYS, sites=UNITS))


def test_beds_equal_statsmodels_and_scipy(study):
    plan = study.plan
    assert all(q.FAMILIES[code] != "fisk" for code in plan.laws.family)  # theirs is the published
    found = np.stack([plan.beds.average, *plan.beds.risk, plan.beds.peak])
    np.testing.assert_array_equal(found, pipeline.plan(study.stays))
    assert study.queue == q.QueueModel(variant="fisk_mean", warmup="drop")
    assert plan.rho.dtype == np.float64


def test_census_counts_who_is_in_bed(study):
    stays = study.stays
    census = np.zeros((2, NUM_DAYS))
    for site, day, los in zip(stays.site, stays.day, stays.los, strict=True):
        census[site, day : day + int(np.ceil(los))] += 1
    np.testing.assert_array_equal(study.census, census)


def test_rules_are_stacked_in_the_order_of_their_names(study):
    beds = q.stack_rules(study.plan.beds)
    rules = q.rule_names(study.rules)
    assert rules == ("average", "5 % risk", "1 % risk", "peak", "85 % rule")
    assert q.rule_names(q.BedRules(alphas=(0.025,)))[1] == "2.5 % risk"
    assert beds.shape == (len(rules), 2)
    np.testing.assert_array_equal(beds[2], study.plan.beds.risk[1])
    np.testing.assert_array_equal(beds[4], study.plan.beds.rule85)


def test_bootstrap_holds_the_plan_and_does_not_depend_on_blocks(study):
    key = jax.random.key(5)
    keys = jax.random.split(key, 12)
    beds = q.bootstrap_beds(keys, study)
    blocks = [q.bootstrap_beds(part, study) for part in (keys[:5], keys[5:])]
    np.testing.assert_array_equal(beds, np.concatenate(blocks))  # one program, run twice
    interval = q.bootstrap(key, study, num_repeats=12)
    np.testing.assert_allclose(interval.low, np.quantile(beds, 0.025, axis=0))
    np.testing.assert_allclose(interval.high, np.quantile(beds, 0.975, axis=0))
    # Draws come from a regression, which follows less noise than the plan's trend: some beds fewer.
    spread = beds.std(axis=0, ddof=1)
    assert (spread > 0.3).all()
    assert (np.abs(beds.mean(axis=0) - q.stack_rules(study.plan.beds)) < 5 * spread).all()
    with pytest.raises(ValueError, match="num_repeats must be at least 2, got 1"):
        q.bootstrap(key, study, num_repeats=1)


def test_interval_leaves_out_draws_without_a_law():
    beds = np.arange(1, 42)[:, None, None] + np.zeros((1, 2, 3), int)  # [draw, rule, site]
    beds[:10, 1, 1] = -1  # a quarter of the draws have no risk rule at site 1
    beds[:21, 1, 2] = -1  # more than half at site 2
    interval = q.interval_of(beds)
    np.testing.assert_allclose(interval.low[:, 0], 2.0)
    np.testing.assert_allclose(interval.high[:, 0], 40.0)
    np.testing.assert_allclose(interval.low[:, 1], 11 + 0.025 * 30)
    assert np.isnan(interval.low[:, 2]).all() and np.isnan(interval.high[:, 2]).all()


def test_studies_that_cannot_be_are_named(study):
    stays = study.stays
    empty = stays._replace(
        **{name: getattr(stays, name)[:0] for name in (*stays._fields[:7], "windows")},
        num_sites=0,
        site_names=(),
    )
    with pytest.raises(ValueError, match="at least one patient, got none"):
        q.plan_study(empty)
    with pytest.raises(ValueError, match="at least 28 days, for a weekly pattern, got 20"):
        q.plan_study(q.calgary_like(0, num_days=20, sites=UNITS))
    with pytest.raises(ValueError, match="no length-of-stay law could be fitted at Site 5;"):
        q.plan_study(stays._replace(event=stays.event & (stays.site == 0)))
    rng = np.random.default_rng(1)
    heavy = (1 / rng.random(stays.los.size) - 1) ** (1 / 0.6)  # log-logistic, kappa 0.6: no mean
    longest = stays.los.max()
    los = np.where(stays.site == 0, np.minimum(6 * heavy + 1e-3, longest), stays.los)
    with pytest.raises(ValueError, match="at Site 3 has no mean"):
        q.plan_study(stays._replace(los=los))


def test_a_record_that_is_all_warm_up_is_refused_and_a_list_of_risks_is_not(study, monkeypatch):
    asked = []

    def compiled(*settings):
        asked.append(settings)
        mask = study.plan.mask & (np.arange(2) == 0)[:, None]
        return lambda patients: study.plan._replace(mask=mask)

    monkeypatch.setattr(planning, "_compiled", compiled)
    with pytest.raises(
        ValueError, match="160 days .* must outlast the stays, .* at Site 5: .*drop"
    ):
        q.plan_study(study.stays, rules=q.BedRules(alphas=[0.1]))
    assert hash(asked[0]) and asked[0][-1].alphas == (0.1,)  # programs are kept by their settings


def test_threshold_is_the_census_that_fills_a_share_of_the_beds():
    beds = np.array([[14, 39], [100, 7]])
    np.testing.assert_array_equal(q.overflow_threshold(beds, 1.0), beds)
    np.testing.assert_array_equal(q.overflow_threshold(beds, 0.85), [[11, 33], [85, 5]])
    assert int(q.overflow_threshold(100, 0.29)) == 29  # 0.29 * 100 is 28.999... in floats
    with pytest.raises(ValueError, match="gamma must be a static number"):
        q.overflow_threshold(beds, float("nan"))
    with pytest.raises(ValueError, match="beds must be integers, got float"):
        q.overflow_threshold(10.5, 1.0)
    with pytest.raises(ValueError, match="beds must be in"):
        q.overflow_threshold(np.array([3, -1]), 1.0)
