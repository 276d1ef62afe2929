"""Suites, arms and seeds as one declared grid of runs, and the engines that work on it."""

from sb3_varshare.runs.declaration import Declaration, read_declaration
from sb3_varshare.runs.unit import Unit, run_unit

__all__ = ["Declaration", "Unit", "read_declaration", "run_unit"]
