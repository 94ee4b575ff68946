"""The programs that are measured, one file each: the same job through a plain loop, Fedloom and its peers.

Each is run as ``python -m benchmarks.contenders.NAME JOB`` by an interpreter that has what it needs, and speaks the
language of :mod:`benchmarks.contenders.contract`.
"""
