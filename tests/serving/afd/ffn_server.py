"""A feed-forward instance of the model of test_processes.py."""

import argparse
import threading

import jax

from jaxlab.serving.afd import connectors, processes, transfers
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

CONFIG = step3.TINY._replace(num_layers=2, dense_layers=(0,))
TOPOLOGY = Topology(1, 1, tp=2, micro_batches=2)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--transfer", action="store_true")
    given = parser.parse_args()
    topology = TOPOLOGY._replace(num_ffn=given.of)
    params = step3.init_step3(jax.random.key(0), CONFIG)
    identity = processes.server_identity(params, CONFIG, topology, given.index)
    listener = connectors.listen(identity, port=given.port, timeout=60.0)
    layers = processes.server_shards(params, CONFIG, topology, given.index)
    link = listener.accept(60.0)
    if given.transfer:
        link = transfers.pulled(link)
    processes.serve_ffn(link, layers, CONFIG, topology, threading.Event())
