"""The denoiser of `rl.discrete.DenoisingConv` in PyTorch, sampled and trained as MDLM does.

Weights are ours, so that both networks say the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.rivals import torch_side

GRAD_NORM = 1.0
LEAST_LEVEL = 1e-3


def make_network(params: Any, *, dilations: tuple[int, ...]) -> Any:
    """Makes the network of our weights, `logits = network(tokens [B, L])`.

    Args:
        params: parameters of a `DenoisingConv`.
        dilations: distance between the places of a convolution, by group of layers.

    Raises:
        ImportError: if torch is not installed.
    """
    torch = torch_side.module()
    functional, weights = torch.nn.functional, params["params"]

    def keep(x: Any) -> Any:
        return torch.nn.Parameter(torch.from_numpy(np.array(x, np.float32)))

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = keep(_kernel(weights["first"]))
            self.first_bias = keep(weights["first_bias"])
            layers = []
            for i, dilation in enumerate(dilations):
                stacked = {
                    name: np.asarray(weights[f"layers_{i}_{name}"])
                    for name in ("kernel", "bias", "scale", "shift")
                }
                for j in range(len(stacked["kernel"])):
                    layer = torch.nn.ParameterDict(
                        {
                            name: keep(_kernel(x[j]) if name == "kernel" else x[j])
                            for name, x in stacked.items()
                        }
                    )
                    layers.append((dilation, layer))
            self.dilations = [dilation for dilation, _ in layers]
            self.layers = torch.nn.ModuleList([layer for _, layer in layers])
            self.heads = torch.nn.ParameterDict(
                {
                    f"{name}_{part}": keep(np.asarray(weights[name][part]).T)
                    for name in ("Dense_0", "Dense_1")
                    for part in ("kernel", "bias")
                }
            )

        def forward(self, tokens: Any) -> Any:
            size = self.first.shape[1]
            x = functional.one_hot(tokens, size).to(torch.float32).transpose(1, 2)
            width = self.first.shape[-1]
            x = functional.relu(
                functional.conv1d(x, self.first, self.first_bias, padding=width // 2)
            )
            for dilation, layer in zip(self.dilations, self.layers, strict=True):
                h = functional.layer_norm(
                    x.transpose(1, 2), x.shape[1:2], layer["scale"], layer["shift"], 1e-6
                ).transpose(1, 2)
                h = functional.conv1d(
                    h,
                    layer["kernel"],
                    layer["bias"],
                    padding=width // 2 * dilation,
                    dilation=dilation,
                )
                x = x + functional.relu(h)
            x = x.transpose(1, 2)
            x = functional.linear(x, self.heads["Dense_0_kernel"], self.heads["Dense_0_bias"])
            return functional.linear(
                functional.relu(x), self.heads["Dense_1_kernel"], self.heads["Dense_1_bias"]
            )

    return Network()


def logits(network: Any, tokens: np.ndarray) -> np.ndarray:
    """Returns the network's logits `[B, L, V]`."""
    torch = torch_side.module()
    with torch.inference_mode():
        return network(torch.from_numpy(np.array(tokens, np.int64))).numpy()


def sampler(
    network: Any, *, batch: int, length: int, vocab: int, num_steps: int
) -> Callable[[], np.ndarray]:
    """Makes a function that draws `[batch, length]` by ancestral sampling, linear schedule."""
    torch = torch_side.module()

    def draw() -> np.ndarray:
        with torch.inference_mode():
            tokens = torch.full((batch, length), vocab, dtype=torch.int64)
            for n in range(num_steps, 0, -1):
                probs = torch.softmax(network(tokens), dim=-1)
                noise = torch.empty_like(probs).exponential_()
                drawn = torch.argmax(probs / noise, dim=-1)
                reveal = (tokens == vocab) & (torch.rand(batch, length) < 1.0 / n)
                tokens = torch.where(reveal, drawn, tokens)
            return tokens.numpy()

    return draw


def trainer(
    network: Any, corpus: np.ndarray, *, batch: int, vocab: int, learning_rate: float
) -> Callable[[], float]:
    """Makes a function that makes one gradient step on the evidence bound in continuous time."""
    torch = torch_side.module()
    data = torch.from_numpy(np.array(corpus, np.int64))
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)

    def step() -> float:
        clean = data[torch.randint(0, len(data), (batch,))]
        at = (torch.rand(()) + torch.arange(batch) / batch) % 1.0
        level = (at * (1.0 - LEAST_LEVEL) + LEAST_LEVEL)[:, None]
        hidden = torch.rand(clean.shape) < level
        out = network(torch.where(hidden, vocab, clean))
        nll = torch.nn.functional.cross_entropy(out.transpose(1, 2), clean, reduction="none")
        loss = torch.mean(torch.where(hidden, nll, 0.0) / level)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRAD_NORM)
        optimizer.step()
        return loss.item()

    return step


def _kernel(x: Any) -> np.ndarray:
    """`[W, C, D]` to torch's `[D, C, W]`."""
    return np.ascontiguousarray(np.asarray(x, np.float32).transpose(2, 1, 0))
