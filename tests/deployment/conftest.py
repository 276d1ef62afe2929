"""The fuzzer of policy files is a script of ``benchmarks``."""

import sys
from pathlib import Path

# At the end: nothing of another folder is hidden by a plain name.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
