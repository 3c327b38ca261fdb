"""Property tests run on slow and busy machines: examples are counted, not timed.

Under CI the examples are the same in every run of one commit; elsewhere they are drawn anew, and so go on searching.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "islet", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("islet")
