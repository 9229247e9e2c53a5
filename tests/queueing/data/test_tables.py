"""Tables as CSV: exact floats, and readable by others."""

import csv
import datetime

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import tables
from jaxlab.queueing.data import records


def test_table_is_exact_and_readable(tmp_path):
    path = tmp_path / "table.csv"
    columns = {
        "site": ["A, B", "C"],
        "date": records.dates(datetime.date(2024, 2, 29), 2),
        "rho": np.array([0.1, np.nan], np.float32),
        "upper": np.array([1 / 3, 1e-300]),
        "census": jnp.asarray([3, 4]),
    }
    tables.write_table(path, columns)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "site": "A, B",
        "date": "2024-02-29",
        "rho": "0.1",
        "upper": repr(1 / 3),
        "census": "3",
    }
    assert rows[1]["rho"] == "" and float(rows[1]["upper"]) == 1e-300
    with pytest.raises(ValueError, match="differ in length"):
        tables.write_table(path, {"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match="one axis"):
        tables.write_table(path, {"a": np.zeros((2, 2))})
