"""Attention and feed-forward layers on separate devices.

A token's way through a layer, A -> F -> A: `stages.attention_stage` adds what came back for it to
its residual stream, attends over its pages and chooses its experts; `wire.pack` makes it a
`wire.Packed`, which every feed-forward instance hears; there `wire.unpack` and `stages.ffn_stage`
run on every shard (`topology.ffn_shards`), `stages.sum_in_order` adds up those of an instance, and
`wire.pack_back` sends one sum a token back, to the `attention_stage` of the next layer. Before the
first layer `stages.start_stage` embeds it, behind the last `stages.finish_stage` makes its logits.
`attention_side` is the loop over layers and micro-batches; who feeds forward: `two_meshes`,
`processes`.
"""
