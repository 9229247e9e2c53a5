"""The training loop: equal to a Python loop, and bit-exact through every kind of interruption."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import checkpoint, logging, loop, types

WALK = pathlib.Path(__file__).with_name("walk.py")
_spec = importlib.util.spec_from_file_location("walk", WALK)
walk_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(walk_module)
walk = walk_module.walk


def run_walk(directory, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, str(WALK), str(directory), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def test_equals_a_python_loop_and_averages_metrics_over_chunks(key):
    algorithm = walk()
    step = jax.jit(algorithm.step)
    state, first = algorithm.init(key), []
    for _ in range(13):
        state, metrics = step(state)
        first.append(float(metrics["walk/first"]))
    logged = []
    result = loop.run(
        algorithm, key, num_steps=13, chunk_size=5, log=[lambda s, m: logged.append((s, m))]
    )
    assert result.step == 13
    np.testing.assert_array_equal(result.state["position"], state["position"])
    assert [s for s, _ in logged] == [5, 10, 13]
    for (_, metrics), chunk in zip(logged, (first[:5], first[5:10], first[10:]), strict=True):
        assert metrics["walk/first"] == pytest.approx(np.mean(chunk), rel=1e-5)


def test_a_ratio_of_sums_is_summed_and_left_out_where_nothing_was_counted(key):
    def step(state):
        state, _ = walk().step(state)
        k = state["steps"]
        ended = (k > 10) & (k % 3 == 0)  # an "episode" of k points ends at steps 12, 15 and 18
        total = jnp.where(ended, k, 0).astype(jnp.float32)
        return state, {"env/return": types.Mean(total, ended.astype(jnp.int32))}

    logged = []
    algorithm = types.Algorithm(walk().init, step)
    log = [lambda s, m: logged.append(m.get("env/return"))]
    result = loop.run(algorithm, key, num_steps=23, chunk_size=5, log=log)
    # Chunks end at 5, 10, 15, 20, 23; a mean over steps would say 5.4 and 3.6, and 0 elsewhere.
    assert logged == [None, None, (12 + 15) / 2, 18.0, 21.0]
    assert result.metrics["env/return"] == 21.0


def test_traces_one_program_per_chunk_length(key):
    traces = []

    def step(state):
        traces.append(1)
        return walk().step(state)

    loop.run(types.Algorithm(walk().init, step), key, num_steps=40, chunk_size=10)
    assert len(traces) == 1
    loop.run(types.Algorithm(walk().init, step), key, num_steps=15, chunk_size=10)
    assert len(traces) == 3  # a full chunk and a shorter last one


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    process = run_walk(tmp_path_factory.mktemp("whole") / "run", "40")
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_killed_process_resumes_bit_identically(tmp_path, uninterrupted, name, status):
    killed = run_walk(tmp_path, "40", "--signal", name, "--after", "20")
    assert killed.returncode == status, killed.stderr
    assert not killed.stdout
    if name == "SIGTERM":  # the chunk after the signal was finished and saved
        assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name == "25"]
    resumed = run_walk(tmp_path, "40")
    state, first = resumed.stdout.splitlines()
    assert state == uninterrupted.splitlines()[0]
    # It went on where it had been, not from the start; a kill may lose the save in flight.
    assert int(first.split()[-1]) in ({30} if name == "SIGTERM" else {20, 25})
    steps = [record["step"] for record in logging.read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


def test_interrupt_saves_the_finished_chunk_and_restores_handlers(tmp_path, key):
    before = signal.getsignal(signal.SIGINT)

    def strike(step, metrics):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.run(walk(), key, num_steps=50, chunk_size=5, directory=tmp_path, log=[strike])
    assert signal.getsignal(signal.SIGINT) is before
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == 15


def test_non_finite_metric_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, key):
    def step(state):
        state, metrics = walk().step(state)
        metrics["walk/loss"] = jnp.where(state["steps"] == 13, jnp.nan, 1.0)
        return state, metrics

    algorithm = types.Algorithm(walk().init, step)
    with pytest.raises(loop.NonFiniteError, match=r"walk/loss .* 10 and 15; .* step 10 is kept"):
        loop.run(algorithm, key, num_steps=50, chunk_size=5, directory=tmp_path)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == 10
        like = jax.eval_shape(algorithm.init, key)
        assert int(checkpoint.restore(manager, like).state["steps"]) == 10


def test_early_stop_and_evaluation(tmp_path, key):
    result = loop.run(
        walk(),
        key,
        num_steps=100,
        chunk_size=5,
        directory=tmp_path,
        evaluate=lambda state: {"eval/twice": 2 * state["steps"]},
        stop=lambda step, metrics: metrics["eval/twice"] >= 30,
        save_every=100,
    )
    assert result.step == 15
    assert result.metrics["eval/twice"] == 30
    again = loop.run(walk(), key, num_steps=15, chunk_size=5, directory=tmp_path)
    np.testing.assert_array_equal(again.state["position"], result.state["position"])
    assert again.metrics == result.metrics  # nothing was left to do


def test_a_stopped_run_stays_stopped(tmp_path, key):
    def run():
        return loop.run(
            walk(),
            key,
            num_steps=100,
            chunk_size=5,
            directory=tmp_path,
            stop=lambda step, metrics: metrics["walk/steps"] > 11,
        )

    assert run().step == run().step == 15


def test_resume_with_other_settings_names_the_field(tmp_path, key):
    def run(num_steps, **config):
        loop.run(walk(), key, num_steps=num_steps, chunk_size=5, directory=tmp_path, config=config)

    run(5, rate=0.1, size=(4, 2))
    run(10, rate=0.1, size=(4, 2))
    with pytest.raises(ValueError, match=r"rate=0.1, now it is 0.2"):
        run(15, rate=0.2, size=(4, 2))


def test_signal_during_the_last_log_is_not_swallowed(tmp_path, key):
    def strike(step, metrics):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.run(walk(), key, num_steps=10, chunk_size=5, directory=tmp_path, log=[strike])


def test_evaluation_is_guarded_too(key):
    with pytest.raises(loop.NonFiniteError, match="eval/bad"):
        loop.run(walk(), key, num_steps=4, chunk_size=2, evaluate=lambda s: {"eval/bad": jnp.inf})


def test_metrics_must_be_scalars(key):
    def step(state):
        return state, {"walk/position": state["position"]}

    with pytest.raises(ValueError, match=r"'walk/position' must be a scalar, got shape \(4,\)"):
        loop.run(types.Algorithm(walk().init, step), key, num_steps=4, chunk_size=2)


def test_resume_with_another_state_names_the_leaf(tmp_path, key):
    loop.run(walk(4), key, num_steps=5, chunk_size=5, directory=tmp_path)
    with pytest.raises(ValueError, match=r"'position', expected float32\[5\], found float32\[4\]"):
        loop.run(walk(5), key, num_steps=10, chunk_size=5, directory=tmp_path)


@pytest.mark.parametrize("name", ["num_steps", "chunk_size", "save_every"])
def test_rejects_counts_below_one(key, name):
    counts = {"num_steps": 4, "chunk_size": 2, "save_every": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        loop.run(walk(), key, **counts)
