"""PIRF on Poisson's equation in PyTorch: our weights, sampler, reward and update, channels last."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from experiments.rivals import torch_side
from jaxlab import nn
from jaxlab.diffusion import edm
from jaxlab.nn.unet import SKIP

SCALE = (1.0 / 2.5, 36.5)
"""Of source and solution, as `physics.poisson` has it."""


class Network(NamedTuple):
    """A U-Net of our weights.

    Attributes:
        call: `call(x [B, C, H, W], noise []) -> [B, out, H, W]`.
        tuned: Weights of the decoder's highest resolution, by name; the others have no gradient.
    """

    call: Callable[[Any, Any], Any]
    tuned: dict[str, Any]


def make_network(unet: nn.Unet, params: Any) -> Network:
    """Makes the network of the weights of `unet`, whose convolutions see channels last.

    Raises:
        ImportError: if torch is not installed.
    """
    torch = torch_side.module()
    functional = torch.nn.functional
    weights, tuned = {}, {}
    for name, leaf in flax.traverse_util.flatten_dict(params["params"], sep="/").items():
        x = np.array(leaf, np.float32)
        if x.ndim == 4:
            x = x.transpose(3, 2, 0, 1)
        elif x.ndim == 2:
            x = x.T
        tensor = torch.from_numpy(x.copy())
        if x.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        weights[name] = tensor
        if name.startswith(("decoder_0_", "out_")):
            tuned[name] = tensor.requires_grad_()

    def both(name: str) -> tuple[Any, Any]:
        return weights[f"{name}/kernel"], weights[f"{name}/bias"]

    def conv(x: Any, name: str) -> Any:
        kernel, bias = both(name)
        return functional.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)

    def norm(x: Any, name: str) -> Any:
        groups = min(32, x.shape[1] // 4)
        scale, bias = weights[f"{name}/scale"], weights[f"{name}/bias"]
        return functional.group_norm(x, groups, scale, bias, 1e-6)

    def block(
        x: Any, emb: Any, name: str, *, move: Any = lambda x: x, attends: bool = False
    ) -> Any:
        h = conv(move(functional.silu(norm(x, f"{name}/norm_0"))), f"{name}/conv_0")
        h = h + functional.linear(emb, *both(f"{name}/level"))[:, :, None, None]
        h = conv(functional.silu(norm(h, f"{name}/norm_1")), f"{name}/conv_1")
        skip = move(x)
        if f"{name}/skip/kernel" in weights:
            skip = conv(skip, f"{name}/skip")
        h = SKIP * (h + skip)
        if not attends:
            return h
        flat = conv(norm(h, f"{name}/norm_2"), f"{name}/qkv").flatten(2).transpose(1, 2)
        q, k, v = flat.chunk(3, dim=-1)
        seen = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return SKIP * (h + conv(seen.transpose(1, 2).reshape(h.shape), f"{name}/proj"))

    def down(x: Any) -> Any:
        return functional.avg_pool2d(x, 2)

    def up(x: Any) -> Any:
        return functional.interpolate(x, scale_factor=2, mode="nearest")

    half = unet.channels // 2
    frequency = torch.from_numpy(
        (10_000.0 ** (-np.arange(half) / max(half - 1, 1))).astype(np.float32)
    )
    bottom = len(unet.multiples) - 1

    def call(x: Any, noise: Any) -> Any:
        angle = noise * frequency
        emb = torch.cat([torch.sin(angle), torch.cos(angle)])[None]
        for i in range(2):
            emb = functional.silu(functional.linear(emb, *both(f"map_{i}")))
        h = conv(x, "encoder_0_in")
        seen = [h]
        for level in range(bottom + 1):
            if level:
                h = block(h, emb, f"encoder_{level}_in", move=down)
                seen.append(h)
            for i in range(unet.num_blocks):
                attends = h.shape[2] in unet.attention
                h = block(h, emb, f"encoder_{level}_block_{i}", attends=attends)
                seen.append(h)
        for level in range(bottom, -1, -1):
            if level == bottom:
                h = block(h, emb, f"decoder_{level}_in_0", attends=True)
                h = block(h, emb, f"decoder_{level}_in_1")
            else:
                h = block(h, emb, f"decoder_{level}_up", move=up)
            for i in range(unet.num_blocks + 1):
                attends = i == unet.num_blocks and h.shape[2] in unet.attention
                joined = torch.cat([h, seen.pop()], dim=1)
                h = block(joined, emb, f"decoder_{level}_block_{i}", attends=attends)
        return conv(functional.silu(norm(h, "out_norm")), "out_conv")

    return Network(call, tuned)


def fields(network: Network, noise: Any, *, num_steps: int, num_grad_steps: int = 0) -> Any:
    """Draws `[B, C, H, W]` fields by Heun's method; gradients reach the last K of N steps."""
    torch = torch_side.module()
    levels = [torch.tensor(level) for level in edm.sigmas(num_steps)]

    def denoise(x: Any, s: Any) -> Any:
        total = s**2 + edm.SIGMA_DATA**2
        f = network.call(x * torch.rsqrt(total), 0.25 * torch.log(s))
        return edm.SIGMA_DATA**2 / total * x + s * edm.SIGMA_DATA * torch.rsqrt(total) * f

    def step(x: Any, now: Any, then: Any) -> Any:
        slope = (x - denoise(x, now)) / now
        ahead = x + (then - now) * slope
        return x + 0.5 * (then - now) * (slope + (ahead - denoise(ahead, then)) / then)

    x, first = levels[0] * noise, num_steps - num_grad_steps
    for i in range(num_steps):
        with torch.no_grad() if i < first else contextlib.nullcontext():
            last = i == num_steps - 1
            x = denoise(x, levels[i]) if last else step(x, levels[i], levels[i + 1])
    return x


def loss(x: Any) -> Any:
    """Returns the mean square of Poisson's residual inside, and of the solution on the edge."""
    torch = torch_side.module()
    f, u = x[:, 0] / SCALE[0], x[:, 1] / SCALE[1]
    inverse = x.shape[-1] - 1
    inside = u[:, 1:-1, 1:-1]
    around = u[:, 2:, 1:-1] + u[:, :-2, 1:-1] + u[:, 1:-1, 2:] + u[:, 1:-1, :-2]
    left = (around - 4.0 * inside) * inverse**2 - f[:, 1:-1, 1:-1]
    ring = torch.cat([u[:, 0], u[:, -1], u[:, 1:-1, 0], u[:, 1:-1, -1]], dim=1)
    return (left**2).mean() + ((ring * inverse) ** 2).mean()


def gradients(network: Network) -> dict[str, np.ndarray]:
    """Returns the gradients of what is tuned, by name and in our layout."""
    found = {}
    for name, tensor in network.tuned.items():
        x = tensor.grad.numpy()
        found[name] = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x
    return found


def sampler(
    network: Network, *, batch: int, shape: tuple[int, int, int], num_steps: int
) -> Callable[[], Any]:
    """Makes a function that draws fields of (H, W, C)."""
    torch = torch_side.module()

    def draw() -> Any:
        with torch.no_grad():
            return fields(network, _noise(batch, shape), num_steps=num_steps)

    return draw


def trainer(
    network: Network,
    *,
    batch: int,
    shape: tuple[int, int, int],
    num_steps: int,
    num_grad_steps: int,
    reg_weight: float = 5e-2,
    learning_rate: float = 1e-4,
) -> Callable[[], None]:
    """Makes a function that makes one update, as `physics.make_pirf` does by default."""
    torch = torch_side.module()
    names = list(network.tuned)
    anchor = [network.tuned[name].detach().clone() for name in names]
    optimizer = torch.optim.Adam([network.tuned[name] for name in names], lr=learning_rate)

    def update() -> None:
        given = {"num_steps": num_steps, "num_grad_steps": num_grad_steps}
        apart = sum(
            torch.sqrt(((network.tuned[name] - x) ** 2).sum() + 1e-12)
            for name, x in zip(names, anchor, strict=True)
        )
        total = loss(fields(network, _noise(batch, shape), **given)) + reg_weight * apart
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return update


def _noise(batch: int, shape: tuple[int, int, int]) -> Any:
    torch = torch_side.module()
    height, width, channels = shape
    noise = torch.randn(batch, channels, height, width)
    return noise.to(memory_format=torch.channels_last)
