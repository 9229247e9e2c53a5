"""Replay: a ring against a Python list, uniform draws, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.learning import replay

EXAMPLE = {"x": jnp.zeros((2,)), "n": jnp.zeros((), jnp.int32)}


def batch(first, count=3):
    n = jnp.arange(first, first + count, dtype=jnp.int32)
    return {"x": jnp.stack([n, -n], axis=1).astype(jnp.float32), "n": n}


def test_ring_keeps_the_newest():
    ring = replay.init(6, EXAMPLE, batch=3)
    add = jax.jit(replay.add, donate_argnums=0)
    kept: list[int] = []
    for first in (0, 3, 6, 9, 12):
        ring = add(ring, batch(first))
        kept = (kept + list(range(first, first + 3)))[-6:]
        assert ring.size == min(len(kept), 6)
        assert sorted(np.asarray(ring.data["n"])[: int(ring.size)]) == kept
        np.testing.assert_array_equal(ring.data["x"][:, 0], ring.data["n"].astype(float))
    assert add._cache_size() == 1


def test_draws_are_uniform_over_what_there_is(key):
    ring = replay.add(replay.init(30, EXAMPLE, batch=3), batch(5))
    ring = replay.add(ring, batch(8))
    drawn, index = replay.sample(key, ring, 60_000)
    counts = np.bincount(drawn["n"], minlength=11)[5:11]
    assert counts.sum() == 60_000 and set(np.asarray(index)) == set(range(6))
    assert np.abs(counts / 10_000 - 1).max() < 4 / np.sqrt(10_000)


def test_what_is_written_back_is_found_again(key):
    ring = replay.add(replay.init(6, EXAMPLE, batch=3), batch(0))
    drawn, index = replay.sample(key, ring, 4)
    ring = replay.write(ring, index, {**drawn, "x": drawn["x"] + 100.0})
    hit = np.isin(np.arange(3), index)
    np.testing.assert_array_equal(np.asarray(ring.data["x"])[:3, 0] >= 100.0, hit)


@pytest.mark.parametrize("capacity, count", [(7, 3), (0, 1), (6, 0)])
def test_a_write_never_wraps(capacity, count):
    with pytest.raises(ValueError, match="multiple"):
        replay.init(capacity, EXAMPLE, batch=count)


def test_a_ring_takes_its_own_batches():
    ring = replay.init(6, jnp.zeros(()), batch=3)
    with pytest.raises(ValueError, match="multiple of the 4"):
        replay.add(ring, jnp.zeros(4))
