"""The benchmark of PIRF: memory grows with K, generators are timed beside their rivals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import pirf, timing
from experiments.rivals import torch_physics, torch_side
from jaxlab import nn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]
TINY = pirf.Sizes(8, 4, 2, 4, (1, 3), 2, 2, 8, 2, 2)


def test_all_is_timed_and_memory_grows_with_the_steps_of_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_side, "available", lambda: False)
    found = pirf.run(tmp_path, TINY)
    memory = [float(re.search(r"memory ([0-9.]+) MB", x.note)[1]) for x in found[:2]]
    assert memory[0] < memory[1]
    assert [item.rival_name for item in found] == ["torch: not measured"] * 3 + [
        "NumPy and SciPy"
    ] * 4
    assert all(item.ratio is not None and item.ratio > 0.0 for item in found[3:])
    assert "torch is not installed" in timing.as_table(found).caption


def test_torch_has_our_gradient_and_takes_our_step():
    torch = pytest.importorskip("torch")
    shape = (8, 8, 2)
    unet = nn.Unet(2, 8, (1, 2), 1, attention=(8,), dropout=0.0)
    params = unet.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    assert pirf.gradient_error(unet, params, shape) < 1e-4
    network = torch_physics.make_network(unet, pirf.shaken(params))
    before = {name: x.detach().clone() for name, x in network.tuned.items()}
    torch_physics.trainer(network, batch=2, shape=shape, num_steps=3, num_grad_steps=1)()
    # Adam's first step is its rate, wherever there is a gradient.
    for name, x in network.tuned.items():
        moved = torch.max(torch.abs(x.detach() - before[name]))
        np.testing.assert_allclose(float(moved), 1e-4, rtol=1e-2, err_msg=name)
