"""Metrics by hand, and the detector on fields that are hacked in one way each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.stats

from jaxlab import physics
from jaxlab.physics import metrics

LAW = physics.poisson()


@pytest.fixture(scope="module")
def fields():
    return physics.make_dataset(LAW, jax.random.key(0), 256, 16)


def test_spectra_by_radius():
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype(np.float32)
    power = np.mean(scipy.fft.dctn(x, axes=(1, 2), norm="ortho") ** 2, axis=0)
    for r in range(1, 6):
        inside = [power[k, l] for k in range(6) for l in range(6) if round(np.hypot(k, l)) == r]
        np.testing.assert_allclose(
            metrics.log_spectrum(x)[r - 1], np.log(np.mean(inside, axis=0)), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(metrics.spectrum_distance(2 * x, x), np.log(4.0), rtol=1e-5)


def test_distances_of_laws():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 2, 2, 1)).astype(np.float32)
    y = (1.5 * rng.normal(size=(400, 2, 2, 1)) + 0.3).astype(np.float32)
    found = metrics.frechet_distance(x, y, num_modes=2)
    a, b = (
        scipy.fft.dctn(z.astype(float), axes=(1, 2), norm="ortho").reshape(len(z), 4)
        for z in (x, y)
    )
    a, b = a / b.std(axis=0), b / b.std(axis=0)
    s, t = np.cov(a.T), np.cov(b.T)
    values = np.sqrt(np.linalg.eigvals(s @ t).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t) - 2 * np.sum(values)
    assert found == pytest.approx(expected, rel=1e-4)
    shifted = float(metrics.sliced_wasserstein(jax.random.key(0), x, x + 0.5, num_slices=2000))
    # A shift by 0.5 in each of 4 dimensions moves a slice by |sum of a unit vector| / 2.
    directions = rng.normal(size=(200_000, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert shifted == pytest.approx(0.5 * np.mean(np.abs(directions.sum(1))), rel=0.05)
    pairs = [
        np.sqrt(np.mean((p - q) ** 2))
        for i, p in enumerate(x[:9])
        for j, q in enumerate(x[:9])
        if i != j
    ]
    assert float(metrics.diversity(x[:9])) == pytest.approx(np.mean(pairs), rel=1e-5)
    near = metrics.nearest_distance(x[:4], y)
    by_hand = [min(np.sqrt(np.mean((p - q) ** 2)) for q in y) for p in x[:4]]
    np.testing.assert_allclose(near, by_hand, rtol=1e-5)
    with pytest.raises(ValueError, match="more fields than the 4 coefficients, got 3 and 400"):
        metrics.frechet_distance(x[:3], y, num_modes=2)


def test_what_the_data_conserve_to_rounding_does_not_blow_up_the_distance_of_laws():
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(n, 4, 4, 1)).astype(np.float32) for n in (200, 300))
    x, y = (z - z.mean(axis=2, keepdims=True) for z in (x, y))  # every row has a mean of zero
    without = metrics.frechet_distance(x, y, num_modes=3)
    solver = y + 1e-5 * rng.normal(size=(300, 4, 1, 1)).astype(np.float32)
    model = x + 0.01 * rng.normal(size=(200, 4, 1, 1)).astype(np.float32)
    assert metrics.frechet_distance(model, solver, num_modes=3) == pytest.approx(without, rel=1e-3)


def low_passed(x):
    modes = scipy.fft.dctn(x, axes=(1, 2), norm="ortho")
    modes[:, 6:] = modes[:, :, 6:] = 0.0
    return scipy.fft.idctn(modes, axes=(1, 2), norm="ortho")


def test_detector_passes_data_and_names_what_each_hack_leaves(fields):
    """The published reward at its optimum: fields of a fifteenth, 0.291 to 0.019."""
    data, fresh = fields[:128], fields[128:]
    assert physics.detect_hacking(LAW, fresh, data).flags == ()
    hacked = physics.detect_hacking(LAW, fresh * np.float32(0.019 / 0.291), data)
    assert {"amplitude", "boundary strip", "spectrum", "diversity"} <= set(hacked.flags)
    np.testing.assert_allclose(hacked.amplitude, 0.065, atol=0.01)
    smooth = physics.detect_hacking(LAW, low_passed(fresh), data)
    assert "spectrum" in smooth.flags
    swapped = np.concatenate([fresh[..., :1], np.roll(fresh[..., 1:], 1, axis=0)], axis=-1)
    flags = physics.detect_hacking(LAW, swapped, data).flags
    assert "solution error" in flags and "amplitude" not in flags
    few = fresh[np.arange(128) % 2]
    assert "diversity" in physics.detect_hacking(LAW, few, data).flags
    off = fresh + np.array([0.0, 0.1], np.float32) * fresh[::-1]
    alone = physics.detect_hacking(LAW, off, data)
    beside = physics.detect_hacking(LAW, off, data, base=fresh)
    assert "solution error" not in alone.flags and "solution error" in beside.flags
    # What the base has already is not held against the tuned model, and more than that is.
    loud, louder = fresh * np.float32(1.2), fresh * np.float32(1.3)
    assert "amplitude" in physics.detect_hacking(LAW, loud, data).flags
    assert "amplitude" not in physics.detect_hacking(LAW, loud, data, base=loud).flags
    assert "amplitude" in physics.detect_hacking(LAW, louder, data, base=loud).flags


def test_a_base_excuses_a_channel_to_its_side_alone(fields):
    """A loud solution of the base is no reason for a faint source, or a faint solution."""
    data, fresh = fields[:128], fields[128:]
    base = fresh * np.array([1.0, 1.3], np.float32)
    for kept, flagged in (((1.0, 1.3), False), ((0.75, 1.0), True), ((1.0, 0.75), True)):
        x = fresh * np.array(kept, np.float32)
        assert ("amplitude" in physics.detect_hacking(LAW, x, data, base=base).flags) == flagged


def test_no_solution_is_flagged_whatever_the_base_has(fields):
    law = LAW._replace(solve=lambda x: jnp.full_like(x, jnp.nan))
    found = physics.detect_hacking(law, fields[:8], fields, base=fields[8:16])
    assert "solution error" in found.flags and np.isinf(found.solution_error)


def test_detector_refuses_what_it_cannot_compare(fields):
    with pytest.raises(ValueError, match="x must be .* two fields or more, got"):
        physics.detect_hacking(LAW, fields[:1], fields)
    with pytest.raises(ValueError, match=r"shape \(16, 16, 2\), got \(8, 8, 2\)"):
        physics.detect_hacking(LAW, fields[:4, :8, :8], fields)
    with pytest.raises(ValueError, match="base must be finite"):
        physics.detect_hacking(LAW, fields[:2], fields, base=fields * np.nan)
    with pytest.raises(ValueError, match="base must have fields of the data's shape"):
        physics.detect_hacking(LAW, fields[:2], fields, base=fields[:, :8])
    with pytest.raises(ValueError, match="x must be finite"):
        physics.detect_hacking(LAW, fields[:2] * np.nan, fields)


def test_a_law_that_data_obey_at_the_edge_too_has_no_strip():
    f = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    fields = np.stack([f, 2.0 * f], axis=-1)
    mine = physics.own_pde("mine", lambda z: z[..., 1] - 2.0 * z[..., 0], fields)
    mine = mine._replace(scale=(1.0, 1.0), offset=(0.0, 0.0))  # exact: the residual is 0
    signs = physics.detect_hacking(mine, fields, fields)
    assert np.isnan(signs.strip) and "boundary strip" not in signs.flags
