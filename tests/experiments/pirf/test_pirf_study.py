"""The study's own arithmetic and its base model; a whole run is slow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pirf import PRESETS, Config, base, methods, study, training
from experiments.pirf.training import Outcome
from jaxlab import physics
from jaxlab.diffusion import edm


def outcome(interior, std, flags):
    every = np.asarray([0.2, 0.2, 0.2])
    spread = np.stack([np.asarray(std), np.ones(3)], axis=1)
    flagged = np.zeros((3, 5), bool)
    flagged[:, [training.SIGNS.index(f) for f in flags]] = True
    return Outcome(np.asarray(interior), every, spread, 0.1 * every, spread - 1.0, flagged)


def test_rows_and_table_are_of_the_steps_of_training():
    """The second of three numbers of steps; seeds are averaged, the base stands for all of them."""
    found = {
        "PIRF": [outcome([9.0, x, 9.0], [9.0, 0.98, 9.0], []) for x in (1.0, 2.0, 3.0, 2.0, 2.0)],
        methods.PUBLISHED: [outcome([9.0, 0.1, 9.0], [9.0, 0.06, 9.0], ["amplitude"])] * 5,
        study.BASE: [outcome([9.0, 8.0, 9.0], [9.0, 1.0, 9.0], [])],
    }
    made = {row.metric: row for row in study.rows(found, Config())}
    first = made["Mean square of the residual, interior, PIRF"]
    assert first.value == pytest.approx(2.0) and first.baseline == ("base", pytest.approx(8.0))
    assert first.verdict == "better"
    assert made["Share of runs that the detector flags, PIRF"].value == 0.0
    assert made[f"Share of runs that the detector flags, {methods.PUBLISHED}"].value == 1.0
    lines = {line[0]: line for line in study.table(found, Config()).rows}
    assert lines["base"][1] == 8.0 and lines[methods.PUBLISHED][-1] == "amplitude"
    assert lines["PIRF"][3] == pytest.approx(0.98)
    assert "base 8, PIRF 2, published reward 0.1" in study.summary(found, Config())


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="methods must be among PIRF; .*, got 'PIFR'"):
        study.run(Config(methods=("PIFR",)), tmp_path)
    with pytest.raises(ValueError, match="num_grad_steps must be at most num_steps, got 30 of 20"):
        Config(num_grad_steps=30)
    with pytest.raises(ValueError, match="hold must be positive, got 0"):
        Config(hold=0.0)
    assert not list(tmp_path.iterdir())


def test_base_is_a_small_file_of_a_network_of_its_own(tmp_path):
    params = base.load()
    assert base.FILE.stat().st_size < 1_000_000
    x = jax.ShapeDtypeStruct((1, base.SIZE, base.SIZE, 2), jnp.float32)
    expected = jax.eval_shape(
        base.NETWORK.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32)
    )
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and np.all(np.isfinite(a))
    base.save(params, tmp_path / "again.npz")
    for a, b in zip(
        *map(jax.tree.leaves, (params, base.load(tmp_path / "again.npz"))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_base_is_near_the_best_that_there_is():
    """Its loss on new data is above that of the exact denoiser at every level, and near it."""
    data = jnp.asarray(physics.make_dataset(base.LAW, jax.random.key(11), 512, base.SIZE))
    exact = physics.gaussian_law(base.LAW, base.SIZE)
    denoiser = physics.denoiser_of(base.NETWORK, base.load())
    loss = jax.jit(lambda noise, sigma: edm.loss(denoiser, data, noise, sigma))
    for i, sigma in enumerate((0.05, 0.3, 1.0)):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), data.shape)
        found = float(loss(noise, jnp.full(512, sigma)))
        least = float(exact.least_loss(jnp.asarray(sigma)))
        assert 0.97 * least < found < 3.0 * least


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_smoke_run_lowers_the_residual_and_is_not_flagged(tmp_path):
    config = dataclasses.replace(PRESETS["smoke"])
    found = study.run(config, tmp_path)
    made = {row.metric: row for row in found.rows}
    interior = made["Mean square of the residual, interior, PIRF"]
    assert interior.value is not None and interior.baseline is not None
    assert interior.value < interior.baseline[1]
    assert made["Share of runs that the detector flags, PIRF"].value == 0.0
