"""The examples of the room's README run, and end where it says."""

import pathlib
import re

import jax
import numpy as np

from jaxlab import marl


def test_the_examples_of_the_readme_run(optax_promotes):
    text = pathlib.Path(marl.__file__).with_name("README.md").read_text(encoding="utf-8")
    first, *blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(first, names)
    np.testing.assert_allclose(marl.score(names["game"], names["result"].state), 11.0, rtol=0.01)
    for block in blocks:
        exec(block, names)
    # A game of one's own: both agents on one cell end it, and a step apart costs a tenth.
    where, obs, reward, met = names["step"](jax.numpy.array([1, 4]), jax.numpy.array([1, 0]))
    assert where.tolist() == [2, 4] and obs.argmax(axis=1).tolist() == [2, 4]
    assert not met and np.isclose(reward, -0.1)
    assert names["learner"].init(jax.random.key(0)).env.obs.shape == (16, 2, 5)
