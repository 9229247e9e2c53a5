"""The Monte Carlo run by the loop, as a program of its own so that tests can kill it.

python census_run.py DIRECTORY NUM_STEPS [--signal SIGKILL --after STEP]
"""

import argparse
import hashlib
import os
import signal

import jax
import jax.numpy as jnp

from jaxlab import queueing as q
from jaxlab.core import loop, sharding


def monte_carlo(mesh=None):
    inputs = jax.tree.map(lambda x: x[:2], q.demo5(family="weibull", kappa=1.2, num_days=120))
    inputs = jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs
    )
    beds = jnp.asarray([[18, 22], [40, 45]], jnp.int32)
    return q.make_monte_carlo(inputs, beds=beds, replications_per_step=256, hist_size=96, mesh=mesh)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("num_steps", type=int)
    parser.add_argument("--signal", default="")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--devices", action="store_true", help="spread over all devices")
    args = parser.parse_args()

    seen = []

    def strike(step, metrics):
        seen.append(step)
        if args.signal and step == args.after:
            os.kill(os.getpid(), getattr(signal, args.signal))

    mesh = sharding.make_mesh() if args.devices else None
    result = loop.run(
        monte_carlo(mesh),
        jax.random.key(11),
        num_steps=args.num_steps,
        chunk_size=2,
        directory=args.directory,
        log=[strike],
        state_sharding=None if mesh is None else sharding.replicated(mesh),
    )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(result.state._replace(key=jax.random.key_data(result.state.key))):
        digest.update(jax.device_get(leaf).tobytes())
    print(result.step, int(result.state.replications), digest.hexdigest())
    print("first chunk ended at", seen[0])


if __name__ == "__main__":
    main()
