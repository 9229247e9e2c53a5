"""The training loop: equal to a Python loop, and bit-exact through every kind of interruption."""

import functools
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

from jaxlab.core import checkpoint, lock, logging, loop, types
from jaxlab.learning import seeds

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


def walk_here(directory):
    """The same run in this process: its end, and where its first chunk ended."""
    seen = []
    result = loop.run(
        walk(),
        jax.random.key(7),
        num_steps=40,
        chunk_size=5,
        directory=directory,
        log=[lambda step, metrics: seen.append(step)],
    )
    return f"{result.step} {np.asarray(result.state['position']).tobytes().hex()}", seen[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return walk_here(tmp_path_factory.mktemp("whole") / "run")[0]


@pytest.mark.parametrize(
    ("name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_killed_process_resumes_bit_identically(tmp_path, uninterrupted, name, status):
    killed = run_walk(tmp_path, "40", "--signal", name, "--after", "20")
    assert killed.returncode == status, killed.stderr
    assert not killed.stdout
    assert (tmp_path / "checkpoints" / ".lock").exists() == (name == "SIGKILL")
    if name == "SIGTERM":  # the chunk after the signal was finished and saved
        assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name == "25"]
    state, first = walk_here(tmp_path)
    assert state == uninterrupted
    # It went on where it had been, not from the start; a kill may lose the save in flight.
    assert first in ({30} if name == "SIGTERM" else {20, 25})
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


def test_settings_that_cannot_be_kept_are_refused_before_the_first_step(tmp_path, key):
    """And NaN, which is not equal to itself, is the same setting when it comes again."""

    def run(num_steps, **config):
        return loop.run(
            walk(), key, num_steps=num_steps, chunk_size=5, directory=tmp_path / "a", config=config
        )

    for wrong in ({1, 2}, np.float32(1.0), jnp.ones(2)):
        with pytest.raises(ValueError, match="config must be of numbers, strings, lists and dicts"):
            run(5, rate=wrong)
    assert not (tmp_path / "a").exists()
    run(5, rate=float("nan"), sizes=(1, 2))
    assert run(10, rate=float("nan"), sizes=(1, 2)).step == 10


def test_metrics_keep_double_precision(x64):
    def step(n):
        value = 1e9 + 1.0 + n
        return n + 1.0, {"a/value": value, "a/ratio": types.Mean(value, jnp.int64(1))}

    algorithm = types.Algorithm(lambda key: jnp.zeros((), jnp.float64), step)
    metrics = loop.run(algorithm, jax.random.key(0), num_steps=3, chunk_size=3).metrics
    assert metrics["a/value"] == metrics["a/ratio"] == 1e9 + 2.0


def test_an_evaluation_does_not_replace_a_metric(key):
    with pytest.raises(ValueError, match="'walk/first' is of step and of evaluate; rename one"):
        loop.run(walk(), key, num_steps=5, chunk_size=5, evaluate=lambda state: {"walk/first": 1.0})


def test_signal_during_the_last_log_is_not_swallowed(tmp_path, key):
    def strike(step, metrics):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.run(walk(), key, num_steps=10, chunk_size=5, directory=tmp_path, log=[strike])


def test_evaluation_is_guarded_too(key):
    with pytest.raises(loop.NonFiniteError, match="eval/bad"):
        loop.run(walk(), key, num_steps=4, chunk_size=2, evaluate=lambda s: {"eval/bad": jnp.inf})


def test_metrics_must_be_scalars_or_of_seeds(key):
    def run(metrics):
        step = lambda state: (state, metrics(state))  # noqa: E731
        loop.run(types.Algorithm(walk().init, step), key, num_steps=4, chunk_size=2)

    with pytest.raises(ValueError, match=r"'a' must be a scalar, or \[seeds\].* \(2, 2\)"):
        run(lambda state: {"a": state["position"].reshape(2, 2)})
    with pytest.raises(ValueError, match="as many seeds as the others"):
        run(lambda state: {"a": state["position"], "b": state["position"][:3]})
    with pytest.raises(ValueError, match="'a_std' would stand for that of 'a'"):
        run(lambda state: {"a": state["position"], "a_std": state["position"]})


NEVER = 10**6


def silent(leaf, at=13, start=0.0, value=jnp.nan):
    """A walk with one more leaf, which no metric shows: `value` from a step on."""

    def init(key):
        return walk().init(key) | {leaf: jnp.full(3, start)}

    def step(state):
        rest = {name: x for name, x in state.items() if name != leaf}
        rest, metrics = walk().step(rest)
        spoiled = state[leaf].at[1].set(value)
        return rest | {leaf: jnp.where(rest["steps"] >= at, spoiled, state[leaf])}, metrics

    return types.Algorithm(init, step)


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf], ids=["nan", "inf"])
def test_a_state_that_is_not_finite_is_not_saved_though_no_metric_shows_it(tmp_path, key, value):
    algorithm = silent("hidden", value=value)
    with pytest.raises(
        loop.NonFiniteError,
        match=r"leaf 'hidden' of the state .* at step 15, .* 10 and 15; .* step 10 is kept",
    ):
        loop.run(algorithm, key, num_steps=50, chunk_size=5, directory=tmp_path)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == 10
        like = jax.eval_shape(algorithm.init, key)
        found = checkpoint.restore(manager, like).state["hidden"]
    np.testing.assert_array_equal(found, 0.0)


def test_what_begins_at_infinity_may_stay_there(tmp_path, key):
    """As the best value so far does; also after a resume. NaN is another thing."""
    best = silent("best", at=7, start=jnp.inf, value=1.0)
    for num_steps in (5, 20):
        state = loop.run(
            best, key, num_steps=num_steps, chunk_size=5, directory=tmp_path / "best"
        ).state
    np.testing.assert_array_equal(state["best"], [jnp.inf, 1.0, jnp.inf])
    worse = silent("best", start=jnp.inf)
    loop.run(worse, key, num_steps=10, chunk_size=5, directory=tmp_path / "worse")
    with pytest.raises(loop.NonFiniteError, match="'best' .* at step 15"):
        loop.run(worse, key, num_steps=20, chunk_size=5, directory=tmp_path / "worse")


def test_a_folder_has_one_writer(tmp_path, key):
    def intrude(step, metrics):
        with pytest.raises(lock.LockedError, match=f"process {os.getpid()} on .* is at work in"):
            loop.run(walk(), key, num_steps=50, chunk_size=5, directory=tmp_path)

    loop.run(walk(), key, num_steps=10, chunk_size=5, directory=tmp_path, log=[intrude])
    assert [r["step"] for r in logging.read_jsonl(tmp_path / "metrics.jsonl")] == [5, 10]


def test_another_algorithm_does_not_go_on_with_a_folder(tmp_path, key):
    loop.run(walk(), key, num_steps=5, chunk_size=5, directory=tmp_path)
    other = types.Algorithm(walk().init, lambda state: walk().step(state))
    named = walk()._replace(name="another walk")
    for algorithm, name in ((other, r"\.<lambda>"), (named, "another walk")):
        with pytest.raises(ValueError, match=rf"'walk.<locals>.step', now it is '.*{name}'"):
            loop.run(algorithm, key, num_steps=10, chunk_size=5, directory=tmp_path)


def test_names_look_behind_partials_and_wrappers():
    """What lays seeds side by side wraps the step, which may be a partial of another function."""
    step = functools.partial(lambda rate, state: (state, {}), 0.1)
    wrapped = seeds.over_seeds(walk()._replace(step=step), 2)
    assert types.name_of(wrapped.step) == types.name_of(jax.jit(step)) == step.func.__qualname__
    assert types.name_of(seeds.over_seeds(walk(), 2).step) == "walk.<locals>.step"


def test_a_damaged_log_is_cut_and_a_step_that_was_saved_is_in_it(tmp_path, key):
    whole = loop.run(walk(), key, num_steps=20, chunk_size=5, directory=tmp_path / "whole")
    path = tmp_path / "parts" / "metrics.jsonl"
    loop.run(walk(), key, num_steps=10, chunk_size=5, directory=path.parent)
    first, second = path.read_bytes().splitlines()
    # A line torn by another write, one of bytes that are no text; the last record never written.
    path.write_bytes(second[:9] + first + b"\n" + first + b"\n\xff\xfe\n" + second[:20])
    with pytest.warns(
        RuntimeWarning, match=r"metrics.jsonl was damaged: lines 1, 3 dropped"
    ) as told:
        parts = loop.run(walk(), key, num_steps=20, chunk_size=5, directory=path.parent)
    assert len(told) == 1
    np.testing.assert_array_equal(parts.state["position"], whole.state["position"])
    both = [
        [(r["step"], r["walk/first"], r["walk/steps"]) for r in logging.read_jsonl(log)]
        for log in (tmp_path / "whole" / "metrics.jsonl", path)
    ]
    assert both[0] == both[1]


def test_a_finished_run_whose_last_record_is_missing_gets_it_back(tmp_path, key):
    """It was killed between the two; who reads the log would take the chunk before for the last."""
    path, closed = tmp_path / "metrics.jsonl", []
    loop.run(walk(), key, num_steps=10, chunk_size=5, directory=tmp_path)
    whole = logging.read_jsonl(path)
    path.write_bytes(path.read_bytes().splitlines()[0] + b'\n{"step": 1')

    def log(step, metrics): ...

    log.close = lambda: closed.append(True)
    loop.run(walk(), key, num_steps=10, chunk_size=5, directory=tmp_path, log=[log])
    assert logging.read_jsonl(path) == whole
    assert closed == [True]


def test_loggers_are_told_of_compilation_before_it(key):
    told = []

    def log(step, metrics):
        told.append(step)

    log.note = lambda step, text: told.append((step, text))
    loop.run(walk(), key, num_steps=12, chunk_size=5, log=[log])
    assert told == [(0, "compiling 5 steps ..."), 5, 10, (10, "compiling 2 steps ..."), 12]


def test_keys_are_used_once(key):
    with jax.debug_key_reuse(True):
        loop.run(walk(), key, num_steps=6, chunk_size=3)
        step = jax.jit(walk().step)
        state, _ = step(jax.jit(walk().init)(key))
        step(state)


def explosive(*steps):
    """Walks side by side, of which each has NaN for its position from a step of its own on."""
    ends = jnp.asarray(steps)

    def init(key):
        keys = jax.random.split(key, len(steps))
        return {
            "key": keys,
            "x": jnp.zeros(len(steps)),
            "steps": jnp.zeros((), jnp.int32),  # shared by all
        }

    def step(state):
        keys = jax.vmap(jax.random.split)(state["key"])
        steps = state["steps"] + 1
        moved = state["x"] + jax.vmap(jax.random.normal)(keys[:, 1])
        x = jnp.where(steps >= ends, jnp.nan, moved)
        ended = (steps % 4 == 0) & (jnp.arange(len(ends)) > 0)  # no episode of the first ends
        metrics = {
            "walk/x": x,
            "walk/return": types.Mean(jnp.where(ended, x, 0.0), ended.astype(jnp.int32)),
            "walk/steps": steps.astype(jnp.float32),
        }
        return {"key": keys[:, 0], "x": x, "steps": steps}, metrics

    axes = {"key": 0, "x": 0, "steps": None}
    return types.Algorithm(init, step, axes)


def test_two_of_three_seeds_blow_up_and_the_third_goes_on(tmp_path, key):
    algorithm = explosive(7, NEVER, 13)
    step, state, xs = jax.jit(algorithm.step), algorithm.init(key), []
    for _ in range(20):
        state, metrics = step(state)
        xs.append(np.asarray(metrics["walk/x"], np.float64))
    of_chunk = np.mean(np.reshape(xs, (4, 5, 3)), axis=1)

    with pytest.warns(RuntimeWarning) as caught:
        result = loop.run(
            algorithm,
            key,
            num_steps=20,
            chunk_size=5,
            directory=tmp_path,
            evaluate=lambda state: {"eval/double": 2.0 * state["x"]},
        )
    told = [str(warning.message) for warning in caught]
    assert [text.partition(":")[0] for text in told] == [
        "seed 0 of 3 is frozen",
        "seed 2 of 3 is frozen",
    ]
    assert told[0].endswith("eval/double, walk/x is not finite at step 7")
    assert result.frozen == {0: 7, 2: 13}
    assert result.step == 20

    records = logging.read_jsonl(tmp_path / "metrics.jsonl")
    assert [r.get("seeds/frozen") for r in records] == [None, 1.0, 2.0, 2.0]
    alive = [[0, 1, 2], [1, 2], [1], [1]]
    for record, values, left in zip(records, of_chunk, alive, strict=True):
        by_seed = record["walk/x_seeds"]
        assert [x is not None for x in by_seed] == [i in left for i in range(3)]
        np.testing.assert_allclose([by_seed[i] for i in left], values[left], rtol=1e-5)
        assert record["walk/x"] == pytest.approx(values[left].mean(), rel=1e-5)
        assert record["eval/double_seeds"][1] is not None
        assert record["walk/steps"] == record["step"] - 2  # of all seeds, so without a spread
        assert "walk/steps_std" not in record
    assert records[0]["walk/x_std"] == pytest.approx(of_chunk[0].std(ddof=1), rel=1e-5)
    assert "walk/x_std" not in records[2]  # one seed has none
    # Of `Mean` a seed without a count has no value; it does not pull the mean to zero.
    at_4 = xs[3]
    assert records[0]["walk/return_seeds"][0] is None
    np.testing.assert_allclose(records[0]["walk/return_seeds"][1:], at_4[1:], rtol=1e-5)
    assert records[0]["walk/return"] == pytest.approx(at_4[1:].mean(), rel=1e-5)
    steps, x = logging.series(records, "walk/x_seeds")
    assert steps.tolist() == [5, 10, 15, 20]
    np.testing.assert_array_equal(np.isnan(x), ~np.isfinite(of_chunk))


def test_resumed_after_a_freeze_equals_uninterrupted(tmp_path, key):
    def run(folder, num_steps):
        return loop.run(
            explosive(7, NEVER, 13), key, num_steps=num_steps, chunk_size=5, directory=folder
        )

    with pytest.warns(RuntimeWarning, match="seed"):
        whole = run(tmp_path / "whole", 20)
    with pytest.warns(RuntimeWarning, match="seed 0"):
        run(tmp_path / "parts", 10)
    with pytest.warns(RuntimeWarning, match="seed 2") as caught:
        parts = run(tmp_path / "parts", 20)
    assert len(caught) == 1  # the first seed is known
    assert parts.frozen == whole.frozen == run(tmp_path / "parts", 20).frozen
    np.testing.assert_array_equal(parts.state["x"], whole.state["x"])
    both = [logging.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for record in (*both[0], *both[1]):
        for name in ("perf/steps_per_second", "perf/compile_seconds"):
            record.pop(name, None)
    assert both[0] == both[1]


def test_a_seed_whose_state_alone_is_lost_is_frozen_and_those_frozen_are_no_news(tmp_path, key):
    """The second is lost in its state at step 8, the first by its metric at step 7."""
    plain = explosive(7, NEVER, NEVER)

    def init(key):
        return plain.init(key) | {"hidden": jnp.zeros((3, 2))}

    def step(state):
        rest, metrics = plain.step({n: x for n, x in state.items() if n != "hidden"})
        spoiled = state["hidden"].at[1].set(jnp.nan)
        return rest | {"hidden": jnp.where(rest["steps"] >= 8, spoiled, state["hidden"])}, metrics

    algorithm = types.Algorithm(init, step, plain.axes | {"hidden": 0})
    with pytest.warns(RuntimeWarning) as caught:
        result = loop.run(algorithm, key, num_steps=20, chunk_size=5, directory=tmp_path)
    assert [str(w.message) for w in caught] == [
        "seed 0 of 3 is frozen: walk/x is not finite at step 7",
        "seed 1 of 3 is frozen: leaf 'hidden' of the state is not finite at step 10",
    ]
    assert result.frozen == {0: 7, 1: 10} and result.step == 20
    records = logging.read_jsonl(tmp_path / "metrics.jsonl")
    assert [[x is not None for x in r["walk/x_seeds"]] for r in records] == [
        [True, True, True],
        *[[False, False, True]] * 3,
    ]
    assert [r.get("seeds/frozen") for r in records] == [None, 2.0, 2.0, 2.0]


def test_the_run_stops_when_no_seed_is_left(tmp_path, key):
    with (
        pytest.warns(RuntimeWarning, match="seed"),
        pytest.raises(loop.NonFiniteError, match="at steps 7, 14; the checkpoint at step 10 is"),
    ):
        loop.run(explosive(7, 14), key, num_steps=50, chunk_size=5, directory=tmp_path)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        like = jax.eval_shape(explosive(7, 14).init, key)
        assert checkpoint.restore(manager, like).frozen == {0: 7}


def test_a_mean_over_seeds_that_is_not_finite_asks_for_the_seeds(key):
    algorithm = explosive(7, NEVER)
    with pytest.raises(loop.NonFiniteError, match="eval/x is not finite .*return .seeds."):
        loop.run(
            algorithm,
            key,
            num_steps=10,
            chunk_size=5,
            evaluate=lambda state: {"eval/x": jnp.mean(state["x"])},
        )


def test_seeds_trace_one_program_too(key):
    traces = []

    def step(state):
        traces.append(1)
        return explosive(7, NEVER).step(state)

    algorithm = types.Algorithm(explosive(7, NEVER).init, step)
    with pytest.warns(RuntimeWarning, match="seed 0"):
        loop.run(algorithm, key, num_steps=30, chunk_size=5)
    assert len(traces) == 1


def test_resume_with_another_state_names_the_leaf(tmp_path, key):
    loop.run(walk(4), key, num_steps=5, chunk_size=5, directory=tmp_path)
    with pytest.raises(ValueError, match=r"'position', expected float32\[5\], found float32\[4\]"):
        loop.run(walk(5), key, num_steps=10, chunk_size=5, directory=tmp_path)


@pytest.mark.parametrize("name", ["num_steps", "chunk_size", "save_every"])
def test_rejects_counts_below_one(key, name):
    counts = {"num_steps": 4, "chunk_size": 2, "save_every": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        loop.run(walk(), key, **counts)
