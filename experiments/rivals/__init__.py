"""Other people's methods, run beside ours: rivals in benchmarks and oracles in tests."""
