"""The modules of ``benchmarks/grids`` import each other by their plain names, as scripts of one folder do."""

import sys
from pathlib import Path

# At the end: nothing of another folder is hidden by a plain name.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "grids"))
