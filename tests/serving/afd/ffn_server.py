"""python ffn_server.py PORT: the feed-forward layers of the model of test_processes.py."""

import sys
import threading

import jax

from jaxlab.serving.afd import connectors, processes
from jaxlab.serving.model import step3

CONFIG = step3.TINY._replace(num_layers=2, dense_layers=(0,))

if __name__ == "__main__":
    params = step3.init_step3(jax.random.key(0), CONFIG)
    identity = connectors.model_identity(CONFIG, params)
    listener = connectors.listen(identity, port=int(sys.argv[1]))
    layers = processes.ffn_slices(params, 0, 1)
    processes.serve_ffn(listener.accept(60.0), layers, CONFIG, threading.Event())
