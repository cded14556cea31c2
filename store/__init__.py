"""Blocks at rest: in memory, or in a zarr v3 group on disk written for durability and mapping.

Nothing here knows what a mirror means; `tokendance` holds the rules and is handed one of the two
places, `tokendance.store.memory.MemoryPlace` or `tokendance.store.disk.DiskPlace`.
"""
