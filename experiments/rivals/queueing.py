"""Rivals of the free-demand Monte Carlo: vectorized numpy, and two discrete-event packages.

All three draw the same law as `jaxlab.queueing.census.simulate` under the "ceil" convention and an
empty start (arXiv:2510.02852): Poisson admissions, stays of min(ceil(x), S_max + 1) days, the
census of every day, its mean, variance and histogram over replications.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class RivalResult(NamedTuple):
    """What a rival found.

    Attributes:
        mean, var: `[I, T]` census over replications.
        hist: `[I, T, H]` replications by census, the last bin counting >= H-1.
        max_hist: `[I, H]` replications by the peak of the path.
        num_patients: patients drawn.
    """

    mean: np.ndarray
    var: np.ndarray
    hist: np.ndarray
    max_hist: np.ndarray
    num_patients: int


def numpy_free_model(
    seed: int,
    lam: np.ndarray,
    mu: np.ndarray,
    sig2: np.ndarray,
    kappa: np.ndarray,
    families: Sequence[str],
    smax: np.ndarray,
    *,
    num_replications: int,
    chunk: int = 64,
    hist_size: int = 128,
) -> RivalResult:
    """Simulates by numpy alone, as fast as we could make it on one core.

    Daily counts per replication are Poisson, `repeat` lists the patients in order, stays come from
    the float32 ziggurat samplers where there is one, and one `bincount` finds the departures (the
    admissions are known already). `chunk` keeps the arrays within the cache.

    Args:
        seed: of an SFC64 generator, the fastest of numpy's.
        lam, mu, sig2: `[I, T]`.  kappa, smax: `[I]`.
        families: name of each site's law; "fisk" has theta = mu kappa / pi as in the paper.
        num_replications: R.
        chunk: replications at a time.
        hist_size: H.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    num_sites, num_days = lam.shape
    hist = np.zeros((num_sites, num_days * hist_size), np.int64)
    max_hist = np.zeros((num_sites, hist_size), np.int64)
    num_patients = 0
    row = np.arange(num_days) * hist_size
    for first in range(0, num_replications, chunk):
        paths = min(chunk, num_replications - first)
        for i, family in enumerate(families):
            # Column T collects departures after the last day.
            counts = np.zeros((paths, num_days + 1), np.int64)
            counts[:, :-1] = rng.poisson(lam[i], (paths, num_days))
            day = np.repeat(np.tile(np.arange(num_days + 1, dtype=np.int32), paths), counts.ravel())
            base = np.repeat(np.arange(paths, dtype=np.int32) * (num_days + 1), counts.sum(axis=1))
            stay = _stays(rng, family, mu[i], sig2[i], kappa[i], day)
            np.minimum(stay, smax[i] + 1, out=stay)
            leave = base + np.minimum(day + stay, num_days)
            gone = np.bincount(leave, minlength=counts.size).reshape(counts.shape)
            census = np.cumsum(counts - gone, axis=1)[:, :-1]
            capped = np.minimum(census, hist_size - 1)
            hist[i] += np.bincount((capped + row).ravel(), minlength=hist.shape[1])
            max_hist[i] += np.bincount(capped.max(axis=1), minlength=hist_size)
            num_patients += day.size
    return _result(hist.reshape(num_sites, num_days, hist_size), max_hist, num_patients)


def simpy_free_model(
    seed: int, lam: float, mu: float, smax: int, *, num_days: int, num_replications: int
) -> RivalResult:
    """Simulates one site with constant rate and exponential stays as simpy processes."""
    import simpy

    rng = np.random.default_rng(seed)
    census = np.zeros((num_replications, num_days), np.int64)
    num_patients = 0
    for path in census:
        env = simpy.Environment()
        present, admitted = [0], [0]

        def patient(env, days, present=present, admitted=admitted):
            present[0] += 1
            admitted[0] += 1
            yield env.timeout(days)
            present[0] -= 1

        def source(env, path=path, present=present):
            for day in range(num_days):
                for _ in range(rng.poisson(lam)):
                    stay = min(math.ceil(rng.exponential(mu)), smax + 1)
                    env.process(patient(env, stay - 0.25))
                yield env.timeout(0.5)
                path[day] = present[0]
                yield env.timeout(0.5)

        env.process(source(env))
        env.run()
        num_patients += admitted[0]
    return _from_paths(census, num_patients)


def ciw_free_model(
    seed: int, lam: float, mu: float, smax: int, *, num_days: int, num_replications: int
) -> RivalResult:
    """Simulates one site with constant rate and exponential stays as a ciw network."""
    import ciw
    from ciw import dists

    class WholeDays(dists.Distribution):
        def sample(self, t=None, ind=None):
            return min(math.ceil(ciw.random.expovariate(1.0 / mu)), smax + 1)

    network = ciw.create_network(
        arrival_distributions=[dists.Exponential(rate=lam)],
        service_distributions=[WholeDays()],
        number_of_servers=[float("inf")],
    )
    census = np.zeros((num_replications, num_days), np.int64)
    num_patients = 0
    for r in range(num_replications):
        ciw.seed(seed + r)
        simulation = ciw.Simulation(network)
        simulation.simulate_until_max_time(num_days)
        change = np.zeros(num_days + 1, np.int64)
        done = [record for record in simulation.get_all_records(only=["service"])]
        arrived = [record.arrival_date for record in done]
        leave = [math.floor(record.arrival_date) + record.service_time for record in done]
        ward: Any = simulation.nodes[1]
        for individual in ward.all_individuals:  # still in bed at the end
            arrived.append(individual.arrival_date)
            leave.append(num_days)
        np.add.at(change, np.minimum(np.floor(arrived).astype(int), num_days), 1)
        np.add.at(change, np.minimum(np.asarray(leave).astype(int), num_days), -1)
        census[r] = np.cumsum(change)[:-1]
        num_patients += len(arrived)
    return _from_paths(census, num_patients)


def _stays(rng, family, mu, sig2, kappa, day) -> np.ndarray:
    """Draws whole days of stay, int32, of patients admitted on `day`, before truncation."""
    match family:
        case "exponential":
            x, scale = rng.standard_exponential(day.size, dtype=np.float32), mu
        case "weibull":
            x = rng.standard_exponential(day.size, dtype=np.float32) ** np.float32(1.0 / kappa)
            scale = mu / math.gamma(1.0 + 1.0 / kappa)
        case "gamma":
            x, scale = rng.standard_gamma(np.float32(kappa), day.size, dtype=np.float32), mu / kappa
        case "fisk":
            u = rng.random(day.size, dtype=np.float32)
            x = (u / (np.float32(1.0) - u)) ** np.float32(1.0 / kappa)
            scale = mu * kappa / math.pi
        case "lognormal":
            tau = np.sqrt(np.log1p(sig2 / mu**2))
            x = rng.standard_normal(day.size, dtype=np.float32) * tau.astype(np.float32)[day]
            np.exp(x, out=x)
            scale = mu * np.exp(-0.5 * tau**2)
        case _:
            raise ValueError(f"no sampler for {family!r}")
    x *= np.asarray(scale, np.float32)[day]
    # Beyond int32 there is only the truncation, which comes next.
    return np.minimum(np.ceil(x, out=x), np.float32(1e9)).astype(np.int32)


def _from_paths(census: np.ndarray, num_patients: int) -> RivalResult:
    hist_size = int(census.max()) + 2
    hist = np.stack([np.bincount(column, minlength=hist_size) for column in census.T])[None]
    max_hist = np.bincount(census.max(axis=1), minlength=hist_size)[None]
    return _result(hist, max_hist, num_patients)


def _result(hist, max_hist, num_patients) -> RivalResult:
    value = np.arange(hist.shape[-1])
    total = hist.sum(axis=-1)
    mean = (hist * value).sum(axis=-1) / total
    var = (hist * (value - mean[..., None]) ** 2).sum(axis=-1) / np.maximum(total - 1, 1)
    return RivalResult(mean, var, hist, max_hist, num_patients)
