"""Eight agents talk for three rounds; their caches are stored, reopened by another process and compared.

``dialogue`` holds the text, ``decoder`` computes the KV caches, ``rounds`` commits them, ``check`` is the
program of the other process, ``report`` prints what was measured, and ``run`` ties them together. This file
imports none of them, so that the checking process loads neither the decoder nor rich.
"""
