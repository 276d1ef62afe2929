"""The floors of the package: an import goes only downwards, and rooms on one floor do not know each other."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "sb3_varshare"
REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = REPOSITORY / PACKAGE

# A room is a folder of the package, or a file beside the folders. Between rooms whole floors count: an import must
# reach a lower whole number. Inside a room the decimals count too. The first pattern that fits a file decides; a room's
# __init__.py is its entrance: it stands above its files and may import all of them.
FLOORS: dict[str, float] = {
    "__init__.py": 99,
    "types.py": 0,
    "tasks/encoding.py": 1,
    "tasks/seeding.py": 1,
    "tasks/spaces.py": 1,
    "tasks/suite.py": 1.1,
    "tasks/protocol.py": 1.2,
    "tasks/layout.py": 1.2,
    "tasks/tensor_vec_env.py": 1.5,
    "tasks/suites/contextual_tensor.py": 2.1,
    "tasks/suites/*": 2,
    "tasks/registry.py": 3,
    "tasks/multi_task_env.py": 4,
    "tasks/env_group.py": 4.1,
    "tasks/worker.py": 4.2,
    "tasks/worker_process.py": 4.3,
    "tasks/ray_worker.py": 4.35,
    "tasks/ray_cluster.py": 3,
    "tasks/worker_options.py": 4,
    "tasks/worker_pool.py": 4.4,
    "tasks/vec_env.py": 5,
    "tasks/tensor_envs.py": 5,
    "tasks/__init__.py": 5.9,
    "replay/reward_scale.py": 1,
    "replay/task_replay_buffer.py": 2,
    "replay/__init__.py": 2.9,
    "adapters/base.py": 1.05,
    "adapters/kl.py": 1,
    "adapters/row_noise.py": 1,
    "adapters/estimators.py": 1.2,
    "adapters/gaussian.py": 1.1,
    "adapters/__init__.py": 1.9,
    "adapters/*": 1.3,
    "categorical.py": 1,
    "grouping.py": 1,
    "losses.py": 2,
    "networks/task_linear.py": 2,
    "networks/task_input.py": 2,
    "networks/task_network.py": 3,
    "networks/bronet.py": 3.1,
    "networks/__init__.py": 3.9,
    "presets.py": 1,
    "varshare_sac/arguments.py": 4.05,
    "varshare_sac/policies.py": 4.1,
    "varshare_sac/peers.py": 4.1,
    "varshare_sac/exploration.py": 4.2,
    "varshare_sac/memory.py": 4.2,
    "varshare_sac/tensor_collection.py": 4.2,
    "varshare_sac/collection.py": 4.25,
    "varshare_sac/multi_task_algorithm.py": 4.3,
    "varshare_sac/varshare_sac.py": 5,
    "varshare_sac/__init__.py": 5.9,
    "varshare_sac/*": 4,
    "distributed.py": 6,
    "deployment/plain_actor.py": 6,
    "deployment/files.py": 6,
    "deployment/actor_parts.py": 6.1,
    "deployment/records.py": 6.2,
    "deployment/residuals.py": 6.3,
    "deployment/exported_policy.py": 6.4,
    "deployment/folder.py": 6.5,
    "deployment/compose.py": 6.5,
    "deployment/export.py": 6.6,
    "deployment/single_file.py": 6.6,
    "deployment/__init__.py": 6.9,
    "evaluation/__init__.py": 6.9,
    "evaluation/task_evaluation.py": 6,
    "evaluation/evaluation_env.py": 6,
    "evaluation/evaluate.py": 6.1,
    "evaluation/video.py": 6.1,
    "evaluation/eval_callback.py": 6.2,
    "compression/selection.py": 7,
    "compression/search.py": 7,
    "compression/return_loss.py": 7,
    "compression/prune_report.py": 7.1,
    "compression/pruning.py": 7.2,
    "compression/__init__.py": 7.9,
    "inspection/extras.py": 6,
    "inspection/residuals.py": 6.1,
    "inspection/uncertainty.py": 6.1,
    "inspection/similarity.py": 6.2,
    "inspection/figures.py": 6.3,
    "inspection/report.py": 6.4,
    "inspection/inspection_callback.py": 6.5,
    "inspection/__init__.py": 6.9,
    "inspection/__main__.py": 6.95,
    "growth/task_axes.py": 6,
    "growth/task_envs.py": 6.1,
    "growth/rebuilding.py": 6.1,
    "growth/grow.py": 6.2,
    "growth/specialist.py": 6.2,
    "growth/transfer.py": 7,
    "growth/__init__.py": 7.9,
    "tuning/search_space.py": 7,
    "tuning/objective.py": 7,
    "tuning/trial_sampler.py": 7,
    "tuning/storage.py": 7,
    "tuning/progress.py": 7,
    "tuning/plots.py": 7,
    "tuning/files.py": 7,
    "tuning/queue.py": 7.1,
    "tuning/training.py": 9,
    "tuning/worker.py": 9.1,
    "tuning/comparison.py": 9.1,
    "tuning/__main__.py": 9.9,
    "tuning/__init__.py": 7.9,
    "zoo/assign_tasks.py": 8,
    "zoo/config.py": 8,
    "zoo/callbacks.py": 8,
    "zoo/enjoy.py": 8.1,
    "zoo/manager.py": 8.1,
    "zoo/registration.py": 8.2,
    "zoo/__init__.py": 8.8,
    "zoo/__main__.py": 8.9,
    "runs/unit.py": 10,
    "runs/declaration.py": 10.1,
    "runs/store.py": 10.1,
    "runs/local.py": 10.2,
    "runs/on_ray.py": 10.2,
    "runs/queue.py": 10.2,
    "runs/report.py": 10.2,
    "runs/curves.py": 10.2,
    "runs/__main__.py": 10.9,
    "runs/__init__.py": 10.8,
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Environments run in worker processes that must start without torch; Stable-Baselines3 imports torch.
TORCH_FREE = "tasks/*"
TORCH_ALLOWED = (
    "tasks/vec_env.py",
    "tasks/tensor_vec_env.py",
    "tasks/tensor_envs.py",
    "tasks/suites/contextual_tensor.py",
    "tasks/suites/mjlab.py",
)
TORCH = ("torch", "stable_baselines3", "sb3_contrib")


@dataclass(frozen=True)
class Import:
    """
    One import statement's one target.

    :param line: line number in the importing file
    :param text: the statement in short, for messages
    :param module: absolute dotted name of what is imported, a module or a name in one
    :param at_import: whether it runs when the file is imported, not only inside a function
    :param for_types: whether it stands under ``if TYPE_CHECKING``
    """

    line: int
    text: str
    module: str
    at_import: bool
    for_types: bool


@cache
def imports_of(path: Path, root: Path) -> list[Import]:
    """All imports of a file, also those inside functions, under ``TYPE_CHECKING`` and through ``import_module``."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool, for_types: bool) -> None:
        for text, module in _targets(node, path, root):
            found.append(Import(node.lineno, text, module, at_import, for_types))  # type: ignore[attr-defined]
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            typed = for_types or (guarded and child in node.body)  # type: ignore[attr-defined]
            visit(child, at_import and not inside, typed)

    visit(ast.parse(path.read_text(encoding="utf-8")), True, False)
    return found


def _targets(node: ast.AST, path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Text and absolute name of what one node imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield f"import {alias.name}", alias.name
    elif isinstance(node, ast.ImportFrom):
        base = _absolute("." * node.level + (node.module or ""), path, root)
        for alias in node.names:
            yield f"from {base} import {alias.name}", f"{base}.{alias.name}"
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            name = node.args[0].value
            yield f'import_module("{name}")', _absolute(name, path, root)


def _absolute(name: str, path: Path, root: Path) -> str:
    """Dotted name without leading dots."""
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    package = [root.name, *path.relative_to(root).parts[:-1]]
    return ".".join([*package[: len(package) - level + 1], *filter(None, [name[level:]])])


def resolve(module: str, root: Path) -> str | None:
    """
    The file behind an imported name, relative to the package; a name that a room only passes on counts as its origin.

    :param module: absolute dotted name
    :return: for example ``tasks/suite.py``, or None for what is not of this package
    """
    parts = module.split(".")
    if parts[0] != root.name:
        return None
    folder = root
    for position, part in enumerate(parts[1:], start=1):
        if (folder / part).is_dir():
            folder = folder / part
        elif (folder / f"{part}.py").is_file():
            return (folder / f"{part}.py").relative_to(root).as_posix()
        else:
            origin = _passed_on(folder / "__init__.py", root).get(part) if position == len(parts) - 1 else None
            if origin is not None and origin != module:
                return resolve(origin, root)
            break
    return (folder / "__init__.py").relative_to(root).as_posix()


@cache
def _passed_on(entrance: Path, root: Path) -> dict[str, str]:
    """Name -> absolute origin of what an ``__init__.py`` re-exports, by import statement or by a lazy name table."""
    if not entrance.is_file():
        return {}
    names = {item.module.rsplit(".", 1)[-1]: item.module for item in imports_of(entrance, root)}
    for node in ast.walk(ast.parse(entrance.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if all(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in (key, value)):
                origin = _absolute(value.value, entrance, root)  # type: ignore[attr-defined]
                if origin.split(".")[0] == root.name:
                    names[key.value] = f"{origin}.{key.value}"  # type: ignore[union-attr]
    return names


def floor_of(file: str) -> float:
    """
    The floor of a file.

    :param file: path relative to the package
    :raises LookupError: if no line of the table fits
    """
    for pattern, floor in FLOORS.items():
        if fnmatch(file, pattern):
            return floor
    raise LookupError(f"{file} has no floor: add it to FLOORS in {Path(__file__).name} and to docs/architecture.md.")


def room_of(file: str) -> str:
    """The first folder of a path, or the file itself."""
    return file.split("/")[0]


def allowed(file: str, target: str) -> bool:
    """Whether one file may import another."""
    if file == target:
        return True
    here, there = floor_of(file), floor_of(target)
    if room_of(file) == room_of(target):
        # The package of suites is one folder deeper; its entrance lists its neighbours.
        beside = Path(file).name == "__init__.py" and Path(target).is_relative_to(Path(file).parent)
        return there < here or beside
    return int(there) < int(here)


def package_files(root: Path) -> list[Path]:
    """All Python files of the package."""
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def violations(root: Path) -> list[str]:
    """One helpful sentence per import that does not go down."""
    found = []
    for path in package_files(root):
        file = path.relative_to(root).as_posix()
        for item in imports_of(path, root):
            target = resolve(item.module, root)
            if target is None or allowed(file, target):
                continue
            found.append(
                f"{root.name}/{file}:{item.line}: `{item.text}` goes from floor {floor_of(file)} "
                f"to {target} on floor {floor_of(target)}; an import must go to a lower floor"
                + ("." if room_of(file) == room_of(target) else ", and rooms on one floor do not know each other.")
            )
    return found


def function_lengths(path: Path) -> Iterator[tuple[str, int, int]]:
    """
    Name, first line and length of every function's body.

    The signature and the docstring do not count: a constructor has one line per argument and one that explains it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            yield node.name, node.lineno, length


def torch_imports(root: Path) -> list[str]:
    """Where a module of the tasks would load torch: itself, or through a module of the package that it imports."""
    found = []
    for path in package_files(root):
        file = path.relative_to(root).as_posix()
        if not fnmatch(file, TORCH_FREE) or file in TORCH_ALLOWED:
            continue
        for item in imports_of(path, root):
            if item.module.split(".")[0] in TORCH and not item.for_types:
                found.append(f"{root.name}/{file}:{item.line}: `{item.text}` loads torch")
        for chain in _loads_torch(file, root, (file,)):
            if len(chain) > 2:
                found.append(f"{root.name}/{file} loads torch when it is imported: {' -> '.join(chain)}")
    return found


def _loads_torch(file: str, root: Path, chain: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Chains of imports that end in torch and run at import time."""
    for item in imports_of(root / file, root):
        if item.for_types or not item.at_import:
            continue
        if item.module.split(".")[0] in TORCH:
            yield (*chain, item.module)
        target = resolve(item.module, root)
        if target is not None and target not in chain and (root / target).is_file():
            yield from _loads_torch(target, root, (*chain, target))


def public_names() -> list[str]:
    """``__all__`` of the package, read without importing it."""
    for node in ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            if isinstance(node.value, ast.List | ast.Tuple):  # type: ignore[attr-defined]
                return [ast.literal_eval(item) for item in node.value.elts]  # type: ignore[attr-defined]
            import sb3_varshare

            return list(sb3_varshare.__all__)
    raise AssertionError(f"{PACKAGE}/__init__.py has no __all__")


def test_every_file_has_a_floor() -> None:
    unknown = []
    for path in package_files(ROOT):
        file = path.relative_to(ROOT).as_posix()
        if not any(fnmatch(file, pattern) for pattern in FLOORS):
            unknown.append(file)
    assert not unknown, (
        f"No floor for {unknown}: add each to FLOORS in {Path(__file__).name} and to docs/architecture.md."
    )


def test_the_table_names_only_files_that_exist() -> None:
    missing = [pattern for pattern in FLOORS if not any(ROOT.glob(pattern))]
    assert not missing, f"FLOORS in {Path(__file__).name} names files that do not exist: {missing}"


def test_imports_go_downwards() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_tasks_do_not_load_torch() -> None:
    found = torch_imports(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_files_and_functions_stay_small() -> None:
    found = []
    for path in package_files(ROOT):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{path.relative_to(REPOSITORY)}: {lines} lines, at most {MAX_FILE_LINES}")
        for name, line, length in function_lengths(path):
            if length > MAX_FUNCTION_LINES:
                place = f"{path.relative_to(REPOSITORY)}:{line}"
                found.append(f"{place}: {name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    assert not found, "\n" + "\n".join(found)


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in package_files(ROOT)
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert not silent, f"Without a module docstring: {silent}"


def test_docs_mention_every_public_name() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "docs").rglob("*.rst")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if "_build" not in page.parts)
    missing = [name for name in public_names() if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert not missing, f"In {PACKAGE}.__all__ but on no page of README.md and docs/: {missing}"


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A package of the same name with one legal import; tests break it."""
    root = tmp_path / PACKAGE
    files = {
        "__init__.py": '"""Top."""\n_LAZY = {"SupportError": ".categorical", "TaskSpec": ".tasks.suite"}\n',
        "types.py": '"""Types."""\nimport torch as th\n',
        "categorical.py": '"""Support."""\nfrom sb3_varshare.types import TaskBatch\n',
        "losses.py": '"""Losses."""\n',
        "tasks/__init__.py": '"""Tasks."""\nfrom sb3_varshare.tasks.suite import TaskSpec\n',
        "tasks/suite.py": '"""Suite."""\n',
        "tasks/encoding.py": '"""Encoding."""\nimport numpy as np\n',
        "tasks/vec_env.py": '"""VecEnv."""\nfrom stable_baselines3.common.vec_env import VecEnv\n',
    }
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def test_a_legal_house_has_no_violations(small_house: Path) -> None:
    assert violations(small_house) == []
    assert torch_imports(small_house) == []


@pytest.mark.parametrize(
    ("file", "statement", "target"),
    [
        ("types.py", "from sb3_varshare.losses import critic_loss", "losses.py on floor 2"),
        ("types.py", "def f():\n    from . import losses", "losses.py on floor 2"),
        (
            "types.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sb3_varshare.losses",
            "losses.py",
        ),
        ("types.py", 'import importlib\nimportlib.import_module(".losses")', "losses.py"),
        ("categorical.py", "from sb3_varshare.tasks.suite import TaskSpec", "tasks/suite.py on floor 1"),
        ("categorical.py", "from sb3_varshare.tasks import TaskSpec", "tasks/suite.py on floor 1"),
        ("categorical.py", "from sb3_varshare import TaskSpec", "tasks/suite.py on floor 1"),
        ("losses.py", "from sb3_varshare import tasks", "tasks/__init__.py"),
        ("losses.py", "import sb3_varshare", "__init__.py on floor 99"),
        ("tasks/encoding.py", "from .suite import TaskSpec", "tasks/suite.py on floor 1.1"),
    ],
)
def test_the_check_finds(small_house: Path, file: str, statement: str, target: str) -> None:
    with (small_house / file).open("a") as stream:
        stream.write(statement + "\n")
    (message,) = violations(small_house)
    assert message.startswith(f"{PACKAGE}/{file}:") and target in message


@pytest.mark.parametrize(
    ("statement", "chain"),
    [
        ("import torch", "tasks/encoding.py:3: `import torch` loads torch"),
        ("def f():\n    import torch", "tasks/encoding.py:4: `import torch` loads torch"),
        ("from sb3_varshare.types import TaskBatch", "tasks/encoding.py -> types.py -> torch"),
    ],
)
def test_the_check_finds_torch(small_house: Path, statement: str, chain: str) -> None:
    with (small_house / "tasks/encoding.py").open("a") as stream:
        stream.write(statement + "\n")
    assert any(chain in message for message in torch_imports(small_house))


def test_the_length_of_a_function_is_that_of_its_body(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        'def f(\n    a,\n    b,\n):\n    """\n    Long.\n    """\n    c = a\n\n    return c\n'
    )
    assert list(function_lengths(tmp_path / "module.py")) == [("f", 1, 3)]
