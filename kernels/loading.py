"""What a fork waits for: code that is being imported late, or compiled.

A module that another thread has half imported at the moment of a fork stays so in the child for ever: importing it
there waits for a thread that is not there, and so does a compiler that was at work. So all that is imported on first
use is imported, and compiled, under one lock, which a fork takes. The lock is made before anything that it guards is
imported: a hook that is registered while a fork waits would be too late for that fork.
"""

import os
import threading

__all__ = ["loading"]

loading = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=loading.acquire, after_in_parent=loading.release, after_in_child=loading.release)
