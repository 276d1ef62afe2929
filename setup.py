"""Package metadata and dependencies; the settings of the tools stand in ``pyproject.toml``."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "sb3_varshare" / "version.txt").read_text(encoding="utf-8").strip()

# Why these limits:
# - numpy < 2.4: Meta-World pins mujoco 3.3.0; the dm_control for it (1.0.28) calls np.in1d, which numpy 2.4 removed
# - mujoco < 4: dm_control releases that know mujoco 4 do not exist
# - python < 3.13 for dm_control: its dependency labmaze has no wheel for a later one
# - gymnasium[mujoco]: gymnasium's MuJoCo code imports packaging and imageio, which only this extra asks for
# - pandas < 3: rl_zoo3 does not run with pandas 3
METAWORLD = ["metaworld>=3.1.1,<3.2", "gymnasium[mujoco]>=1.1,<2", "mujoco<4"]
DM_CONTROL = [
    'shimmy[dm-control]>=2.0.1,<3; python_version < "3.13"',
    'mujoco<4; python_version < "3.13"',
]
ZOO = [
    "rl_zoo3>=2.9.2,<3",
    "sb3-contrib>=2.9,<3",
    "pandas>=2.2,<3",
    "optuna>=5,<6",
    "seaborn",
    # The commands of sb3_varshare.tuning and sb3_varshare.runs, and their plots and declarations.
    "tyro>=0.9",
    "matplotlib>=3.8",
    "pydantic>=2.10,<3",
]
EXAMPLES = [
    "tyro>=0.9",
    "matplotlib>=3.8",
    "pandas>=2.2,<3",
    "sb3-contrib>=2.9,<3",
    "tensorboard>=2.21",
]
INSPECTION = ["pandas>=2.2,<3", "matplotlib>=3.8", "tyro>=0.9", "tensorboard>=2.21"]
VIDEO = ["imageio[ffmpeg]>=2.34", "pillow>=10.1", "tyro>=0.9"]
# The driver of the database that workers on several machines share. Its binary build needs no libpq.
POSTGRES = ["psycopg[binary]>=3.2,<4"]
# The web page of a study. Its test drives the browser by its own options, so no driver is needed.
DASHBOARD = ["optuna-dashboard>=0.21,<1"]
# Ray's core alone: workers on many machines.
RAY = ["ray>=2.50,<3"]
# One task as a file for other runtimes; onnxscript is what torch's exporter is written in.
ONNX = ["onnx>=1.18,<2", "onnxruntime>=1.22,<2", "onnxscript>=0.5,<1"]
# Needs an environment of its own: it asks for a newer MuJoCo than Meta-World pins.
MJLAB = ["mjlab>=1.6,<2"]
DOCS = ["sphinx>=8", "furo>=2024.8", "myst-parser>=4"]
TOOLS = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.14",
    "types-psutil>=6",
    "types-PyYAML>=6",
    "pandas-stubs>=2.2",
    # The report of benchmarks/grids.
    "rliable>=1.2,<2",
]

setup(
    name="sb3_varshare",
    version=VERSION,
    description="Multi-task reinforcement learning on Stable-Baselines3 with variational weight sharing",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The sb3_varshare developers",
    license="MIT",
    packages=find_packages(include=["sb3_varshare", "sb3_varshare.*"]),
    package_data={"sb3_varshare": ["py.typed", "version.txt"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "stable-baselines3>=2.9,<3",
        "torch>=2.8,<3",
        "gymnasium>=1.1,<2",
        "numpy>=1.26,<2.4",
        "scipy>=1.11",
        "safetensors>=0.5,<1",
        "psutil>=5.9",
        "rich>=13",
        "tqdm>=4.66",
    ],
    extras_require={
        "metaworld": METAWORLD,
        "dm-control": DM_CONTROL,
        "zoo": ZOO,
        "examples": EXAMPLES,
        "inspection": INSPECTION,
        "video": VIDEO,
        "postgres": POSTGRES,
        "dashboard": DASHBOARD,
        "ray": RAY,
        "onnx": ONNX,
        "mjlab": MJLAB,
        "docs": DOCS,
        "dev": METAWORLD
        + DM_CONTROL
        + ZOO
        + EXAMPLES
        + INSPECTION
        + VIDEO
        + POSTGRES
        + DASHBOARD
        + RAY
        + ONNX
        + DOCS
        + TOOLS,
    },
)
