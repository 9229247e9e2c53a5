"""The benchmark of PIRF: memory grows with K, generators are timed beside their rivals."""

import re

import pytest

from experiments.bench import pirf, timing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]
TINY = pirf.Sizes(8, 4, 2, 4, (1, 3), 2, 2, 8, 2, 2)


def test_all_is_timed_and_memory_grows_with_the_steps_of_gradients(tmp_path):
    found = pirf.run(tmp_path, TINY)
    memory = [float(re.search(r"memory ([0-9.]+) MB", x.note)[1]) for x in found[:2]]
    assert memory[0] < memory[1]
    assert [item.rival_name for item in found] == [pirf.NO_TORCH] * 3 + ["NumPy and SciPy"] * 4
    assert all(item.ratio is not None and item.ratio > 0.0 for item in found[3:])
    assert "torch is not there yet" in timing.as_table(found).caption
