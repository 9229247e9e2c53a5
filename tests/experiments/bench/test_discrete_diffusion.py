"""The benchmark of discrete diffusion: what it times, and torch's network where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import discrete_diffusion, timing
from experiments.rivals import torch_diffusion, torch_side
from jaxlab.rl.discrete import convolutions

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = discrete_diffusion.Sizes(20, 4, 1, 8, 4, (2, 4), 2)


@pytest.mark.slow
def test_without_torch_its_side_is_not_measured_and_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_side, "available", lambda: False)
    found = discrete_diffusion.run(tmp_path, TINY)
    assert [item.name for item in found] == [
        "sampling in 2 steps",
        "sampling in 4 steps",
        "a gradient step",
        "transformer, 2 steps",
        "FKL, whole loop, 2 steps of sampling",
    ]
    table = timing.as_table(found)
    assert [cells[4] for cells in table.rows[:3]] == ["torch: not measured"] * 3
    assert "autoregressive, 20 passes" in table.rows[3][4] and table.rows[4][4] == "–"
    assert "torch is not installed" in table.caption
    assert all(item.ratio is None for item in found[:3]) and found[3].ratio > 0.0
    assert all(item.rate == pytest.approx(4 / item.ours.median_s) for item in found)


def test_memory_of_sampling_does_not_grow_with_its_steps():
    """No path is stored: a hundred times the steps take no more room than log-probabilities."""
    policy, params = discrete_diffusion._network(TINY)

    def planned(num_steps):
        draw = jax.jit(
            lambda params, key: discrete_diffusion._draw(policy, TINY, num_steps, params, key)
        )
        return 1e6 * timing.temporary_megabytes(draw.lower(params, jax.random.key(0)).compile())

    few, many = planned(4), planned(400)
    path = 396 * TINY.batch * TINY.length * 4  # bytes of the states between
    assert many - few < 0.5 * path


@pytest.mark.slow
def test_torch_says_what_we_say_and_learns():
    pytest.importorskip("torch")
    policy, params = discrete_diffusion._network(TINY)
    params = jax.tree.map(
        lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
    )
    network = torch_diffusion.make_network(params, dilations=convolutions.DILATIONS)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, (3, TINY.length))
    wanted = policy.denoise(params)(jnp.asarray(tokens, jnp.int32), jnp.ones(3))
    np.testing.assert_allclose(torch_diffusion.logits(network, tokens), wanted, atol=1e-4)
    drawn = torch_diffusion.sampler(network, batch=4, length=TINY.length, vocab=4, num_steps=3)()
    assert drawn.shape == (4, TINY.length) and 0 <= drawn.min() <= drawn.max() < 4
    corpus = np.zeros((8, TINY.length), np.int64)
    step = torch_diffusion.trainer(network, corpus, batch=8, vocab=4, learning_rate=0.03)
    losses = [step() for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])
