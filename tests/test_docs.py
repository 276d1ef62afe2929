"""README and docs say what is true: the front door runs as it stands, links lead somewhere, versions agree."""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
VERSION = (REPOSITORY / "sb3_varshare" / "version.txt").read_text(encoding="utf-8").strip()


def python_blocks(text: str) -> list[str]:
    """The fenced python blocks of a page."""
    return [textwrap.dedent(block) for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def front_door() -> list[ast.stmt]:
    """The statements of the README's marked block, with the step count substituted and nothing else."""
    text = README.read_text(encoding="utf-8")
    (block,) = python_blocks(text.split("<!-- front-door:begin -->")[1].split("<!-- front-door:end -->")[0])
    assert block.count("100_000") == 1
    return ast.parse(block.replace("100_000", "60")).body


def run(statements: list[ast.stmt], **names: Any) -> dict[str, Any]:
    """Run statements one by one; the user's ``observation`` is made as soon as the env is there."""
    for statement in statements:
        exec(compile(ast.Module([statement], type_ignores=[]), str(README), "exec"), names)
        if "env" in names and "observation" not in names:
            env = names["env"]
            names["observation"] = np.zeros(env.observation_space.shape[0] - env.n_tasks, dtype=np.float32)
    return names


def split_front_door() -> tuple[list[ast.stmt], ast.stmt, ast.stmt]:
    """The block without its two alternative environments, the one with a suite, the one with own environments."""
    statements = front_door()
    suite, own = (statement for statement in statements if ast.unparse(statement).startswith("env = "))
    return [statement for statement in statements if statement not in (suite, own)], suite, own


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_front_door_with_a_suite_runs_as_it_stands() -> None:
    pytest.importorskip("metaworld")
    (first, *rest), suite, _ = split_front_door()
    names = run([first, suite, *rest])
    assert "reach-v3" in names["env"].task_names
    assert names["action"].shape == (4,)
    names["env"].close()


def test_the_front_door_with_own_environments_runs_as_it_stands() -> None:
    (first, *rest), _, own = split_front_door()
    # The block asks for a task of the suite; with the other env the name is one of that env's.
    source = "\n".join(ast.unparse(statement) for statement in [first, own, *rest])
    assert source.count("'reach-v3'") == 1
    names = run(
        ast.parse(source.replace("'reach-v3'", "'slow'")).body,
        make_slow=lambda: gymnasium.make("Pendulum-v1", g=2.0),
        make_fast=lambda: gymnasium.make("Pendulum-v1", g=10.0),
    )
    assert tuple(names["env"].task_names) == ("slow", "fast")
    assert names["action"].shape == (1,)
    names["env"].close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_parses(page: Path) -> None:
    for block in python_blocks(page.read_text(encoding="utf-8")):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_scripts_named_in_the_docs_exist() -> None:
    for page in PAGES:
        for script in re.findall(r"\b(?:examples|benchmarks)/\w+\.py\b", page.read_text(encoding="utf-8")):
            assert (REPOSITORY / script).is_file(), f"{page.name} names {script}, which does not exist"


def test_make_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`|time )make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{page.name} names {named - targets}, which the Makefile lacks"


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {VERSION}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## Release {VERSION} " in (REPOSITORY / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert f"Version {VERSION}" in README.read_text(encoding="utf-8")


def test_constraints_pin_everything_exactly() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in filter(lambda line: line and not line.startswith("#"), lines):
        assert re.fullmatch(r"[\w.-]+==[\w.!]+", line), f"constraints.txt: expected name==version, got {line!r}"
