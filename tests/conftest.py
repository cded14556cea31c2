"""Settings that every test shares."""

from hypothesis import HealthCheck, settings

# Limits in milliseconds would be timed asserts: a manifest of long names took 286 ms on a busy machine, and CI failed.
settings.register_profile("tokendance", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokendance")
