"""JaxMARL's IPPO from a checkout: a small one of the same form, and what is said without one."""

import sys
import types

import numpy as np
import pytest

from experiments.rivals import jaxmarl_ippo

SCRIPT = """
import hydra
import wandb
from omegaconf import OmegaConf
import jax.numpy as jnp

def make_train(config):
    updates = config["TOTAL_TIMESTEPS"] // config["NUM_STEPS"] // config["NUM_ENVS"]
    def train(rng):
        wandb.log({})
        return {"metrics": {"returned_episode_returns": -3.0 * jnp.arange(float(updates))}}
    return train

@hydra.main(version_base=None)
def main(config):
    raise AssertionError
"""


def checkout(tmp_path, text=SCRIPT):
    path = tmp_path / jaxmarl_ippo.SCRIPT
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return tmp_path


def test_a_script_of_its_form_is_trained(tmp_path, monkeypatch):
    """Nothing is logged anywhere, modules are as before, and returns are those of one agent."""
    mine = types.ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", mine)
    module = jaxmarl_ippo.load(checkout(tmp_path))
    assert sys.modules["wandb"] is mine and module.wandb is not mine
    assert "omegaconf" not in sys.modules or sys.modules["omegaconf"].OmegaConf is not None
    sizes = jaxmarl_ippo.Sizes(total_steps=20 * 16 * 128, seeds=2)
    run = jaxmarl_ippo.theirs(module, sizes, num_agents=3)
    np.testing.assert_allclose(run.returns, [-18.5, -18.5])  # the last two of twenty
    assert run.seconds > 0.0


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no checkout of JaxMARL: there is no baselines"):
        jaxmarl_ippo.load(tmp_path)
    with pytest.raises(ValueError, match="needs no_such_package: pip install"):
        jaxmarl_ippo.load(checkout(tmp_path, "import no_such_package"))
