"""Files of daily inputs: exact in both directions, and every fault named with its line."""

import datetime

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.queueing.census import occupancy
from jaxlab.queueing.data import input_files
from jaxlab.queueing.stays import conditional


def _inputs(seed=0, num_days=6):
    rng = np.random.default_rng(seed)
    return occupancy.QueueInputs(
        lam=jnp.asarray(rng.gamma(2.0, 1.0, (3, num_days))),
        mu=jnp.asarray(rng.gamma(9.0, 1.0, (3, num_days))),
        sig2=jnp.asarray(rng.gamma(9.0, 9.0, (3, num_days))),
        kappa=jnp.asarray([1.34, 1.0, 0.97]),
        family=jnp.asarray(
            [conditional.FAMILIES.index(f) for f in ("fisk", "exponential", "weibull")]
        ),
        smax=jnp.asarray([325, 57, 52]),
    )


@pytest.mark.parametrize("origin", [None, datetime.date(2019, 12, 30)], ids=["days", "dates"])
def test_processed_round_trip_is_exact(tmp_path, origin):
    path, inputs = tmp_path / "processed.csv", _inputs()
    input_files.write_processed(
        path, inputs, site_names=["North", "Site 2", "Site 10"], origin=origin
    )
    back = input_files.read_processed(path)
    assert back.site_names == ("North", "Site 2", "Site 10") and back.origin == origin
    for name, a, b in zip(inputs._fields, back.inputs, inputs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


def test_processed_round_trip_is_exact_in_float64(tmp_path, x64):
    path, inputs = tmp_path / "processed.csv", _inputs(1)
    input_files.write_processed(path, inputs)
    back = input_files.read_processed(path).inputs
    assert back.lam.dtype == jnp.float64
    np.testing.assert_array_equal(back.mu, inputs.mu)


def test_processed_without_laws_takes_keywords(tmp_path):
    path = tmp_path / "processed.csv"
    path.write_text("Site,Day,Lam,Mu,Sig2\n2,8,1,5,25\n1,7,2,6,36\n2,7,3,7,49\n1,8,4,8,64\n")
    back = input_files.read_processed(path, family=["gamma", "burr"], kappa=1.5, smax=60)
    np.testing.assert_array_equal(back.inputs.lam, [[2, 4], [3, 1]])
    np.testing.assert_array_equal(back.inputs.sig2, [[36, 64], [49, 25]])
    assert [conditional.FAMILIES[i] for i in back.inputs.family] == ["gamma", "burr"]
    np.testing.assert_array_equal(back.inputs.smax, [60, 60])
    with pytest.raises(ValueError, match="no column 'kappa'"):
        input_files.read_processed(path, family="gamma", smax=60)
    with pytest.raises(ValueError, match="one value or 2, got 3"):
        input_files.read_processed(path, family="gamma", smax=[1, 2, 3], kappa=1.0)
    with pytest.raises(ValueError, match="'normal' is not one of"):
        input_files.read_processed(path, family="normal", smax=60, kappa=1.0)


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a,0,1,5,25", "a,2,1,5,25"], "contiguous"),
        (["a,0,1,5,25", "b,1,1,5,25"], "contiguous"),
        (["a,0,1,5,25", "a,0,1,5,25"], "line 3: day 0 of site 'a' is given twice"),
        (["a,0,-1,5,25"], "line 2: need lam >= 0"),
        (["a,0,1,0,25"], "mu > 0"),
        (["a,0,1,5,nan"], "line 2: sig2 must be a finite number"),
        (["a,0,1,5,x"], "sig2 must be a finite number"),
        (["a,0,1,5,25", "a,2020-01-02,1,5,25"], "the same kind on every row"),
        (["a,0,1,5"], "4 cells"),
        (["a,0,1_0,5,25"], "line 2: lam must be a finite number, got '1_0'"),
        (["7" * 5000 + ",x,1,5,25"], r"site '777.* \(5,002 characters\), day 'x'"),
    ],
)
def test_processed_errors_name_line_and_rule(tmp_path, rows, message):
    path = tmp_path / "processed.csv"
    path.write_text("\n".join(["site,day,lam,mu,sig2", *rows]))
    with pytest.raises(ValueError, match=message):
        input_files.read_processed(path, family="gamma", kappa=1.0, smax=60)


def test_processed_laws_must_be_constant(tmp_path):
    path = tmp_path / "processed.csv"
    path.write_text("site,day,lam,mu,sig2,kappa\na,0,1,5,25,1\na,1,1,5,25,2\n")
    with pytest.raises(ValueError, match="line 3: .* change"):
        input_files.read_processed(path, family="gamma", smax=60)


@pytest.mark.parametrize(
    "law, message",
    [
        ({"smax": 60.5, "kappa": 1.0}, "smax must be a whole number of days below 2.20, got 60.5"),
        ({"smax": 1e300, "kappa": 1.0}, "smax must be a whole number"),
        ({"smax": 60, "kappa": 0.0}, "kappa must be positive, got 0"),
    ],
)
def test_laws_out_of_range_are_not_rounded(tmp_path, law, message):
    path = tmp_path / "processed.csv"
    path.write_text("site,day,lam,mu,sig2\na,0,1,5,25\n")
    with pytest.raises(ValueError, match=message):
        input_files.read_processed(path, family="gamma", **law)


def test_formulas_among_names_do_not_survive_in_the_file(tmp_path):
    path, inputs = tmp_path / "processed.csv", _inputs()
    names = ["=1+1", "@x", "b"]
    input_files.write_processed(path, inputs, site_names=names)
    assert "\n'=1+1," in path.read_text() and "\n=1+1," not in path.read_text()
    assert input_files.read_processed(path).site_names == tuple(names)
    path.write_text(path.read_text().replace(",", ";"))
    assert input_files.read_processed(path).site_names == tuple(names)
