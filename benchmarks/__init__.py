"""The measurements behind every number in the README and in docs/performance.md.

Run `python -m benchmarks` from the repository's root; `python -m benchmarks --help` says what it takes.
"""
