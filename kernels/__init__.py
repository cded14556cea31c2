"""Numba kernels on plain arrays: which blocks differ, and blocks put together again.

Importing this package imports nothing else; the modules in it import numba, and compile
on first use (`tokendance.kernels.compile_policy` says how).
"""
