"""Fields of one's own on the command line: what is read, warned of, and refused."""

import dataclasses
import sys

import numpy as np
import pytest

from experiments import __main__ as cli
from experiments.pirf import Config, rows, study, tasks

MODULE = """
import jax.numpy as jnp
import numpy as np

def slope(z):  # u = 2 f: the law of the fields below
    return z[..., 1] - 2.0 * z[..., 0]

def doubled(z):
    return jnp.stack([z[..., 0], 2.0 * z[..., 0]], axis=-1)

def nothing(z):
    return 0.0 * z[..., 0]

def half(z):
    return slope(z).astype(jnp.bfloat16)

def by_numpy(z):
    return np.gradient(np.asarray(slope(z)), axis=1)

def infinite(z):
    return slope(z) / 0.0

def flat(z):
    return slope(z).sum(axis=(1, 2))

def broken(z):
    raise RuntimeError("no such law")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_law.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_law"
    sys.modules.pop("my_law", None)


def fields(num=24, size=8, seed=0):
    f = np.random.default_rng(seed).normal(size=(num, size, size))
    return np.stack([f, 2.0 * f], axis=-1).astype(np.float32)


def given(tmp_path, x, name="fields", **other):
    np.savez(tmp_path / "fields.npz", **{name: x})
    return dataclasses.replace(
        Config(data=str(tmp_path / "fields.npz"), residual="my_law:slope"), **other
    )


def test_lawful_fields_are_a_task_and_others_are_warned_of(tmp_path, module, recwarn):
    task = tasks.own_task(given(tmp_path, fields(), solver="my_law:doubled", solution=(1,)))
    assert task.check is not None and task.check.obeys and not recwarn.list
    assert task.check.mean_square < 1e-10
    assert task.data().shape == (18, 8, 8, 2) and task.judged().shape == (6, 8, 8, 2)
    assert np.max(np.abs(task.data())) <= 1.0 + 1e-5
    x = fields()
    x[..., 1] = x[::-1, ..., 1]
    with pytest.warns(UserWarning, match="the residual of the data is not near zero"):
        task = tasks.own_task(given(tmp_path, x))
    assert task.check is not None and not task.check.obeys


def test_a_residual_that_strangers_have_too_is_warned_of(tmp_path, module):
    with pytest.warns(UserWarning, match=r"zero or not finite \(0\), so nothing says"):
        task = tasks.own_task(given(tmp_path, fields(), residual="my_law:nothing"))
    (row,) = rows.of_data(task)
    assert row.note.startswith("That of fields put together from several is zero")


def test_what_is_far_off_is_warned_of(tmp_path, module):
    x = fields(100)
    x[0, 0, 0] = [1e4, 2e4]  # obeys the law, and squeezes all else
    with pytest.warns(UserWarning, match="channel 0 has a standard deviation of .* of its range"):
        tasks.own_task(given(tmp_path, x))


def test_other_fields_are_another_unit(tmp_path, module):
    told = [tasks.own_task(given(tmp_path, fields(seed=s))).about["fields"] for s in (0, 0, 1)]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., 0], r"fields must be \[N, H, W, C\], got \(24, 8, 8\); add an axis"),
        (lambda x: x[:3], "fields must be at least 16, got 3"),
        (lambda x: x.astype(np.float16), "fields must be float32 or float64, got float16"),
        (lambda x: np.where(x > 2.0, np.nan, x), "data must be finite, got [0-9]+ values"),
        (lambda x: x * np.array([1.0, 0.0]), "every channel must vary, got a constant '1'"),
        (lambda x: x[:, :7], "even number of rows and columns, got 7 by 8"),
    ],
    ids=["axes", "few", "half", "nan", "constant", "odd"],
)
def test_fields_that_are_refused(change, message, tmp_path, module):
    with pytest.raises(ValueError, match=message):
        tasks.own_task(given(tmp_path, change(fields())))


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ("my_law", "residual must be module:function, got 'my_law'"),
        ("no_law:slope", "cannot import no_law of the residual: ModuleNotFoundError"),
        ("my_law:slop", "my_law has no function 'slop' for the residual"),
        ("my_law:number", "my_law has no function 'number' for the residual"),
        ("my_law:half", "law must return float32 or float64, got bfloat16"),
        ("my_law:by_numpy", "law must be written in jax.numpy"),
        ("my_law:infinite", "the residual of the data must be finite"),
        ("my_law:flat", r"law must return \[N, h, w\]"),
        ("my_law:broken", r"the residual my_law:broken failed .* RuntimeError\('no such law'\)"),
    ],
)
def test_residuals_that_are_refused(residual, message, tmp_path, module):
    with pytest.raises(ValueError, match=message):
        tasks.own_task(given(tmp_path, fields(), residual=residual))


def test_files_that_are_none(tmp_path, module):
    with pytest.raises(FileNotFoundError, match="no fields .*nothing.npz; write them by"):
        tasks.read_fields(str(tmp_path / "nothing.npz"))
    (tmp_path / "text.npz").write_text("f,u")
    with pytest.raises(ValueError, match="text.npz must be an npz file"):
        tasks.read_fields(str(tmp_path / "text.npz"))
    with pytest.raises(ValueError, match="must hold an array named 'fields', got x"):
        tasks.own_task(given(tmp_path, fields(), name="x"))
    np.savez(tmp_path / "objects.npz", fields=np.array([{}, None], object))
    with pytest.raises(ValueError, match="objects.npz must hold an array of numbers"):
        tasks.read_fields(str(tmp_path / "objects.npz"))
    np.savez(tmp_path / "torn.npz", fields=fields())
    whole = bytearray((tmp_path / "torn.npz").read_bytes())
    whole[len(whole) // 2] ^= 255
    (tmp_path / "torn.npz").write_bytes(whole)
    with pytest.raises(ValueError, match="torn.npz must hold an array of numbers"):
        tasks.read_fields(str(tmp_path / "torn.npz"))
    np.save(tmp_path / "one.npy", fields())
    with pytest.raises(ValueError, match="named 'fields', got an unnamed one"):
        tasks.read_fields(str(tmp_path / "one.npy"))


def test_methods_of_a_released_operator_do_not_fit_own_fields(tmp_path, module):
    config = given(tmp_path, fields(), methods=("published reward",))
    with pytest.raises(ValueError, match="methods must be among data; PIRF; hold 0.2; not held"):
        study.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_line_on_the_command_line(tmp_path, module, capsys):
    np.savez(tmp_path / "fields.npz", fields=fields()[..., 0])
    asked = ["run", "pirf", "--data", "fields.npz", "--residual", "my_law:slope", "--out", "run"]
    assert cli.main(asked) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: fields must be [N, H, W, C], got (24, 8, 8)")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_a_whole_run_of_own_fields(tmp_path, module):
    config = given(
        tmp_path,
        fields(64),
        num_seeds=1,
        methods=("PIRF",),
        base_updates=20,
        updates=2,
        num_steps=4,
        num_grad_steps=2,
        fields=8,
        judged_steps=(4,),
        sensors=4,
    )
    found = study.run(config, tmp_path / "run")
    first = found.rows[0]
    assert first.claim == "The residual of the data is near zero"
    assert first.value is not None and first.value < 1e-10
    assert {figure.path for figure in found.figures} >= {"fields_own.png", "path_own.png"}
    for figure in found.figures:
        assert (tmp_path / "run" / figure.path).exists()
