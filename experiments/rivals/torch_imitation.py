"""Stage two of `jaxlab.imitation` in PyTorch, one seed at a time, from our weights.

The head of features with frozen networks, as a loop in Python would train it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.rivals import torch_side

_TINY = 1e-12


def make_nu(params: Any, features: Any, *, gamma: float) -> tuple[Callable[..., Any], list[Any]]:
    """Makes `nu(obs, action) -> (nu [B], f [B])` and lists what is trained.

    Args:
        params: of a head "paper" of `imitation.make_head`.
        features: of its representation; they stay as they are.
        gamma: discount.

    Raises:
        ImportError: if torch is not installed.
    """
    torch = torch_side.module()
    phi, mu = (_layers(features[name], trained=False) for name in ("phi", "mu"))
    f = _layers(params["network"])
    omega, theta = (_keep(params[name], True) for name in ("omega", "theta"))
    scale = omega.shape[0] ** -0.5

    def nu(obs: Any, action: Any) -> tuple[Any, Any]:
        x = torch.cat([obs, action], dim=-1)
        extra = _run(f, x, torch.nn.functional.elu)[:, 0]
        linear = scale * _run(phi, x, torch.nn.functional.elu) @ omega
        reached = scale * _run(mu, obs, torch.nn.functional.elu) @ theta + 1.0 - gamma
        return torch.log(torch.clamp(reached, min=1.0 - gamma)) - extra - linear, extra

    return nu, [omega, theta, *_trained(f)]


def trainer(
    params: Any,
    features: Any,
    policy_params: Any,
    expert: Sequence[np.ndarray],
    logs: Sequence[np.ndarray],
    *,
    batch: int,
    gamma: float = 0.99,
    alpha: float = 0.05,
    head_learning_rate: float = 1e-3,
    policy_learning_rate: float = 1e-5,
) -> Callable[[], None]:
    """Makes a function that makes one update of head and policy, as `make_value_dice` does.

    Args:
        params, features: see `make_nu`.
        policy_params: of `imitation.make_policy`.
        expert, logs: observations, actions and next observations, `[N, ...]` each.
        batch: transitions of either kind.
        gamma, alpha, head_learning_rate, policy_learning_rate: see `make_value_dice`.

    Raises:
        ImportError: if torch is not installed.
    """
    torch = torch_side.module()
    nu, head = make_nu(params, features, gamma=gamma)
    policy = _layers(policy_params)
    actor = _trained(policy)
    optimizers = (
        torch.optim.Adam(head, lr=head_learning_rate),
        torch.optim.Adam(actor, lr=policy_learning_rate),
    )
    data = [[torch.from_numpy(np.array(x)) for x in given] for given in (expert, logs)]

    def act(obs: Any) -> Any:
        mean, raw = _run(policy, obs, torch.relu).chunk(2, dim=-1)
        std = torch.exp(-5.0 + 3.5 * (torch.tanh(raw) + 1.0))
        return torch.tanh(mean + std * torch.randn_like(mean))

    def update() -> None:
        drawn = []
        for rows in data:
            chosen = torch.randint(0, len(rows[0]), (batch,))
            drawn.append([x[chosen] for x in rows])
        (s, a, s2), (sr, ar, sr2) = drawn
        a2, a0, ar2 = act(s2), act(s), act(sr2)
        values, extra = nu(torch.cat([s, s2, s, sr, sr2]), torch.cat([a, a2, a0, ar, ar2]))
        now, then, start, other, other_then = values.chunk(5)
        change, other_change = now - gamma * then, other - gamma * other_then
        share = torch.cat([torch.full((batch,), p / batch) for p in (1.0 - alpha, alpha)])
        spread = torch.logsumexp(torch.cat([change, other_change]) + torch.log(share), dim=0)
        linear = (1.0 - alpha) * (1.0 - gamma) * start.mean() + alpha * other_change.mean()
        objective = spread - linear
        u = torch.rand(batch, 1)
        points = [
            torch.cat([u * x + (1.0 - u) * y, u * x2 + (1.0 - u) * y2]).detach().requires_grad_()
            for x, y, x2, y2 in ((s, sr, s2, sr2), (a, ar, a2, ar2))
        ]
        slopes = torch.autograd.grad(nu(*points)[0].sum(), points, create_graph=True)
        steep = torch.sqrt(sum((slope**2).sum(dim=-1) for slope in slopes) + _TINY)
        penalty = ((steep - 1.0) ** 2).mean()
        head_loss = objective + 10.0 * penalty + 0.1 * (extra[:batch] ** 2).mean()
        policy_loss = -objective + 1e-4 * _orthogonality(policy)
        found = torch.autograd.grad(head_loss, head, retain_graph=True)
        found += torch.autograd.grad(policy_loss, actor)
        for parameter, gradient in zip([*head, *actor], found, strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()

    return update


def _keep(x: Any, trained: bool) -> Any:
    return torch_side.module().tensor(np.array(x, np.float32), requires_grad=trained)


def _layers(params: Any, *, trained: bool = True) -> list[tuple[Any, Any]]:
    """Weights and biases of an `nn.Mlp`; None for a bias that there is not."""
    stored = params["params"]
    return [
        (
            _keep(layer["kernel"], trained),
            _keep(layer["bias"], trained) if "bias" in layer else None,
        )
        for layer in (stored[f"layer_{i}"] for i in range(len(stored)))
    ]


def _run(layers: Sequence[tuple[Any, Any]], x: Any, activation: Callable[[Any], Any]) -> Any:
    for i, (kernel, bias) in enumerate(layers):
        x = x @ kernel if bias is None else x @ kernel + bias
        x = activation(x) if i < len(layers) - 1 else x
    return x


def _trained(layers: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [x for layer in layers for x in layer if x is not None]


def _orthogonality(layers: Sequence[tuple[Any, Any]]) -> Any:
    total = 0.0
    for kernel, _ in layers:
        gram = kernel.T @ kernel
        total = total + (gram**2).sum() - (gram.diagonal() ** 2).sum()
    return total
