"""Triton kernels, one file an operator; installed as ``mct_fast.kernels``."""
