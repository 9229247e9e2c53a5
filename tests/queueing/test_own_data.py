"""A hospital's own data: windows of each site, whole-day stays, patients already in bed, hours."""

import datetime
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import queueing as q
from jaxlab.queueing.data import records, windows

EXPONENTIAL = q.LawOptions(families=("exponential",))
ONE = q.SeriesOptions(grid=q.GRID[:1])
WARM = q.QueueModel(variant="fisk_mean", warmup="drop")


def draw(seed, *, rate, mean, num_days, opened=0, before=0, by_date=True):
    """Draws exponential stays of one unit, known by their dates or by the hour and minute."""
    rng = np.random.default_rng(seed)
    start = opened - before
    num = rng.poisson(rate * (num_days - start))
    time = np.sort(rng.uniform(start, num_days, num))
    leave = time + rng.exponential(mean, num)
    day, out = np.floor(time).astype(np.int32), np.floor(leave).astype(np.int32)
    ended = leave < num_days
    seen = np.where(ended, out, num_days)
    there = (day >= opened) | (seen > opened)
    whole = np.where(ended, out - day, num_days - day).astype(float)
    stays = records.Stays(
        site=np.zeros(num, np.int32),
        day=day,
        los=whole if by_date else np.minimum(leave, num_days) - time,
        event=ended,
        discharge_day=np.where(ended & by_date, out, -1).astype(np.int32),
        offset=np.full(num, np.nan) if by_date else time - day,
        by_date=np.full(num, by_date),
        num_sites=1,
        num_days=num_days,
        site_names=("Unit",),
        origin=datetime.date(2021, 3, 1),
        windows=np.array([[opened, num_days - 1]], np.int32),
    )
    kept = {name: getattr(stays, name)[there] for name in stays._fields[:7]}
    return stays._replace(**kept)


def beside(*units):
    """Puts units side by side as sites."""
    columns = {
        name: np.concatenate([getattr(unit, name) for unit in units])
        for name in (*units[0]._fields[:7], "windows")
    }
    columns["site"] = np.repeat(np.arange(len(units), dtype=np.int32), [u.day.size for u in units])
    names = tuple(f"Site {i + 1}" for i in range(len(units)))
    return units[0]._replace(**columns, num_sites=len(units), site_names=names)


def on_device(stays, **options):
    return jax.tree.map(jnp.asarray, records.pooled_by_site(stays, multiple=512, **options))


def test_days_move_to_the_front_and_back():
    x = np.arange(24.0).reshape(2, 12)
    own = jnp.asarray([[3, 9], [0, 11]], jnp.int32)
    front = np.asarray(windows.to_own_days(jnp.asarray(x), own))
    np.testing.assert_array_equal(front[0, :7], x[0, 3:10])
    np.testing.assert_array_equal(front[1], x[1])
    np.testing.assert_array_equal(windows.to_calendar(jnp.asarray(front), own), x)
    inside = windows.inside(own, 12)
    np.testing.assert_array_equal(inside[0], (np.arange(12) >= 3) & (np.arange(12) < 10))
    filled = np.asarray(windows.fill(jnp.asarray(front), windows.to_own_days(inside, own), days=4))
    np.testing.assert_allclose(filled[0, 7:], x[0, 3:7].mean())
    np.testing.assert_array_equal(filled[0, :7], x[0, 3:10])


@pytest.fixture(scope="module")
def planner():
    options = {"u_max": 64, "queue": WARM, "series_options": ONE, "law_options": EXPONENTIAL}
    return jax.jit(functools.partial(q.plan, **options), static_argnames="num_days")


def test_a_site_of_a_batch_gets_what_it_gets_alone(planner):
    early, late = (
        draw(seed, rate=rate, mean=4.0, num_days=110, opened=opened, by_date=False)
        for seed, rate, opened in ((0, 3.0, 0), (2, 5.0, 60))
    )
    closed = {name: getattr(late, name)[late.day < 100] for name in late._fields[:7]}
    stays = beside(early, late._replace(**closed, windows=np.array([[60, 99]], np.int32)))
    single = records.take_site(stays, 1)
    with jax.enable_x64(True):
        own = jnp.asarray(stays.windows)
        together = jax.device_get(planner(on_device(stays), num_days=110, own=own))
        alone = jax.device_get(planner(on_device(single), num_days=40))
    window, outside = slice(60, 100), np.r_[0:60, 100:110]
    for name in ("rho", "mask"):
        found = getattr(together, name)[1]
        np.testing.assert_allclose(found[window], getattr(alone, name)[0], rtol=1e-9)
    assert np.isnan(together.rho[1, outside]).all() and not together.mask[1, outside].any()
    assert np.isfinite(together.rho[0]).all()
    for name in ("lam", "mu", "sig2"):
        found = getattr(together.series, name)[1]
        np.testing.assert_allclose(found[window], getattr(alone.series, name)[0], rtol=1e-9)
    assert together.series.lam[1, outside].sum() == 0
    np.testing.assert_allclose(together.series.rate[1], alone.series.rate[0], rtol=1e-12)
    for mine, its in zip(together.beds, alone.beds, strict=True):
        np.testing.assert_array_equal(np.asarray(mine)[..., 1], np.asarray(its)[..., 0])


def test_one_program_serves_all_windows_and_a_later_opening_is_not_averaged(planner):
    """The days before a unit exists are no empty days: 31 beds by the 85 % rule, not 16."""
    stays = draw(4, rate=4.0, mean=6.0, num_days=730, opened=365, by_date=False)
    with jax.enable_x64(True):
        patients = on_device(stays)
        before = planner._cache_size()
        plan, spread = (
            jax.device_get(planner(patients, num_days=730, own=jnp.asarray(own, jnp.int32)))
            for own in (stays.windows, [[0, 729]])
        )
        assert planner._cache_size() == before + 1
    admitted = stays.day >= 365
    load = admitted.sum() / 365 * 6.0
    assert int(plan.beds.average[0]) in range(int(load + load**0.5) - 2, int(load + load**0.5) + 4)
    assert 27 <= int(plan.beds.rule85[0]) <= 33
    assert int(spread.beds.average[0]) < 20 and int(spread.beds.rule85[0]) < 20
    np.testing.assert_allclose(plan.series.rate[0], admitted.sum() / 365)


@pytest.mark.parametrize("convention", ["ceil", pytest.param("midnight", marks=pytest.mark.slow)])
def test_whole_days_do_not_count_half_a_day_too_much(convention):
    """Poisson(8) a day, exponential stays of mean 4, known by their dates; a tenth on one day."""
    queue = WARM._replace(convention=convention)
    options = {"series_options": ONE, "law_options": EXPONENTIAL}
    planner = jax.jit(functools.partial(q.plan, num_days=360, u_max=64, queue=queue, **options))
    stays = draw(3, rate=8.0, mean=4.0, num_days=360)
    assert (stays.los == 0).mean() > 0.08
    with jax.enable_x64(True):
        plan = jax.device_get(planner(on_device(stays)))
    census = q.observed(stays, convention)
    mask = plan.mask[0]
    assert plan.rho[0][mask].mean() == pytest.approx(census[0][mask].mean(), rel=0.01)
    # By its dates the stay is what it was; days begun are geometric.
    begun = np.maximum(stays.los[stays.event], 1.0).mean()
    mean = -1 / np.log1p(-1 / begun) if convention == "ceil" else 4.0
    assert plan.laws.fits.params.scale[0, 0] == pytest.approx(mean, rel=0.05)
    inflated = stays._replace(by_date=np.zeros_like(stays.by_date), los=np.maximum(stays.los, 1.0))
    with jax.enable_x64(True):
        continuous = jax.device_get(planner(on_device(inflated)))
    assert (continuous.rho[0][mask].mean() > 1.05 * plan.rho[0][mask].mean()) == (
        convention == "ceil"
    )


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["ceil", "midnight", "bed_days", "touch"])
@pytest.mark.parametrize(
    ("seed", "rate"), [(0, 8.0), (1, 8.0), (2, 8.0), (1, 1.0), (3, 1.0), (4, 1.0)]
)
def test_a_study_of_whole_days_agrees_with_its_census(convention, seed, rate):
    """Of a small unit too, whose mean stays vary from day to day."""
    stays = draw(seed, rate=rate, mean=4.0, num_days=360)
    study = q.plan_study(stays, queue=WARM._replace(convention=convention))
    mask = study.plan.mask[0]
    census = study.census[0][mask].mean()
    assert study.plan.rho[0][mask].mean() == pytest.approx(census, rel=0.01)


def test_patients_in_bed_at_the_start_stay_on():
    """Exponential stays have no memory: of n patients n exp(-t/mu) are still there."""
    stays = draw(5, rate=3.0, mean=25.0, num_days=120, before=200, by_date=True)
    ages = records.initial_ages(stays)
    found = (stays.day < 0) & (stays.los + stays.day > 0)
    assert (ages > 0).sum() == found.sum() and found.sum() > 50
    np.testing.assert_array_equal(np.sort(ages[ages > 0]), np.sort(-stays.day[found]))
    options = {"series_options": ONE, "law_options": EXPONENTIAL, "queue": q.QueueModel()}
    planner = jax.jit(functools.partial(q.plan, num_days=120, u_max=384, **options))
    with jax.enable_x64(True):
        with_them = jax.device_get(planner(on_device(stays), ages=jnp.asarray(ages)))
        nobody = jnp.full_like(jnp.asarray(ages), -1)
        without = jax.device_get(planner(on_device(stays), ages=nobody))
        # An open stay counts to the end of the data.
        census = q.observed(stays)[0]
    expected = found.sum() * np.exp(-np.arange(120) / float(with_them.inputs.mu[0, 0]))
    np.testing.assert_allclose(with_them.rho[0] - without.rho[0], expected, rtol=1e-7)
    assert census[0] == found.sum() + (stays.day == 0).sum()
    assert census[-1] == (~stays.event).sum() > 50
    assert abs(float(with_them.rho[0, -1]) - census[-1]) < 12
    assert float(without.series.rate[0]) == pytest.approx((stays.day >= 0).sum() / 120)


def test_by_the_hour_those_who_leave_on_the_first_day_were_in_bed():
    stays = draw(0, rate=3.0, mean=2.0, num_days=40, by_date=False)
    stays.day[:4], stays.offset[:4] = -1, 22.5 / 24
    stays.los[:4] = (0.05, 0.5, 0.6, 3.0)  # up to 23:42 the day before, 10:30, 12:54, a later day
    by_hour, by_day = (records.initial_ages(stays, hourly=hourly) for hourly in (True, False))
    assert by_hour[by_hour >= 0].tolist() == [2, 2, 2] and by_day[by_day >= 0].tolist() == [1]


@pytest.mark.slow
def test_hours_follow_the_times_of_admission():
    stays = draw(6, rate=6.0, mean=2.0, num_days=40, by_date=False)
    hour = np.where(np.arange(stays.day.size) % 3 == 0, 9, 15)
    stays = stays._replace(offset=(hour + 0.5) / 24)
    options = {"series_options": ONE, "law_options": EXPONENTIAL, "bin": "1h"}
    planner = jax.jit(functools.partial(q.plan, num_days=40, u_max=16, **options))
    with jax.enable_x64(True):
        plan = jax.device_get(planner(on_device(stays, times=True)))
    share = np.bincount(hour, minlength=24) / hour.size
    np.testing.assert_allclose(plan.series.profile[0], share, rtol=1e-12)
    lam = (plan.series.lam[0][:, None] * share).ravel()
    mean = 24 * np.repeat(plan.series.mu[0], 24)
    rho = np.zeros(960)
    for u in range(24 * int(plan.laws.smax[0]) + 24):
        rho[u:] += (lam * np.exp(-u / mean))[: 960 - u]
    np.testing.assert_allclose(plan.rho[0], rho, rtol=1e-9)
    by_hour = q.observed(stays, bin="1h")[0].reshape(40, 24)
    assert by_hour.shape == (40, 24)
    assert by_hour[10:, 15].mean() > by_hour[10:, 8].mean() + 2  # after the arrivals, before them


def test_hours_need_times_of_admission():
    stays = draw(6, rate=6.0, mean=2.0, num_days=40, by_date=False)
    with pytest.raises(ValueError, match="time of admission is needed for every stay, 7 of"):
        offset = np.where(np.arange(stays.day.size) < 7, np.nan, stays.offset)
        q.plan_study(stays._replace(offset=offset), bin="1h")
    with pytest.raises(ValueError, match="bin must be one of"):
        q.plan_study(stays, bin="15min")
    with pytest.raises(ValueError, match="needs the times of admission"):
        q.plan(on_device(stays), 40, u_max=16, bin="1h")


@pytest.mark.parametrize("gamma", [2.0, float("nan"), 0.0])
def test_a_share_of_the_beds_is_one(gamma):
    stays = draw(0, rate=1.0, mean=2.0, num_days=60)
    with pytest.raises(ValueError, match="gamma must be a share of the beds in"):
        q.plan_study(stays, rules=q.BedRules(gamma=gamma))


def test_a_window_too_short_for_weeks_names_its_site():
    stays = beside(
        draw(0, rate=2.0, mean=2.0, num_days=60),
        draw(1, rate=2.0, mean=2.0, num_days=60, opened=40),
    )
    with pytest.raises(
        ValueError, match="at least 28 days, for a weekly pattern, got 20 at Site 2"
    ):
        q.plan_study(stays)


def test_what_the_cut_loses_is_said_and_kept():
    """A log-logistic law of kappa 1.34 and mean 21.9 days has a quarter of it beyond 325 days."""
    one = jnp.ones((1, 40))
    inputs = q.QueueInputs(
        lam=0.7 * one,
        mu=21.9 * one,
        sig2=100.0 * one,
        kappa=jnp.asarray([1.34]),
        family=jnp.asarray([q.FAMILIES.index("fisk")], jnp.int32),
        smax=jnp.asarray([325], jnp.int32),
    )
    model = q.BedModel(queue=WARM)
    theta = 21.9 * np.sinc(1 / 1.34)
    u = np.linspace(0, 326, 2_000_001)
    mean = np.trapezoid(1 / (1 + (u / theta) ** 1.34), u)
    lost = float(q.truncated_mean(inputs, model)[0])
    assert lost == pytest.approx(1 - mean / 21.9, abs=1e-4) and round(lost, 2) == 0.24
    beyond = float(q.truncated_share(inputs, model)[0])
    assert beyond == pytest.approx(1 / (1 + (325 / theta) ** 1.34), rel=1e-4)


@pytest.mark.parametrize("convention", ["midnight", "touch"])
def test_a_kept_tail_gives_the_mean_stay_back(convention):
    """Over days whose mean stays differ, as those of a small unit do."""
    stays = draw(7, rate=1.0, mean=5.0, num_days=200, by_date=False)
    with jax.enable_x64(True):
        patients = on_device(stays)
        series = q.estimate_series(patients, 200, ONE)
        laws = q.estimate_laws(patients, EXPONENTIAL, u_max=64)
        queue = WARM._replace(convention=convention)
        cut, kept = (
            q.queue_inputs(series, laws, num_lags=64, queue=queue, tail=tail)
            for tail in ("cut", "keep")
        )
        series, laws, cut, kept = jax.device_get((series, laws, cut, kept))
    np.testing.assert_array_equal(cut.mu, series.mu)
    assert series.mu[0].std() > 0.2 * series.mu[0].mean()
    mean, weight = np.asarray(kept.mu[0]), np.asarray(kept.lam[0] / kept.lam[0].sum())
    # Exponential stays that are cut after so many nights last as long as the data's.
    nights = int(laws.smax[0]) + (convention == "midnight")
    lasts = float(weight @ (mean * -np.expm1(-nights / mean)))
    assert lasts == pytest.approx(float(laws.mean_los[0]), rel=3e-3)
    assert weight @ mean > float(laws.mean_los[0])
