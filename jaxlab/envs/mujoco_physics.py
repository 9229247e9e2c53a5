"""MuJoCo's engines behind one pair of functions: MJX on the device, or the C engine of the host.

Both take a state and give a state; nothing is kept between calls, so that they may be vmapped,
scanned, checkpointed and called twice.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.envs.extras import optional
from jaxlab.envs.mujoco_tasks import MujocoState

IMPLS = ("jax", "warp")
"""Implementations of MJX."""


class Physics(NamedTuple):
    """An engine with a model.

    Attributes:
        forward: `forward(qpos, qvel, model) -> MujocoState`, at rest in time.
        advance: `advance(state, ctrl) -> MujocoState`, a control step later.
    """

    forward: Callable[[Array, Array, dict[str, Array]], MujocoState]
    advance: Callable[[MujocoState, Array], MujocoState]


@contextlib.contextmanager
def _without_log(mujoco: Any) -> Iterator[None]:
    """Keeps the engine from writing its warnings to a file; what matters of them is returned."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def load_model(xml: str) -> Any:
    """Loads a model from Gymnasium's assets, or from a path.

    Raises:
        ImportError: If MuJoCo or Gymnasium is not installed; names the extra.
        FileNotFoundError: If there is no such file.
    """
    gymnasium, mujoco = optional("gymnasium", "envs"), optional("mujoco", "envs")
    assets = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    path = assets / xml if (assets / xml).exists() else pathlib.Path(xml)
    if not path.exists():
        raise FileNotFoundError(f"{xml} is neither a model of Gymnasium nor a file")
    with _without_log(mujoco):
        return mujoco.MjModel.from_xml_path(str(path))


def mjx_physics(
    model: Any,
    *,
    frame_skip: int,
    derived: tuple[str, ...] = (),
    solver_iterations: int = 4,
    line_search_iterations: int = 8,
    impl: str = "jax",
) -> Physics:
    """Makes physics on the device.

    Args:
        model: A `mujoco.MjModel`; it is not changed.
        frame_skip: Physics steps of a control step.
        derived: Fields of MJX's data to keep.
        solver_iterations, line_search_iterations: Limits of the contact solver. 4 and 8 are as near
            to the C engine as 100 and 50 and four times faster.
        impl: Implementation of MJX, "jax" or "warp".

    Raises:
        ValueError: If a count is below 1, or there is no such implementation.
        ImportError: If MJX is not installed; names the extra.
    """
    if min(frame_skip, solver_iterations, line_search_iterations) < 1 or impl not in IMPLS:
        raise ValueError(
            "frame_skip, solver_iterations and line_search_iterations must be at least 1 and impl "
            f"one of {', '.join(IMPLS)}, got {frame_skip}, {solver_iterations}, "
            f"{line_search_iterations}, {impl!r}"
        )
    mujoco, mjx = optional("mujoco", "envs"), optional("mujoco.mjx", "envs")
    option = model.opt
    kept = option.iterations, option.ls_iterations, option.solver
    option.iterations, option.ls_iterations = solver_iterations, line_search_iterations
    if option.solver == mujoco.mjtSolver.mjSOL_PGS:  # which MJX does not have
        option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    on_device = mjx.put_model(model, impl=impl)
    option.iterations, option.ls_iterations, option.solver = kept
    blank = mjx.make_data(model, impl=impl)
    public = {field.name for field in dataclasses.fields(blank)}

    def keep(data: Any, fields: dict[str, Array]) -> MujocoState:
        # Fields that only one implementation of MJX has lie in its own part of the data.
        named = {name: getattr(data if name in public else data._impl, name) for name in derived}
        return MujocoState(data.qpos, data.qvel, data.qacc_warmstart, named, fields)

    def prepared(fields: dict[str, Array]) -> Any:
        return on_device.replace(**fields) if fields else on_device

    def finish(model: Any, data: Any) -> Any:
        return mjx.rne_postconstraint(model, data) if "cfrc_ext" in derived else data

    def forward(qpos: Array, qvel: Array, fields: dict[str, Array]) -> MujocoState:
        model = prepared(fields)
        data = mjx.forward(model, blank.replace(qpos=qpos, qvel=qvel))
        return keep(finish(model, data), fields)

    def advance(state: MujocoState, ctrl: Array) -> MujocoState:
        model = prepared(state.model)
        data = blank.replace(
            qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=ctrl
        )
        data, _ = jax.lax.scan(
            lambda data, _: (mjx.step(model, data), None), data, length=frame_skip
        )
        return keep(finish(model, data), state.model)

    return Physics(forward, advance)


def c_physics(
    model: Any, *, frame_skip: int, derived: tuple[str, ...] = (), num_threads: int = 1
) -> Physics:
    """Makes physics on the host, by the C engine behind `jax.pure_callback`.

    A batch is one call. A state in which MuJoCo meets a number that is not finite, or huge, comes
    back as NaN, where the engine itself would begin anew unasked.

    Args:
        model: A `mujoco.MjModel`; it is not changed.
        frame_skip: Physics steps of a control step.
        derived: Fields of MuJoCo's data to keep.
        num_threads: Threads of the host that share a batch.

    Raises:
        ValueError: If `num_threads` is below 1.
    """
    mujoco = optional("mujoco", "envs")
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    datas = [mujoco.MjData(model) for _ in range(num_threads)]
    pool = concurrent.futures.ThreadPoolExecutor(num_threads) if num_threads > 1 else None
    lock = threading.Lock()  # callbacks may come at once, and share the data of the threads
    sample = datas[0]
    fields = ("qpos", "qvel", "qacc_warmstart", *derived)
    shapes = [jax.ShapeDtypeStruct(getattr(sample, f).shape, jnp.float32) for f in fields]
    wrong = (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
        mujoco.mjtWarning.mjWARN_BADCTRL,
    )

    def one(data: Any, inputs: tuple[np.ndarray, ...], moving: bool) -> bool:
        """Computes one simulation in `data`; false if it fell apart."""
        if not all(np.all(np.isfinite(x)) for x in inputs):
            return False
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = inputs[:2]
        if moving:
            data.qacc_warmstart[:], data.ctrl[:] = inputs[2:]
            mujoco.mj_step(model, data, frame_skip)
        else:
            mujoco.mj_forward(model, data)
        if "cfrc_ext" in derived:
            mujoco.mj_rnePostConstraint(model, data)
        return not any(data.warning[kind].number for kind in wrong)

    def call(moving: bool, *batched: Any) -> tuple[np.ndarray, ...]:
        inputs = [np.asarray(x, np.float64) for x in batched]
        lead = inputs[0].shape[:-1]
        inputs = [x.reshape(-1, x.shape[-1]) for x in inputs]
        count = inputs[0].shape[0]
        out = [np.full((count, *shape.shape), np.nan, np.float32) for shape in shapes]

        def work(thread: int) -> None:
            data = datas[thread]
            for i in range(thread, count, num_threads):
                if one(data, tuple(x[i] for x in inputs), moving):
                    for field, array in zip(fields, out, strict=True):
                        array[i] = getattr(data, field)

        with lock, _without_log(mujoco):
            if pool is None or count == 1:
                for thread in range(num_threads):
                    work(thread)
            else:
                list(pool.map(work, range(num_threads)))
        return tuple(array.reshape(lead + array.shape[1:]) for array in out)

    def state(arrays: tuple[Array, ...]) -> MujocoState:
        qpos, qvel, warmstart, *rest = arrays
        return MujocoState(qpos, qvel, warmstart, dict(zip(derived, rest, strict=True)), {})

    def run(moving: bool, *inputs: Array) -> MujocoState:
        return state(
            jax.pure_callback(
                functools.partial(call, moving), tuple(shapes), *inputs, vmap_method="broadcast_all"
            )
        )

    def forward(qpos: Array, qvel: Array, fields: dict[str, Array]) -> MujocoState:
        if fields:
            raise ValueError("randomized models need the back-end mjx, the C engine has one model")
        return run(False, qpos, qvel)

    def advance(state: MujocoState, ctrl: Array) -> MujocoState:
        return run(True, state.qpos, state.qvel, state.warmstart, ctrl)

    return Physics(forward, advance)
