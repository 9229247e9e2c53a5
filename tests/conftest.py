"""Settings that every test runs under: strict promotion, a compile cache, bounded memory."""

import collections
import contextlib
import ctypes
import gc
import os
import pathlib
import platform
import resource
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = os.environ.get("XLA_FLAGS", "")
# Most of a first run is compilation, of which this saves a third; it costs a tenth of later runs.
if "xla_backend_optimization_level" not in _FLAGS:
    _FLAGS += " --xla_backend_optimization_level=1"
# Each pytest worker owns one core; XLA's own thread pool would only oversubscribe it.
if "PYTEST_XDIST_WORKER" in os.environ and "xla_cpu_multi_thread_eigen" not in _FLAGS:
    _FLAGS += " --xla_cpu_multi_thread_eigen=false"
os.environ["XLA_FLAGS"] = _FLAGS.strip()

# As environment variables, so that the programs that tests start share the compile cache.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"jaxlab-cache-{os.getuid()}-{platform.machine()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    """A PRNG key; tests that need another seed fold it in."""
    return jax.random.key(20251002)


@pytest.fixture
def optax_promotes():
    """Optax and other libraries mix dtypes and ranks, which this suite forbids otherwise."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session")
def float16():
    """Skips where XLA compiles no program with float16: on processors that cannot convert it."""
    try:
        jax.block_until_ready(jax.jit(lambda x: x.astype(jnp.float16))(jnp.ones(2)))
    except jax.errors.JaxRuntimeError as error:
        pytest.skip(f"no float16 on this processor: {error}")


@pytest.fixture
def x64():
    """Float64 for the duration of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Forgets compiled programs after each module: a worker would keep gigabytes of them."""
    _forget_peak()
    yield
    jax.clear_caches()
    gc.collect()
    # What compilation has freed glibc keeps, a gigabyte after some modules, unless it is told.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


# What each folder takes, printed at the end: minutes and memory are a budget that rooms share.

_FOLDERS: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
_STATUS, _REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.user_properties.append(("peak_gib", _peak_gib()))
    return report


def pytest_runtest_logreport(report):
    folder = "/".join(pathlib.PurePath(report.location[0]).parts[:-1][:3])
    peak = dict(report.user_properties).get("peak_gib", 0.0)
    _FOLDERS[folder].append((report.duration, peak))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("seconds of a core and peak memory of a worker, by folder")
    for folder, found in sorted(_FOLDERS.items(), key=lambda entry: -sum(s for s, _ in entry[1])):
        seconds, peak = sum(s for s, _ in found), max(peak for _, peak in found)
        terminalreporter.write_line(f"{folder:32}{seconds:8.1f} s{peak:8.2f} GiB")


def _forget_peak() -> None:
    """Starts the peak anew where Linux lets us; elsewhere it is that of the worker so far."""
    try:
        _REFS.write_text("5")
    except OSError:
        return


def _peak_gib() -> float:
    if _STATUS.exists():
        fields = dict(
            line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line
        )
        return int(fields["VmHWM"].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
