"""One program on all devices: attention on the first row of a mesh, feed-forward on the second.

The mesh has axes "afd", the role, and "x", the place. A tick is a stage of attention on one row
and, at the same time, of feed-forward on the other: in tick t attention serves item t and
feed-forward item t - 1, where item l M + m is micro-batch m in layer l. Then the rows exchange what
they made. A step takes L M + 1 ticks, and no controller has a part in it: the program runs under
`jax.distributed` as it is.

Every device holds arrays of the same shapes. So it has room for the weights of either role, and a
device of feed-forward has room for a cache that it does not use.

Source: Step-3, arXiv:2507.19427, section 4; the form as one program is ours.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxlab.nn import transformer
from jaxlab.nn.transformer import Block
from jaxlab.serving.afd import attention_side, stages
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd import wire as wires
from jaxlab.serving.afd.attention_side import DisaggregatedDecoder
from jaxlab.serving.afd.topology import AttentionWeights, FfnShard, Topology
from jaxlab.serving.cache.paged_cache import PagedCache
from jaxlab.serving.model import step3
from jaxlab.serving.model.experts import Routing
from jaxlab.serving.model.step3 import Step3Config, Step3Params

ATTENTION, FFN = 0, 1
IDLE, ATTEND, DENSE, SPARSE = range(4)


class _Carry(NamedTuple):
    """What a device knows between two ticks; what is of the other role is zero or never read.

    Attributes:
        x: `[M, b, S, D]`, the residual streams of the micro-batches.
        inbox: `[M, F, N, D]`, the partial results that came back last for each of them.
        cache: of the attention instance.
        heard: tokens of all attention instances, every leaf `[A, N, ...]`.
    """

    x: Array
    inbox: Array
    cache: PagedCache
    heard: wires.Packed


def make_spmd_decode(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    *,
    devices: Sequence[Any] | None = None,
) -> DisaggregatedDecoder:
    """Makes the decoder that is one program on all devices.

    Its caches have as many instances as there are devices, of which the last half belongs to
    feed-forward and stays empty; `decode` takes and returns the requests of attention alone. Under
    `jax.distributed` every process calls everything with the same arguments; logits and `done` are
    whole on each.

    Args:
        params: weights of the model.
        config: sizes of the model.
        topology: who computes what.
        devices: those of attention first, then those of feed-forward by instance, group and place
            in the group; `jax.devices()` by default.

    Raises:
        ValueError: if topology, parameters and devices do not fit each other, there are not as many
            devices of attention as of feed-forward, fewer than two micro-batches, or a process of
            the run without a device.
    """
    devices = list(jax.devices() if devices is None else devices)
    step3.check_params(params, config)
    topologies.check_topology(topology, config, params.embedding.dtype)
    X, M = topology.num_attention, topology.micro_batches
    if topology.num_shards != X:
        raise ValueError(
            f"one program has as many devices of attention as of feed-forward, got {X} and "
            f"num_ffn * ep * tp = {topology.num_shards}; take make_two_mesh_decode for others"
        )
    if M < 2:
        raise ValueError(f"one program needs micro_batches of at least 2, got {M}")
    if len(devices) < 2 * X:
        raise ValueError(f"{topology} needs {2 * X} devices, there are {len(devices)}")
    mesh = Mesh(np.array(devices[: 2 * X]).reshape(2, X), ("afd", "x"))
    idle = set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}
    if idle:
        raise ValueError(
            f"every process must have a device of the program, the {2 * X} of {topology} are none "
            f"of process {min(idle)}: start fewer processes, or give devices of all"
        )
    weights, templates = _place_weights(params, topology, mesh)
    shared = jax.tree.map(
        functools.partial(_replicate, mesh), (params.embedding, params.norm, params.head)
    )
    del params

    by_device = P(("afd", "x"))

    @functools.partial(jax.jit, donate_argnums=2)
    def run(weights: Any, shared: Any, cache: PagedCache, tokens: Array, active: Array) -> tuple:
        def one(weights: Any, shared: Any, cache: PagedCache, tokens: Array, active: Array):
            own = jax.tree.map(lambda x: x[0], (weights, cache, tokens, active))
            out = _step(own, shared, templates, config, topology)
            return jax.tree.map(lambda x: x[None], out)

        own = jax.tree.map(lambda x: _both_roles(x.reshape(X, -1, *x.shape[1:])), (tokens, active))
        logits, cache, done = jax.shard_map(
            one,
            mesh=mesh,
            in_specs=(by_device, P(), by_device, by_device, by_device),
            out_specs=by_device,
            check_vma=False,
        )(weights, shared, cache, *own)
        whole = jax.lax.with_sharding_constraint((logits[:X], done[:X]), NamedSharding(mesh, P()))
        logits, done = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole)
        return logits, cache, done

    def decode(
        cache: PagedCache, tokens: Int[Array, "B S"], active: Bool[Array, " B"] | None = None
    ) -> tuple[Array, PagedCache, Array]:
        active = attention_side.check_step(cache, tokens, active, config, X, 2 * X)
        return run(weights, shared, cache, _replicate(mesh, tokens), _replicate(mesh, active))

    def init_cache(num_pages: int, *, batch: int, **options: Any) -> PagedCache:
        """Makes the caches; options as in `step3.init_step3_cache`."""

        def stacked() -> PagedCache:
            one = attention_side.init_one_cache(config, topology, num_pages, batch, options)
            return jax.tree.map(lambda x: jnp.stack([x] * (2 * X)), one)

        return jax.jit(stacked, out_shardings=NamedSharding(mesh, by_device))()

    return DisaggregatedDecoder(init_cache, decode)


def _step(
    own: tuple[dict[str, Array], PagedCache, Int[Array, "B S"], Bool[Array, " B"]],
    shared: tuple[Array, Array, Array],
    templates: tuple[AttentionWeights, FfnShard | None, FfnShard | None],
    config: Step3Config,
    topology: Topology,
) -> tuple[Float[Array, "B S V"], PagedCache, Bool[Array, " B"]]:
    """One decoding step as one device sees it."""
    weights, cache, tokens, active = own
    embedding, norm, head = shared
    attention_template, dense_template, sparse_template = templates
    M, A, F = topology.micro_batches, topology.num_attention, topology.num_ffn
    role, place = jax.lax.axis_index("afd"), jax.lax.axis_index("x")
    dtype = embedding.dtype
    cache, done, parts = stages.start_stage(embedding, cache, tokens, active, config, M)
    x, requests = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    N, D = x.shape[1] * x.shape[2], x.shape[3]
    silence = _silence(N, config, topology, dtype)
    no_answer = jnp.zeros((A, N, D), dtype)

    def tick(carry: _Carry, now: tuple[Array, Array, Array, Array]) -> tuple[_Carry, None]:
        work, layer, m, slot = now
        work, layer, m = work[role], layer[role], m[role]
        mine, inbox, here = jax.tree.map(lambda x: x[m], (carry.x, carry.inbox, requests))
        attends = work == ATTEND
        here = here._replace(step=here.step._replace(keep=here.step.keep & attends))

        def project() -> tuple:
            own = _view(weights, layer, attention_template)
            return stages.project_stage(own, mine, inbox, here, config)

        # The cache is written between two branches: one that goes through a branch is copied.
        nothing = _zeros(project)
        x, (q, k, v) = jax.lax.cond(attends, project, lambda: nothing)
        cache = stages.write_stage(carry.cache, layer, k, v, here)

        def read() -> tuple:
            own = _view(weights, layer, attention_template)
            return *stages.read_stage(own, x, q, cache, layer, here, config, topology), no_answer

        def idle() -> tuple:
            return mine, silence, no_answer

        def answer(template: FfnShard | None) -> tuple:
            if template is None:  # the model has no such layers
                return idle()
            shard = _view(weights, layer, template)
            if shard.routed is not None:
                first = place // topology.tp * shard.routed.gate.shape[0]
                shard = shard._replace(first=first)
            heard = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry.heard)
            partial = stages.ffn_stage(shard, heard, config, dtype)
            return mine, silence, partial.reshape(A, N, D)

        branches = (idle, read, lambda: answer(dense_template), lambda: answer(sparse_template))
        mine, message, partial = jax.lax.switch(work, branches)
        message, partial = jax.lax.optimization_barrier((message, partial))
        # Out: to the device across, and from there to all of its row.
        across = jax.tree.map(lambda x: jax.lax.ppermute(x, "afd", [(ATTENTION, FFN)]), message)
        heard = jax.tree.map(lambda x: jax.lax.all_gather(x, "x"), across)
        # Back: each shard's part to the place of its attention instance, where an instance's parts
        # are added in the order of its devices; one sum of each instance goes across.
        by_shard = jax.lax.all_to_all(partial, "x", 0, 0)
        by_instance = jnp.moveaxis(by_shard.reshape(F, -1, N, D), 1, 0)
        back = wires.pack_back(
            stages.sum_in_order(jax.lax.optimization_barrier(by_instance)), topology.wire
        )
        back = jax.lax.ppermute(back, "afd", [(FFN, ATTENTION)])
        return _Carry(carry.x.at[m].set(mine), carry.inbox.at[slot].set(back), cache, heard), None

    back = jnp.bfloat16 if topology.wire == "fp8" else dtype
    heard = jax.tree.map(lambda x: jnp.zeros((A, *x.shape), x.dtype), silence)
    carry = _Carry(x, jnp.zeros((M, F, N, D), back), cache, heard)
    calendar = jax.tree.map(jnp.asarray, _calendar(config, M))
    carry, _ = jax.lax.scan(tick, carry, calendar)

    def finish(carry: _Carry) -> Array:
        logits = [
            stages.finish_stage(norm, head, carry.x[m], carry.inbox[m], config) for m in range(M)
        ]
        return jnp.concatenate(logits)[: tokens.shape[0]]

    V = head.shape[1]
    nowhere = jnp.zeros((*tokens.shape, V), jax.eval_shape(finish, carry).dtype)
    logits = jax.lax.cond(role == ATTENTION, finish, lambda carry: nowhere, carry)
    return logits, carry.cache, done


def _calendar(config: Step3Config, M: int) -> tuple[np.ndarray, ...]:
    """Returns who does what in every tick: work, layer and micro-batch `[L M + 1, role]`.

    The fourth array `[L M + 1]` is the micro-batch whose result arrives at the end of a tick.
    """
    count = config.num_layers * M
    ticks = np.arange(count + 1)
    items = np.stack([ticks, ticks - 1], axis=1)
    busy = (items >= 0) & (items < count)
    layer, m = np.divmod(np.clip(items, 0, count - 1), M)
    dense = np.isin(layer[:, FFN], config.dense_layers)
    work = np.stack([np.full(count + 1, ATTEND), np.where(dense, DENSE, SPARSE)], axis=1)
    work = np.where(busy, work, IDLE)
    return tuple(x.astype(np.int32) for x in (work, layer, m, m[:, FFN]))


def _silence(N: int, config: Step3Config, topology: Topology, dtype: Any) -> wires.Packed:
    """Returns a message of zeros; it has experts if any layer sends them."""
    sparse = len(config.dense_layers) < config.num_layers
    routing = None
    if sparse and topology.router == "attention":
        expert = jnp.zeros((N, config.num_active), jnp.int32)
        weight = expert.astype(transformer.wide_dtype(dtype))
        routing = Routing(weight, expert, weight)
    message = wires.pack(jnp.zeros((N, config.d_model), dtype), routing, topology.wire)
    return jax.tree.map(jnp.zeros_like, message)


def _place_weights(
    params: Step3Params, topology: Topology, mesh: Mesh
) -> tuple[dict[str, Array], tuple[AttentionWeights, FfnShard | None, FfnShard | None]]:
    """Returns the weights of every device, and what a layer of attention, dense, sparse looks like.

    A layer of a device is a row of `[2 X, L, S]`, with S that of the longest; one array a dtype.
    """
    attention = list(topologies.attention_layers(params, topology))
    router = next((w.router for w in attention if w.router is not None), None)
    if router is not None:  # all layers look alike; a dense one does not use what it chooses
        zeros = jnp.zeros_like(router)
        attention = [w if w.router is not None else w._replace(router=zeros) for w in attention]
    X, L = topology.num_attention, len(params.blocks)
    sharding = NamedSharding(mesh, P(("afd", "x")))
    looks: list[FfnShard] = [
        jax.eval_shape(lambda b: jax.tree.map(lambda w: w[0], _shards(b, topology)), block)
        for block in params.blocks
    ]
    everything = [*looks, *map(_shapes, attention)]
    dtypes = {np.dtype(x.dtype) for x in jax.tree.leaves(everything)}
    longest = {d: max(_count(tree, d) for tree in everything) for d in dtypes}
    process = jax.process_index()
    here = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == process]
    rows = {(i, d): np.zeros((1, L, longest[d]), d) for i in here for d in dtypes}
    for layer, block in enumerate(params.blocks):  # one at a time: a device may not hold all
        shards = jax.tree.map(np.asarray, _shards(block, topology))
        for i in here:
            own = attention[layer] if i < X else jax.tree.map(lambda w, i=i: w[i - X], shards)
            for d in dtypes:
                leaves = [np.ravel(x) for x in jax.tree.leaves(own) if x.dtype == d]
                flat = np.concatenate([*leaves, np.zeros(0, d)])
                rows[i, d][0, layer, : flat.size] = flat

    def place(d: np.dtype) -> Array:
        def row(index: Any) -> np.ndarray:
            return rows[index[0].start or 0, d]

        return jax.make_array_from_callback((2 * X, L, longest[d]), sharding, row)

    dense = next((look for look in looks if look.routed is None), None)
    sparse = next((look for look in looks if look.routed is not None), None)
    return {d.name: place(d) for d in dtypes}, (_shapes(attention[0]), dense, sparse)


def _shards(block: Block, topology: Topology) -> FfnShard:
    """The shards of a layer; which experts they have, a device knows from its place."""
    return topologies.ffn_shards(block, topology)._replace(first=None)


def _count(tree: Any, dtype: np.dtype) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree) if x.dtype == dtype)


def _view(weights: dict[str, Array], layer: Array, template: Any) -> Any:
    """Returns the weights of a layer out of its rows."""
    offsets = dict.fromkeys(weights, 0)

    def take(leaf: jax.ShapeDtypeStruct) -> Array:
        name, size = np.dtype(leaf.dtype).name, math.prod(leaf.shape)
        start, offsets[name] = offsets[name], offsets[name] + size
        return jax.lax.dynamic_slice(weights[name], (layer, start), (1, size)).reshape(leaf.shape)

    return jax.tree.map(take, template)


def _zeros(fn: Callable[[], Any]) -> Any:
    """Returns zeros like what a function returns."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _both_roles(x: Array) -> Array:
    """Gives feed-forward, which has no requests, zeros."""
    return jnp.concatenate([x, jnp.zeros_like(x)])


def _replicate(mesh: Mesh, x: Any) -> Array:
    """Gives every device of every process the whole of an array that each process has."""
    sharding = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
