"""Benchmarks. Each checks that what it times is right before it times it; run one as ``python -m bench.NAME --help``."""
