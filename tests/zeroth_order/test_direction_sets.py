"""Direction sets: unbiasedness, orthogonality, inflation of the Gram matrix, parts of a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxlab.zeroth_order import direction_sets

CASES = [
    ("gaussian", 5, 3),
    ("sphere", 5, 3),
    ("orthonormal", 5, 3),
    ("block", 5, 3),
    ("rademacher", 5, 3),
    ("hadamard", 5, 3),
    ("hadamard", 8, 8),
]


@pytest.mark.parametrize(("kind", "n", "B"), CASES)
def test_scaled_second_moment_is_the_identity(key, kind, n, B):
    num = 20_000
    keys = jax.random.split(key, num)
    c = direction_sets.scale(n, B, kind)

    @jax.jit
    def moments(keys):
        S = jax.vmap(lambda k: direction_sets.directions(k, n, B, kind)[0])(keys)
        M = c * jnp.einsum("kib,kjb->kij", S, S)
        return M.mean(0), M.std(0)

    mean, std = moments(keys)
    # 5 standard errors of a mean over 20,000 draws; entries with no spread must be exact.
    bound = 5.0 * np.asarray(std) / np.sqrt(num) + 1e-5
    assert (np.abs(np.asarray(mean) - np.eye(n)) < bound).all()


@pytest.mark.parametrize(
    ("kind", "n", "B"),
    [("orthonormal", 7, 4), ("block", 7, 4), ("coordinate", 7, 7), ("hadamard", 8, 5)],
)
def test_orthonormal_sets_are_orthonormal(key, kind, n, B):
    S, _ = direction_sets.directions(key, n, B, kind)
    np.testing.assert_allclose(S.T @ S, np.eye(B), atol=1e-6)  # float32 rounding


def test_hadamard_columns_are_those_of_the_walsh_matrix(key):
    n, B = 11, 16
    S, _ = direction_sets.directions(key, n, B, "hadamard")
    H = scipy.linalg.hadamard(16)[:n]
    signs = np.sign(S)
    # The random signs of the rows drop out of the product of two columns, and the product of two
    # columns of a Walsh-Hadamard matrix is a column again.
    relative = signs * signs[:, :1]
    columns = {tuple(column) for column in H.T}
    assert {tuple(column) for column in relative.T} == columns  # all 16, each once
    np.testing.assert_allclose(np.abs(S), 1.0 / np.sqrt(n), rtol=1e-6)


def test_orthonormal_columns_are_uniform_on_the_sphere(key):
    """The first coordinate of a uniform point in 3 dimensions is uniform on [-1, 1]."""
    keys = jax.random.split(key, 4000)
    S = jax.jit(jax.vmap(lambda k: direction_sets.directions(k, 3, 2)[0]))(keys)
    for column in range(2):
        test = scipy.stats.kstest(np.asarray(S[:, 0, column]), scipy.stats.uniform(-1, 2).cdf)
        assert test.pvalue > 1e-4


@pytest.mark.parametrize("kind", sorted(set(direction_sets.KINDS) - {"coordinate"}))
@pytest.mark.parametrize("B", [2, 6])
def test_plug_in_gram_matrix_is_inflated_as_derived(key, kind, B):
    n, m, num = 6, 2, 40_000
    J = jax.random.normal(jax.random.fold_in(key, 1), (m, n))

    @jax.jit
    def gram(keys):
        def one(k):
            S, c = direction_sets.directions(k, n, B, kind)
            J_hat = c * (J @ S) @ S.T
            return J_hat @ J_hat.T

        G = jax.vmap(one)(keys)
        return G.mean(0), G.std(0)

    mean, std = gram(jax.random.split(key, num))
    expected = direction_sets.gram_inflation(n, B, kind) * np.asarray(J @ J.T)
    bound = 5.0 * np.asarray(std) / np.sqrt(num) + 1e-4
    assert (np.abs(np.asarray(mean) - expected) < bound).all()


@pytest.mark.parametrize("kind", direction_sets.STREAMABLE)
def test_parts_of_a_set_are_its_columns(key, kind):
    n, B = 12, 8
    S, _ = direction_sets.directions(key, n, B, kind)
    draw = direction_sets.make_column_draw(key, n, B, kind)
    parts = [draw(jnp.asarray(idx)) for idx in ([0, 1, 2], [5, 3], [7, 6, 4])]
    # Programs of other widths may round the logarithms and cosines of a column differently.
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), np.asarray(S)[:, [0, 1, 2, 5, 3, 7, 6, 4]], atol=1e-6
    )
    other, _ = direction_sets.directions(jax.random.fold_in(key, 7), n, B, kind)
    assert not np.array_equal(S, other)


@pytest.mark.parametrize(
    ("n", "B", "kind", "message"),
    [
        (3, 4, "orthonormal", "at most 3"),
        (3, 2, "coordinate", "all n = 3"),
        (3, 0, "sphere", "at"),
        (3, 2, "spherical", "kind must be"),
        (5, 9, "hadamard", "at most 8"),
    ],
)
def test_impossible_sets_are_refused(key, n, B, kind, message):
    with pytest.raises(ValueError, match=message):
        direction_sets.directions(key, n, B, kind)


def test_sets_without_parts_are_refused(key):
    with pytest.raises(ValueError, match="cannot be drawn in parts"):
        direction_sets.make_column_draw(key, 4, 2, "orthonormal")


def test_gram_schmidt_is_the_positive_qr_factor(x64):
    """Against LAPACK, on rows that are nearly dependent too: orthonormal to rounding."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 8))
    nearly = rows.copy()
    nearly[5] = nearly[:5].sum(0) + 1e-9 * rng.normal(size=8)
    for given, tolerance in ((rows, 1e-13), (nearly, 1e-5)):
        Q, R = np.linalg.qr(given.T)
        found = np.asarray(direction_sets._orthonormalize(jnp.asarray(given)))
        np.testing.assert_allclose(found, (Q * np.sign(np.diag(R))).T, atol=tolerance)
        np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-14)
