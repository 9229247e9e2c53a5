"""Benchmarks: timing, ceilings of the device, the accelerator suite, one module per benchmark."""
