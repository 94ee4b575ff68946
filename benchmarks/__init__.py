"""Speed and scale, measured: `python -m benchmarks --help`."""
