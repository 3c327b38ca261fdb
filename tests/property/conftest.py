"""Property tests run on slow and busy machines: examples are counted, not timed."""

from hypothesis import HealthCheck, settings

settings.register_profile("islet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("islet")
