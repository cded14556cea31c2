"""Bridges to the frameworks that produce KV caches; each one imports its framework only when it is used."""
