"""The planning pipeline with statsmodels and scipy, as a careful Python programmer writes it.

The same steps and choices as `jaxlab.queueing.plan`: 18 distinct STL configurations a series,
five laws by maximum likelihood, survival distance, mean occupancy, beds.
"""

import itertools

import numpy as np
import scipy.stats
from statsmodels.tsa.seasonal import STL

from jaxlab import queueing as q

LAWS = {
    "exponential": scipy.stats.expon,
    "weibull": scipy.stats.weibull_min,
    "lognormal": scipy.stats.lognorm,
    "gamma": scipy.stats.gamma,
    "fisk": scipy.stats.fisk,
}


def plan(stays: q.Stays, alphas: tuple[float, ...] = (0.05, 0.01)) -> np.ndarray:
    """Returns the beds `[rule, site]`: average, risks, peak."""
    beds = []
    for i in range(stays.num_sites):
        mask = stays.site == i
        day, los = stays.day[mask], stays.los[mask]
        counts = np.bincount(day, minlength=stays.num_days).astype(float)
        total = np.bincount(day, los, minlength=stays.num_days)
        known = counts > 0
        days = np.arange(stays.num_days)
        mean = np.interp(days, days[known], total[known] / counts[known])
        lam = np.maximum(_best_stl(counts).trend, 0)
        stay_fit = _best_stl(mean)
        mu = np.maximum(stay_fit.trend, 0.01)
        sig2 = _variance(np.asarray(stay_fit.resid))
        law, kappa, smax = _best_law(los)
        rho = _occupancy(lam, mu, sig2, law, kappa, smax)
        warm = rho[smax:]
        load = counts.mean() * los.mean()
        b = np.arange(1, int(3 * warm.max()) + 20)
        risk = scipy.stats.poisson.sf(b[:, None], warm[None]).mean(axis=1)
        beds.append(
            [
                np.ceil(load + np.sqrt(load)),
                *(b[np.argmax(risk <= alpha)] for alpha in alphas),
                np.ceil(warm.max() + np.sqrt(warm.max())),
            ]
        )
    return np.array(beds, int).T


def _best_stl(y):
    fits = [
        STL(y, period=7, seasonal=s, trend=t, seasonal_deg=1, trend_deg=1, robust=r).fit()
        for s, t, r in itertools.product((7, 15, 31), (15, 31, 61), (False, True))
    ]
    return min(fits, key=lambda fit: np.std(fit.resid, ddof=1))


def _variance(resid):
    size, scores = resid.size, {}
    for window in (31, 15, 7):
        half = window // 2
        sums, squares = (np.cumsum(np.r_[0.0, x]) for x in (resid, resid**2))
        low = np.maximum(np.arange(size) - half, 0)
        high = np.minimum(np.arange(size) + half + 1, size)
        n = high - low
        first = sums[high] - sums[low]
        var = (squares[high] - squares[low] - first**2 / n) / (n - 1)
        sd = np.sqrt(np.maximum(var, 0))
        scores[window] = (sd.std() / sd.mean(), sd)
    best = min(scores, key=lambda window: (scores[window][0], -window))
    return np.maximum(scores[best][1] ** 2, 1e-6)


def _best_law(los):
    sample = np.sort(los)
    fits = []
    for name, law in LAWS.items():
        params = law.fit(los, floc=0)
        smax = max(1, int(min(los.max(), law.ppf(0.99, *params))))
        grid = np.arange(smax + 1)
        km = 1 - np.searchsorted(sample, grid, side="right") / sample.size
        rmse = np.sqrt(np.mean((law.sf(grid, *params) - km) ** 2))
        fits.append((rmse, name, params[0] if len(params) == 3 else 1.0, smax))
    return min(fits, key=lambda fit: fit[0])[1:]


def _occupancy(lam, mu, sig2, law, kappa, smax):
    rho = np.zeros_like(lam)
    for u in range(smax + 1):
        keep = lam.size - u
        rho[u:] += lam[:keep] * _survival(u, mu[:keep], sig2[:keep], law, kappa)
    return rho


def _survival(u, mu, sig2, law, kappa):
    if u == 0:
        return np.ones_like(mu)
    if law == "exponential":
        return np.exp(-u / mu)
    if law == "weibull":
        return np.exp(-((u / (mu / scipy.special.gamma(1 + 1 / kappa))) ** kappa))
    if law == "gamma":
        return scipy.special.gammaincc(kappa, u * kappa / mu)
    if law == "lognormal":
        tau2 = np.log1p(sig2 / mu**2)
        return scipy.special.ndtr(-(np.log(u) - np.log(mu) + tau2 / 2) / np.sqrt(tau2))
    return 1 / (1 + (u / (mu * kappa / np.pi)) ** kappa)
