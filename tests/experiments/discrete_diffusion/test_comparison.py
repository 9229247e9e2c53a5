"""The comparison of policies over sequences: figures, tuning, resuming, exact parts."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from experiments.discrete_diffusion import Config, figures, methods, rows, study, tasks, training
from experiments.discrete_diffusion.parts import gradients, orders, steps
from experiments.harness import result
from jaxlab.core import logging, loop
from jaxlab.diffusion.discrete import exact, schedules

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = Config(
    num_seeds=2,
    parts=("tables",),
    tasks=("permutation",),
    methods=("FKL", "factored"),
    rewards=160,
    batch=16,
    num_steps=2,
    width=8,
    num_layers=1,
    learning_rates=(1e-2,),
    tuning_seeds=0,
    evaluations=4,
    eval_draws=32,
)


@pytest.mark.slow
def test_rows_are_what_was_logged_and_a_second_run_trains_nothing(tmp_path, monkeypatch):
    first = study.run(TINY, tmp_path)
    logged = {
        name: logging.read_jsonl(tmp_path / "units" / f"permutation--{name}.jsonl")
        for name in TINY.methods
    }
    assert len(logged["FKL"]) == 5  # every 2 of 10 steps
    final = {name: np.mean(log[-1]["eval/reward_seeds"]) for name, log in logged.items()}
    row = first.rows[0]
    assert row.metric.startswith("Mean reward of FKL")
    assert row.value == pytest.approx(final["FKL"], rel=1e-6)
    assert row.baseline == ("factored", pytest.approx(final["factored"], rel=1e-6))
    cells = {cells[0]: cells for cells in first.tables[0].rows}
    assert cells["FKL"][4] == "learning rate 0.01, temperature 0.1"
    assert {figure.path for figure in first.figures} == {
        "course.png",
        "curves.png",
        "diversity.png",
        "evaluations.png",
    }

    def fail(*args, **options):
        raise AssertionError("a finished unit was trained again")

    monkeypatch.setattr(loop, "_compile_chunk", fail)
    again = study.run(TINY, tmp_path)
    assert [(row.metric, row.value) for row in again.rows] == [
        (row.metric, row.value) for row in first.rows
    ]


def invented(final, curve=None):
    final = np.asarray(final, float)
    if curve is None:
        curve = np.array([1, 4]), np.stack([final, final])
    course = {"policy/entropy": curve[1].mean(axis=1)}
    return training.Outcome(final, np.full(final.shape, 0.5), curve, {}, course)


def test_settings_are_chosen_on_other_seeds(tmp_path, monkeypatch):
    """And half of the calls, a unit for each rate; one that loses a seed is not taken."""
    config = dataclasses.replace(
        TINY, methods=("FKL", "genetic"), learning_rates=(1e-3, 1e-2), tuning_seeds=2
    )
    worth = {(1e-3, 0.3): [0.7, 0.5], (1e-2, 0.1): [0.9, 0.1], (1e-2, 0.03): [0.95, np.nan]}
    asked = []

    def train(task, name, config, values, folder, *, steps):
        asked.append((name, config.seed, config.num_seeds, config.rewards))
        pairs = list(zip(*values.values(), strict=True)) or [()] * config.num_seeds
        counts = dict.fromkeys(pairs, 0)
        final = []
        for pair in pairs:
            final.append(worth.get(pair, [0.2, 0.2])[counts[pair] % 2])
            counts[pair] += 1
        return invented(final)

    monkeypatch.setattr(training, "train", train)
    found = study.run(config, tmp_path)
    assert asked == [
        ("FKL", config.seed + 1000, 2 * 3, 80),
        ("FKL", config.seed + 1000, 2 * 3, 80),
        ("FKL", config.seed, 2, 160),
        ("genetic", config.seed, 2, 160),
    ]
    assert found.tables[0].rows[0][4] == "learning rate 0.001, temperature 0.3"


def test_idle_steps_change_nothing_in_what_is_drawn():
    """So that one program draws in any number of steps: its law by enumeration."""
    logits = np.random.default_rng(0).normal(size=(3**3, 3, 2))
    law = functools.partial(
        exact.sampler_law, exact.table_denoiser(jnp.asarray(logits)), vocab=2, length=3
    )
    for num_steps in (1, 2, 5):
        idle = methods.make_schedule(num_steps, 5)
        assert idle.num_steps == 5
        wanted = law(schedules.make_schedule(num_steps))
        np.testing.assert_allclose(law(idle), wanted, rtol=1e-5)


def test_three_tasks_leave_an_empty_panel(tmp_path):
    """Which pictures for a page have, and those for a phone have not."""
    found = {(task, "FKL"): invented([0.1, 0.2]) for task in ("parity", "permutation", "product")}
    for figure in figures.draw(found, tmp_path):
        with PIL.Image.open(tmp_path / figure.path) as wide:
            assert wide.width > wide.height
        with PIL.Image.open(result.phone(tmp_path / figure.path)) as narrow:
            assert 2 * narrow.width < narrow.height < 4 * narrow.width


def test_early_is_the_first_quarter():
    calls = np.array([10, 20, 30, 40, 50, 60, 70, 80])
    rewards = np.arange(16.0).reshape(8, 2)
    np.testing.assert_allclose(rows.early(invented([1, 2], (calls, rewards))), [1.0, 2.0])


def test_a_run_that_was_not_looked_at_in_its_first_quarter_has_no_early_reward(tmp_path):
    late = invented([0.5, 0.6], (np.array([30, 60]), np.full((2, 2), 0.5)))
    gone = invented([np.nan, np.nan], (np.zeros(0), np.zeros((0, 2))))
    assert np.isnan(rows.early(late)).all() and np.isnan(rows.early(gone)).all()
    for forward, told in ((late, 0), (gone, 1), (invented([0.5, 0.6]), 1)):
        found = {("parity", "FKL"): forward, ("parity", "RKL"): late}
        first = [row for row in rows.rows(found) if "first quarter" in row.metric]
        assert len(first) == told


def test_independent_tokens_can_do_in_full_what_is_a_sum():
    """And not what depends: the best product on permutations of six is one of them."""
    made = tasks.make_tasks(dataclasses.replace(TINY, tasks=("product", "permutation", "parity")))
    assert made["product"].table.max() == pytest.approx(1.0)
    assert made["permutation"].table.sum() == 720
    assert made["parity"].table.mean() == 0.5


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_takes_the_settings_that_it_tunes(name):
    made = tasks.make_tasks(TINY)["permutation"]
    method = methods.make_method(name, made, TINY)
    if method.algorithm.check is not None:
        method.algorithm.check({k: np.asarray(x) for k, x in method.sweep.items()})
    assert TINY.batch // 2 < method.rewards <= TINY.batch


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_method_is_made_anew_for_every_task(name):
    """Steps of the first task, of which half are looked at, would be too many for the second."""
    made = tasks.make_tasks(dataclasses.replace(TINY, tasks=("parity", "permutation")))
    methods.make_method(name, made["parity"], dataclasses.replace(TINY, num_steps=8))
    methods.make_method(name, made["permutation"], dataclasses.replace(TINY, num_steps=2))


def test_sampling_in_few_steps_has_the_errors_of_the_closed_forms(monkeypatch):
    """Parity by its formula; of permutations one step is n! / n^n."""
    monkeypatch.setattr(steps, "STEPS", (1, 2, 3, 8))
    errors = steps.measure()
    expected = [steps.parity_closed_form(4, n) for n in steps.STEPS]
    np.testing.assert_allclose(errors.right["parity of 4 bits"], expected, rtol=1e-9)
    assert steps.parity_closed_form(4, 3) == pytest.approx(0.7222222222)
    agents = errors.right["4 agents, all different"]
    np.testing.assert_allclose(agents[:2], [0.09375, 0.30164931], rtol=1e-7)


def test_orders_of_revealing_are_those_of_the_chain(monkeypatch):
    """In one step a product of marginals, in six all is exact but what parallel draws cost."""
    monkeypatch.setattr(orders, "DRAWS", 2**14)
    monkeypatch.setattr(orders, "STEPS", (1, 6))
    some = {name: orders.ORDERS[name] for name in ("ancestral", "largest", "drawn")}
    monkeypatch.setattr(orders, "ORDERS", some)
    law = orders.chain()
    assert law.sum() == pytest.approx(1.0)
    found = orders.measure(0)
    clean = exact.sequences(orders.V, orders.K)
    marginals = [np.bincount(clean[:, k], law, orders.V) for k in range(orders.K)]
    product = np.prod([p[clean[:, k]] for k, p in enumerate(marginals)], axis=0)
    once = 0.5 * np.abs(product - law).sum()
    denoise = exact.table_denoiser(
        exact.conditionals(jnp.asarray(law), vocab=orders.V, length=orders.K)
    )
    true = exact.sampler_law(denoise, schedules.make_schedule(6), vocab=orders.V, length=orders.K)
    six = 0.5 * np.abs(np.asarray(true) - law).sum()
    for order, distance in found.distance.items():
        assert distance[0] == pytest.approx(once, abs=0.03)
        if order != "drawn":  # whose places depend on what was drawn
            assert distance[1] == pytest.approx(six if order == "ancestral" else 0.0, abs=0.04)
    assert found.distance["drawn"][1] > 2.0 * found.floor
    np.testing.assert_allclose(found.places["ancestral"], 1 / 6, atol=0.02)
    np.testing.assert_array_equal(found.places["largest"], np.eye(6))
    open_ = -np.mean([np.sum(p * np.log(p)) for p in marginals])
    for entropy in found.entropy.values():
        assert entropy[0] == pytest.approx(open_, rel=1e-4)


def test_single_steps_alone_point_along_the_policy_gradient(monkeypatch):
    monkeypatch.setattr(gradients, "TOYS", 4)
    found, ratio = gradients.measure(3)
    np.testing.assert_allclose(found["step"], 1.0, atol=1e-12)
    assert (found["bound"] < 0.999).all() and (found["mean_field"] < 0.99).all()
    assert found["mean_field"].mean() < found["bound"].mean()
    error = {k: np.abs(np.log(x / ratio["true"])).mean() for k, x in ratio.items()}
    assert 0.01 < error["bound"] < error["mean_field"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("chess",)}, "tasks must be among"),
        ({"methods": ("PPO",)}, "methods must be among"),
        ({"methods": ("SVDD",)}, "the part tables has none of the methods SVDD"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(TINY, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 12},
        {"seed": -1},
        {"seed": 2**70},
        {"rewards": 10},
        {"learning_rates": ()},
        {"learning_rates": (float("nan"), 1e-3)},
        {"learning_rates": (1e-3, 0.0)},
        {"learning_rates": (1e-3, 1e-3)},
        {"tasks": ("parity", "parity")},
        {"team_games": ()},
        {"team_frames": 1},
        {"dna_rates": (float("inf"),)},
        {"tasks": ()},
        {"parts": ()},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        dataclasses.replace(TINY, **options)
