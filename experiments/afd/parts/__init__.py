"""The parts of the study: each `run(config, out) -> Part`."""
