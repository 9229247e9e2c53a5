"""The benchmark of imitation: what it times, and torch's step where it is installed."""

import jax
import numpy as np
import pytest

from experiments.bench import imitation, timing
from experiments.rivals import torch_imitation, torch_side

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]
TINY = imitation.Sizes("tiny", 8, 8, 8, 3, 2, 2)


def test_without_torch_its_side_is_not_measured_and_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_side, "available", lambda: False)
    found = imitation.run(tmp_path, (TINY,))
    assert [item.name for item in found] == ["stage two, 3 seeds", "stage two, 1 seed"]
    assert [item.rival_name for item in found] == ["a Python loop"] * 2
    # The loop trains one seed, so that three take it three times as long.
    assert found[0].rival.median_s == 3.0 * found[1].rival.median_s
    assert found[0].work == 3.0 * found[1].work > 0.0
    assert timing.as_table(found).caption.count("torch is not installed") == 1
    assert all(0.0 < item.rate < item.ceiling for item in found)


def test_torch_says_what_we_say_and_moves_what_we_move():
    torch = pytest.importorskip("torch")
    state = imitation._learner(TINY).init(jax.random.key(0))
    assert imitation._difference(TINY, state) < 1e-5
    params = jax.tree.map(np.asarray, state.params)
    demos = imitation._demonstrations()
    columns = [
        [np.asarray(getattr(data, field)) for field in ("obs", "action", "next_obs")]
        for data in (demos.expert, demos.logs)
    ]
    seen = []
    original = torch.optim.Adam
    torch.optim.Adam = lambda tensors, lr: seen.append((tensors, lr)) or original(tensors, lr=lr)
    try:
        update = torch_imitation.trainer(
            params["head"], params["representation"], params["policy"], *columns, batch=8
        )
    finally:
        torch.optim.Adam = original
    before = [[x.detach().clone() for x in tensors] for tensors, _ in seen]
    update()
    # Adam's first step is its rate, wherever there is a gradient.
    for (tensors, rate), old in zip(seen, before, strict=True):
        moved = np.concatenate(
            [(x.detach() - y).abs().numpy().ravel() for x, y in zip(tensors, old, strict=True)]
        )
        np.testing.assert_allclose(moved.max(), rate, rtol=1e-2)
    assert [rate for _, rate in seen] == [1e-3, 1e-5]
