"""What holds for all tests: threads, the plotting backend and the profile of hypothesis."""

import os

# Before torch and numpy are imported: pytest runs two workers on two cores, so each gets one thread.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings  # noqa: E402

# No deadline: on a shared machine the time of one example says nothing about the code.
settings.register_profile("sb3_varshare", deadline=None, max_examples=25)
settings.load_profile("sb3_varshare")
