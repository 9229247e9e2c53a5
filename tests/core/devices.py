"""Programs for test_sharding.py, each run in processes with their own devices.

python devices.py map                        prints a digest of a sharded computation
python devices.py join ADDRESS COUNT INDEX DIRECTORY NUM_STEPS [KILLED_AT]
                                             joins a multi-process run and runs the loop over it;
                                             process 1 is killed at a step
"""

import hashlib
import os
import signal
import sys

import jax
import jax.numpy as jnp

from jaxlab.core import loop, sharding, types


def estimate_pi(key):
    points = jax.random.uniform(key, (1000, 2))
    return jnp.sum(jnp.sum(points**2, axis=1) < 1.0), jax.random.normal(key, (7,)).cumsum()


def sharded_walk(mesh):
    """Independent walkers, one per row, split over the devices."""

    def init(key):
        return {"keys": jax.random.split(key, 8), "x": jnp.zeros((8, 3))}

    def move(carry):
        key, x = carry
        key, key_move = jax.random.split(key)
        return key, x + jax.random.normal(key_move, x.shape)

    def step(state):
        keys, x = sharding.sharded_map(move, (state["keys"], state["x"]), mesh)
        by_walker = jnp.mean(x**2, axis=1)  # split over the devices like the walkers
        return {"keys": keys, "x": x}, {"walk/square": jnp.mean(x**2), "walk/each": by_walker}

    return types.Algorithm(init, step)


def run_map():
    mesh = sharding.make_mesh()
    keys = sharding.shard(jax.random.split(jax.random.key(1), 16), mesh)
    mapped = jax.jit(lambda k: sharding.sharded_map(estimate_pi, k, mesh))
    counts, paths = mapped(keys)
    state = loop.run(
        sharded_walk(mesh),
        jax.random.key(2),
        num_steps=6,
        chunk_size=3,
        state_sharding=sharding.along(mesh),
    ).state
    digest = hashlib.sha256(
        jax.device_get(counts).tobytes()
        + jax.device_get(paths).tobytes()
        + jax.device_get(state["x"]).tobytes()
    ).hexdigest()
    print(jax.device_count(), len(state["x"].sharding.device_set), digest)


def join(address, count, index, directory, num_steps, killed_at=0):
    processes = sharding.initialize(address, count, index, lost_after=8.0 if killed_at else 60.0)
    mesh = sharding.make_mesh()
    seen = []

    def stop(step, metrics):
        if step == killed_at and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    result = loop.run(
        sharded_walk(mesh),
        jax.random.key(2),
        num_steps=num_steps,
        chunk_size=3,
        directory=directory,
        log=[lambda step, metrics: seen.append(step)],
        stop=stop,
        state_sharding=sharding.along(mesh),
    )
    first = seen[0] if seen else 0  # process 0 logs
    both = [repr(result.metrics[name]) for name in ("walk/square", "walk/each")]
    print(processes, jax.device_count(), both[0], first, both[1])


if __name__ == "__main__":
    if sys.argv[1] == "map":
        run_map()
    else:
        address, count, index, directory, *steps = sys.argv[2:]
        join(address, int(count), int(index), directory, *map(int, steps))
