"""A random walk run by the loop, as a program of its own so that tests can kill it.

python walk.py DIRECTORY NUM_STEPS [--signal SIGKILL --after STEP]
"""

import argparse
import os
import signal

import jax
import jax.numpy as jnp

from jaxlab.core import loop, types


def walk(size: int = 4) -> types.Algorithm:
    def init(key):
        return {"key": key, "position": jnp.zeros(size), "steps": jnp.zeros((), jnp.int32)}

    def step(state):
        key, key_move = jax.random.split(state["key"])
        position = state["position"] + jax.random.normal(key_move, state["position"].shape)
        state = {"key": key, "position": position, "steps": state["steps"] + 1}
        return state, {"walk/first": position[0], "walk/steps": state["steps"].astype(jnp.float32)}

    return types.Algorithm(init, step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("num_steps", type=int)
    parser.add_argument("--signal", default="")
    parser.add_argument("--after", type=int, default=0)
    args = parser.parse_args()

    seen = []

    def strike(step, metrics):
        seen.append(step)
        if args.signal and step == args.after:
            os.kill(os.getpid(), getattr(signal, args.signal))

    result = loop.run(
        walk(),
        jax.random.key(7),
        num_steps=args.num_steps,
        chunk_size=5,
        directory=args.directory,
        log=[strike],
    )
    print(result.step, result.state["position"].tobytes().hex())
    print("first chunk ended at", seen[0])


if __name__ == "__main__":
    main()
