"""PIRF: the physics of the sampled field, sent back through the last steps of its sampler.

Yuan, Jin, Li, Li 2025, Physics-informed reward fine-tuning, arXiv:2509.20570. The reward is that of
the field itself; what guidance and residual losses look at, the reward of the denoised field, is
another number (see `baselines.value_error`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion import edm
from jaxlab.learning import settings as settings_lib
from jaxlab.physics import pde as pde_lib
from jaxlab.physics import tuning
from jaxlab.physics.layers import Layers, Regularizer
from jaxlab.physics.pde import Pde
from jaxlab.physics.stencils import Region

Apply = Callable[..., Any]
"""`apply(params, x, c_noise) -> [B, H, W, C]`, as `network.apply` of a `nn.Unet`; with
`layers="detach"` it is called with `detach=True`."""


def make_pirf(
    pde: Pde,
    apply: Apply,
    params: PyTree,
    shape: tuple[int, int, int],
    *,
    num_steps: int | tuple[int, ...] = 20,
    num_grad_steps: int | None = 2,
    batch_size: int = 16,
    region: Region = "interior",
    bc_weight: float = 1.0,
    repo_exact: bool = False,
    layers: Layers | Callable[[str], bool] = "mask",
    allow_biased: bool = False,
    regularizer: Regularizer = "l2",
    reg_weight: float = 5e-2,
    learning_rate: float = 1e-4,
    half_life: float = 50_000.0,
    clip_norm: float | None = None,
    remat: bool | None = None,
) -> Algorithm:
    """Makes the fine-tuning of a base model by the reward of what it samples. It takes no data.

    An update draws fields with N Heun steps, the first N - K without gradients, and descends

      mean R(x_0)^2 + bc_weight mean B(x_0)^2 + reg_weight sum_p |theta_p - theta0_p|

    through the last K, which call the network 2 K - 1 times. Small K suffices on fine grids, since
    a residual multiplies errors by 4 / h^2: K = 2 with N = 20 and K = 1 with N = 80 in the paper.
    On coarse grids take more: 4 to 6 at 16 points. Nothing is dropped (the released code leaves
    dropout on).

    Args:
        pde: the law.
        apply: network, `network.apply`.
        params: weights of the base as they were loaded; the weights are held to these.
        shape: (H, W, C) of a field.
        num_steps: N; or several, of which each update takes one at random, so that the model works
            at all of them: one tuned at N = 20 alone breaks at 10.
        num_grad_steps: K; N is the whole trajectory (DRaFT); None draws K from 1 to N - 1 for each
            update (ReFT), at the time of the whole trajectory.
        batch_size: fields of an update.
        region, bc_weight, repo_exact: see `pde.reward`. The published reward, "all", 0.0 and True,
            is earned by fields near zero.
        layers: which weights are tuned; "detach" is the gradient of "mask" for K = 1 alone.
        allow_biased: take "detach" for other K all the same; it is known to diverge.
        regularizer, reg_weight: what holds the weights, and how strongly, in the unit of the
            reward: 0.05 fitted a base whose mean square of the residual was 0.04, 0.2 one of 0.26;
            look at `detect_hacking` whichever you take. "distillation" is the mean of
            |D_theta - D_theta0|^2 / sigma^2 at the last K states; it calls the base besides.
        learning_rate, half_life, clip_norm: see `make_tuning`.
        remat: compute the last K steps again in the backward pass; None does so for K = N or None.

    Returns:
        The algorithm; its state is a `TuningState`, `tuned_params(state)` the weights.

    Raises:
        ValueError: if K exceeds N, shapes or numbers do not fit, the network returns other shapes,
            or nothing is tuned.

    Example:
        >>> tune = make_pirf(poisson(), network.apply, params, (16, 16, 2), num_grad_steps=6)
        >>> state = loop.run(tune, jax.random.key(0), num_steps=80, chunk_size=20).state

    Source: arXiv:2509.20570; DRaFT, arXiv:2309.17400.
    """
    schedule: tuple[Any, ...] = tuple(np.atleast_1d(np.asarray(num_steps, object)))
    if not schedule:
        raise ValueError("num_steps must name a number of steps, got none")
    for num in schedule:
        settings_lib.check_count(num, "num_steps", 2)
    if num_grad_steps is not None:
        settings_lib.check_count(num_grad_steps, "num_grad_steps")
        if num_grad_steps > min(schedule):
            raise ValueError(
                f"num_grad_steps must be at most num_steps, got {num_grad_steps} of {min(schedule)}"
            )
    settings_lib.check_count(batch_size, "batch_size")
    if np.shape(shape) != (3,) or shape[-1] != len(pde.channels):
        raise ValueError(f"shape must be (H, W, {len(pde.channels)}) for {pde.name}, got {shape}")
    if layers == "detach" and num_grad_steps != 1 and not allow_biased:
        raise ValueError(
            f"layers='detach' is the gradient for num_grad_steps=1 alone, got {num_grad_steps}; "
            "take 'mask', or allow_biased=True"
        )
    if regularizer == "distillation" and num_grad_steps is None:
        raise ValueError("distillation needs a fixed num_grad_steps, got None")
    reward = _reward(pde, region=region, bc_weight=bc_weight, repo_exact=repo_exact)
    given = {"detach": True} if layers == "detach" else {}
    probe = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    jax.eval_shape(reward, probe)

    def denoiser(params: PyTree, **given: Any) -> edm.Denoiser:
        return edm.precondition(lambda x, noise: apply(params, x, noise, **given))

    def objective(
        key: jax.Array, params: PyTree, anchor: PyTree
    ) -> tuple[tuple[jax.Array, ...], Metrics]:
        key_noise, key_schedule, key_grad = jax.random.split(key, 3)
        noise = jax.random.normal(key_noise, (batch_size, *shape))
        learned, still = denoiser(params, **given), denoiser(jax.lax.stop_gradient(params))

        def run(num: int) -> tuple[jax.Array, jax.Array]:
            if num_grad_steps is None:
                last = jax.random.randint(key_grad, (), 1, num)
                return randomly_truncated(learned, noise, num, last), jnp.zeros(())
            again = num_grad_steps == num if remat is None else remat
            x, states = truncated(learned, still, noise, num, num_grad_steps, remat=again)
            if regularizer != "distillation":
                return x, jnp.zeros(())
            levels = edm.sigmas(num)[num - num_grad_steps : num]
            return x, distillation(learned, denoiser(anchor), states(), levels)

        branches = [lambda num=num: run(num) for num in schedule]
        if len(branches) == 1:
            x, apart = branches[0]()
        else:
            x, apart = jax.lax.switch(
                jax.random.randint(key_schedule, (), 0, len(branches)), branches
            )
        value = jnp.mean(reward(x))
        losses = (-value, reg_weight * apart) if regularizer == "distillation" else (-value,)
        return losses, {"tune/reward": value, "tune/std": jnp.std(x)}

    algorithm = tuning.make_tuning(
        params,
        objective,
        layers=layers,
        regularizer=regularizer,
        reg_weight=reg_weight,
        learning_rate=learning_rate,
        batch_size=batch_size,
        half_life=half_life,
        clip_norm=clip_norm,
        name="pirf",
    )
    jax.eval_shape(lambda p, x: denoiser(p, **given)(x, jnp.ones(())), params, probe)
    return algorithm


def truncated(
    learned: edm.Denoiser,
    still: edm.Denoiser,
    noise: Float[Array, "B H W C"],
    num_steps: int,
    num_grad_steps: int,
    *,
    remat: bool = False,
) -> tuple[Float[Array, "B H W C"], Callable[[], jax.Array]]:
    """Samples; gradients reach the last K steps of N (DRaFT-K).

    Args:
        learned: the denoiser that gradients run through.
        still: the same without.
        noise: standard normal.
        num_steps, num_grad_steps: N and K.
        remat: see `edm.heun_steps`.

    Returns:
        `(x_0, states)`, where `states()` is `[K, B, H, W, C]`, the states at the last K levels,
        without gradients.
    """
    levels, first = edm.sigmas(num_steps), num_steps - num_grad_steps
    x = edm.heun_steps(still, float(levels[0]) * noise, levels, 0, first)
    start = jax.lax.stop_gradient(x)

    def states() -> jax.Array:
        found = [start]
        for i in range(first, num_steps - 1):
            found.append(edm.heun_steps(still, found[-1], levels, i, i + 1))
        return jax.lax.stop_gradient(jnp.stack(found))

    return edm.heun_steps(learned, start, levels, first, num_steps, remat=remat), states


def randomly_truncated(
    learned: edm.Denoiser, noise: Float[Array, "B H W C"], num_steps: int, num_grad_steps: Array
) -> Float[Array, "B H W C"]:
    """Samples; gradients reach the last K steps of N, where K is drawn inside the program (ReFT).

    The state is cut from its past before step N - K; all steps are recomputed in the backward pass,
    whatever K is. K lies in 1 to N - 1.
    """
    levels = jnp.asarray(edm.sigmas(num_steps), noise.dtype)
    cut = num_steps - num_grad_steps

    def severed(x: jax.Array, i: Any) -> jax.Array:
        return jnp.where(i == cut, jax.lax.stop_gradient(x), x)

    @jax.checkpoint
    def step(x: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        i, now, then = at
        return edm.heun_step(learned, severed(x, i), now, then), None

    order = jnp.arange(num_steps - 1, dtype=cut.dtype)
    x, _ = jax.lax.scan(step, levels[0] * noise, (order, levels[:-2], levels[1:-1]))
    return learned(severed(x, num_steps - 1), levels[-2])


def distillation(
    learned: edm.Denoiser, base: edm.Denoiser, states: Float[Array, "K B H W C"], levels: np.ndarray
) -> Float[Array, ""]:
    """Returns the mean over states of |D_theta(x, s) - D_theta0(x, s)|^2 / s^2.

    It is the divergence of the two reverse processes up to a factor; what regularization by weights
    replaces.
    """

    def at(state: jax.Array, level: jax.Array) -> jax.Array:
        apart = learned(state, level) - jax.lax.stop_gradient(base(state, level))
        return jnp.mean((apart / level) ** 2)

    return jnp.mean(jax.lax.map(lambda pair: at(*pair), (states, jnp.asarray(levels))))


def _reward(pde: Pde, **given: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda x: pde_lib.reward(pde, x, **given)
