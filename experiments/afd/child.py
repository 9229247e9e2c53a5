"""Programs that need devices of their own: run in other processes, which answer in JSON.

`ask` starts them with host devices, as one process or several of a run under `jax.distributed`.
`python -m experiments.afd.child NAME JSON` is such a process. Products of matrices use all cores
that a process may use, so that a device of one core is a process that is kept to it.
"""

import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import sharding
from jaxlab.serving.afd import connectors, processes, spmd, stages, two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3
from jaxlab.serving.model.step3 import Step3Config, Step3Params

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800.0
MARK = "answer: "
EXACT = step3.TINY._replace(num_layers=2, dense_layers=(0,))
"""The model whose bits are compared."""


def ask(
    name: str,
    *,
    num_devices: int = 1,
    num_processes: int = 1,
    pinned: bool = False,
    **arguments: Any,
) -> Any:
    """Runs one of `PROGRAMS` on host devices, and returns what its first process answers.

    Args:
        name: of the program.
        num_devices: host devices of each process.
        num_processes: processes, on the loopback if more than one.
        pinned: whether process i is kept to core i.
        **arguments: of the program, as JSON has them.

    Raises:
        RuntimeError: if a process fails, with the end of what it printed.
    """
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(num_processes)}
    else:  # they are not of the run of their parent
        for given in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            environment.pop(given, None)
        environment["SLURM_NTASKS"] = "1"
    running = [
        _start(name, arguments, environment, i if num_processes > 1 else None, pinned)
        for i in range(num_processes)
    ]
    said = []
    try:
        for process in running:
            said.append(process.communicate(timeout=TIMEOUT_S)[0])
            if process.returncode:
                raise RuntimeError(f"{name} failed:\n{said[-1][-3000:]}")
    finally:
        for process in running:
            process.kill()
    (answer,) = (line for line in said[0].splitlines() if line.startswith(MARK))
    return json.loads(answer.removeprefix(MARK))


def _start(
    name: str,
    arguments: dict[str, Any],
    environment: Mapping[str, str],
    process_id: int | None = None,
    pinned: bool = False,
) -> subprocess.Popen:
    of_run = {"JAX_PROCESS_ID": str(process_id)} if "JAX_NUM_PROCESSES" in environment else {}
    known = environment.get("JAXLAB_CORES") or ",".join(map(str, cores()))
    core = known.split(",")[process_id or 0] if pinned else ""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.afd.child", name, json.dumps(arguments)],
        cwd=REPOSITORY,
        # A process that is kept to one core starts another, which is kept to the next.
        env={**environment, "JAXLAB_CORES": known, "JAXLAB_CORE": core, **of_run},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cores() -> list[int]:
    """The cores that this process may use, of those systems that can keep a process to one."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def exactness(realisation: str, topology: list) -> dict[str, Any]:
    """Compares two decoding steps with the monolith's and the plain one's.

    Returns:
        Whether logits have the monolith's bits, and their largest distance from the plain step's
        over the largest logit.
    """
    given = Topology(*topology)
    params = step3.init_step3(jax.random.key(7), EXACT)
    room: dict[str, Any] = {"batch": 4, "max_pages": 4, "page": 2, "dtype": jnp.float32}
    plain = jax.jit(lambda c, t, a: step3.step3_decode_step(params, c, t, EXACT, active=a))
    want = _steps(plain, step3.init_step3_cache(EXACT, 12, **room))
    found = []
    others = {"two meshes": two_meshes.make_two_mesh_decode, "one program": spmd.make_spmd_decode}
    for make in (two_meshes.make_monolith_decode, others[realisation]):
        decoder = make(params, EXACT, given)
        found.append(_steps(decoder.decode, decoder.init_cache(12, **room)))
    distance = np.abs(found[1] - want).max() / np.abs(want).max()
    return {"equal": bool(np.array_equal(*found)), "distance": float(distance)}


def _steps(decode: Callable, cache: Any) -> np.ndarray:
    """Logits of two steps: the second request is at rest in the first, two tokens in the second."""
    logits = []
    for number, (count, active) in enumerate(((1, (1, 0, 1, 1)), (2, (1, 1, 1, 1)))):
        tokens = jax.random.randint(jax.random.key(number), (4, count), 0, EXACT.vocab)
        out, cache, _ = decode(cache, tokens, jnp.asarray(active, bool))
        logits.append(np.asarray(out)[np.asarray(active, bool)].reshape(-1, EXACT.vocab))
    return np.concatenate(logits)


def overlap(
    realisation: str,
    micro_batches: int,
    num_layers: int,
    width: int,
    requests: int,
    repeats: int,
    sleep_ms: float | None,
) -> dict[str, Any]:
    """Decodes with a micro-batch of `requests` each, and tells what it took.

    Args:
        realisation: "alone", where one stage runs after another on one device; "two meshes", "one
            program", or "server process".
        sleep_ms: milliseconds that stages sleep, of a model that computes next to nothing; None for
            the matrix products of a model of the width, whose messages are in eight bits.

    Returns:
        Seconds of every step, and unless it is one program the stages of each, as rows of a trace.
    """
    if sleep_ms is not None:
        _let_stages_sleep(sleep_ms / 1e3)
        width, requests = 64, 1
    wire = "exact" if sleep_ms is not None else "fp8"
    topology = Topology(1, 1, micro_batches=micro_batches, wire=wire)
    params, config = _overlap_params(num_layers, width)
    events: list = []
    with contextlib.ExitStack() as stack:
        match realisation:
            case "alone":
                decoder = two_meshes.make_two_mesh_decode(
                    params,
                    config,
                    topology,
                    devices=jax.devices()[:1] * 2,
                    threads=False,
                    record=events.append,
                )
            case "two meshes":
                decoder = two_meshes.make_two_mesh_decode(
                    params, config, topology, record=events.append
                )
            case "one program":
                decoder = spmd.make_spmd_decode(params, config, topology)
            case _:
                server = stack.enter_context(_server(topology, num_layers, width, sleep_ms))
                decoder = processes.make_process_decode(
                    params, config, topology, [server], record=events.append
                )
        B = micro_batches * requests
        page = -(-(2 + repeats) // 8) * 8
        cache = decoder.init_cache(B + 1, batch=B, max_pages=1, page=page, dtype=jnp.float32)
        tokens = np.zeros((B, 1), np.int32)
        seconds, traces = [], []
        for number in range(2 + repeats):
            events.clear()
            begin = time.perf_counter()
            logits, cache, _ = decoder.decode(cache, tokens)
            jax.block_until_ready(logits)
            if number >= 2:  # the first two compile
                seconds.append(time.perf_counter() - begin)
                traces.append(list(events))
    return {"seconds": seconds, "traces": traces}


def dispatch(num_layers: int, micro_batches: int, repeats: int) -> dict[str, list[float]]:
    """Decodes with every realisation a model that computes next to nothing.

    Returns:
        Seconds of each step: of the plain step, and of every realisation, by name.
    """
    topology = Topology(1, 1, micro_batches=micro_batches)
    params, config = _overlap_params(num_layers, 64)
    room: dict[str, Any] = {
        "batch": micro_batches,
        "max_pages": 1,
        "page": 256,
        "dtype": jnp.float32,
    }
    plain = jax.jit(functools.partial(step3.step3_decode_step, config=config), donate_argnums=1)
    with _server(topology, num_layers, 64, None) as server:
        decoders = {
            "stages on one device": two_meshes.make_monolith_decode(params, config, topology),
            "two meshes": two_meshes.make_two_mesh_decode(params, config, topology),
            "one program": spmd.make_spmd_decode(params, config, topology),
            "server process": processes.make_process_decode(params, config, topology, [server]),
        }
        steps: dict[str, tuple[Callable, Any]] = {
            name: (decoder.decode, decoder.init_cache(micro_batches + 1, **room))
            for name, decoder in decoders.items()
        }
        cache = step3.init_step3_cache(config, micro_batches + 1, **room)
        steps["one step"] = (functools.partial(plain, params), cache)
        tokens = np.zeros((micro_batches, 1), np.int32)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        caches = {name: cache for name, (_, cache) in steps.items()}
        for number in range(3 + repeats):  # in turns: what slows the machine slows all
            for name, (decode, _) in steps.items():
                begin = time.perf_counter()
                logits, caches[name], _ = decode(caches[name], tokens)
                jax.block_until_ready(logits)
                if number >= 3:
                    seconds[name].append(time.perf_counter() - begin)
    return seconds


@contextlib.contextmanager
def _server(
    topology: Topology, num_layers: int, width: int, sleep_ms: float | None
) -> Iterator[connectors.Connector]:
    """Starts a feed-forward server on the second core."""
    port = _free_port()
    arguments = {
        "port": port,
        "topology": topology,
        "num_layers": num_layers,
        "width": width,
        "sleep_ms": sleep_ms,
    }
    process = _start("serve", arguments, os.environ, 1, pinned=bool(os.environ.get("JAXLAB_CORE")))
    try:
        params, config = _overlap_params(num_layers, width)
        identity = processes.server_identity(params, config, topology, 0)
        yield connectors.connect("127.0.0.1", port, identity, timeout=300.0)
    finally:
        process.kill()


def serve(port: int, topology: list, num_layers: int, width: int, sleep_ms: float | None) -> None:
    """Is the feed-forward server of `overlap`."""
    if sleep_ms is not None:
        _let_stages_sleep(sleep_ms / 1e3)
    given = Topology(*topology)
    params, config = _overlap_params(num_layers, width)
    identity = processes.server_identity(params, config, given, 0)
    layers = processes.server_shards(params, config, given, 0)
    link = connectors.listen(identity, port=port, timeout=300.0).accept(300.0)
    processes.serve_ffn(link, layers, config, given, threading.Event())


def _overlap_params(num_layers: int, width: int) -> tuple[Step3Params, Step3Config]:
    config = overlap_model(num_layers, width)
    return step3.init_step3(jax.random.key(0), config), config


def overlap_model(num_layers: int, width: int) -> Step3Config:
    """The model whose overlap is measured: its stages take about the same time."""
    return Step3Config(
        vocab=64,
        num_layers=num_layers,
        d_model=width,
        num_heads=width // 64,
        head_dim=64,
        q_rank=width // 2,
        dense_layers=(),
        dense_hidden=width,
        num_experts=2,
        num_active=1,
        expert_hidden=width // 2,
    )


def _let_stages_sleep(seconds: float) -> None:
    """Makes both stages of this process sleep before they end: device code, but for the work."""

    def sleep(x: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return x

    def slower(stage: Callable) -> Callable:
        def slow(*args: Any) -> Any:
            leaves, tree = jax.tree.flatten(stage(*args))
            kind = jax.ShapeDtypeStruct(leaves[0].shape, leaves[0].dtype)
            leaves[0] = jax.pure_callback(sleep, kind, leaves[0])
            return jax.tree.unflatten(tree, leaves)

        return slow

    stages.read_stage = slower(stages.read_stage)
    stages.ffn_stage = slower(stages.ffn_stage)


PROGRAMS = {"exactness": exactness, "overlap": overlap, "dispatch": dispatch, "serve": serve}


if __name__ == "__main__":
    if core := os.environ.get("JAXLAB_CORE"):
        os.sched_setaffinity(0, {int(core)})
    sharding.initialize()
    print(MARK + json.dumps(PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
