"""The feed-forward instance of the model of test_processes.py: ffn_server.py PORT [transfer]."""

import sys
import threading

import jax

from jaxlab.serving.afd import connectors, processes, transfers
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

CONFIG = step3.TINY._replace(num_layers=2, dense_layers=(0,))
TOPOLOGY = Topology(1, 1, tp=2, micro_batches=2)

if __name__ == "__main__":
    params = step3.init_step3(jax.random.key(0), CONFIG)
    identity = processes.server_identity(params, CONFIG, TOPOLOGY, 0)
    listener = connectors.listen(identity, port=int(sys.argv[1]), timeout=60.0)
    layers = processes.server_shards(params, CONFIG, TOPOLOGY, 0)
    link = listener.accept(60.0)
    if sys.argv[2:] == ["transfer"]:
        link = transfers.pulled(link)
    processes.serve_ffn(link, layers, CONFIG, TOPOLOGY, threading.Event())
