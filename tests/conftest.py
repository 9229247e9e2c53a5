"""Settings that every test runs under: strict promotion, a compile cache, one seed."""

import os
import pathlib
import platform
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each pytest worker owns one core; XLA's own thread pool would only oversubscribe it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    )

# As environment variables, so that the programs that tests start share the compile cache.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"jaxlab-cache-{os.getuid()}-{platform.machine()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    """A PRNG key; tests that need another seed fold it in."""
    return jax.random.key(20251002)


@pytest.fixture
def optax_promotes():
    """Optax mixes integers and floats, which this suite forbids otherwise."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def x64():
    """Float64 for the duration of one test."""
    with jax.enable_x64(True):
        yield
