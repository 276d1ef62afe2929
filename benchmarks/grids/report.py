"""
Make every table and figure from the committed results.

    python benchmarks/grids/report.py

Tables are Markdown files. A page that has the lines ``<!-- table: NAME -->`` and ``<!-- end of table -->`` gets what
lies between them replaced by the table of that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from declaration import GRIDS, POOLS, Pool
from figures import draw_curves, draw_intervals
from pooled import pooled_rows, pooled_table
from scores import iqm, mean, mean_difference, score_matrix, with_scores
from store import TABLE, read
from unit import REPOSITORY

FOLDER = REPOSITORY / "benchmarks" / "grids" / "results"
# Two tasks act differently: of two solved ones that need opposite actions the distance is about 1.5.
APART = 1.0
Tables = dict[str, str]


@dataclass(frozen=True)
class Args:
    """
    Where things lie.

    :param results: folder of the grids' tables, as ``run.py --collect`` writes them
    :param tables: folder for the Markdown files
    :param figures: folder for the figures
    :param page: filled where it has marks; need not exist
    """

    results: Path = FOLDER
    tables: Path = FOLDER / "tables"
    figures: Path = REPOSITORY / "docs" / "figures" / "grids"
    page: Path = REPOSITORY / "docs" / "results.md"


def markdown(table: pd.DataFrame) -> str:
    """
    :param table: of texts
    :return: the same as a Markdown table
    """
    lines = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def ordered_contenders(rows: pd.DataFrame) -> list[str]:
    """
    :param rows: of one suite
    :return: contenders by their steps and, among equals, in the order of the grid's declaration
    """
    places = {arm.name: place for place, arm in enumerate(GRIDS[rows["grid"].iloc[0]].arms)}
    found = rows[["agent", "steps", "contender"]].drop_duplicates()
    found = found.assign(place=found["agent"].map(places)).sort_values(["steps", "place"])
    return [str(name) for name in found["contender"]]


def score_table(rows: pd.DataFrame) -> pd.DataFrame:
    """
    A row per contender: IQM and mean at the end, the mean of all evaluations, which says who learned sooner, what these
    means are above those of the first contender of the same steps, worst seed and worst run of a task at the end.

    :param rows: of one suite
    """
    first = GRIDS[rows["grid"].iloc[0]].arms[0].name
    table = []
    for contender in ordered_contenders(rows):
        own = rows[rows["contender"] == contender]
        last = own[own["step"] == own["steps"]]
        matrix = score_matrix(last)
        diverged = last[last["status"] == "diverged"]["seed"].nunique()
        table.append(
            {
                "": contender,
                "IQM of scores": str(iqm(matrix)),
                **_mean_cells(rows[rows["step"] == rows["steps"]], last, first, "mean"),
                **_mean_cells(rows, own, first, "all evaluations"),
                "worst seed": f"{matrix.mean(1).min():.2f}",
                "worst task and seed": f"{matrix.min():.2f}",
                "seeds": f"{len(matrix)}" + (f", {diverged} diverged" if diverged else ""),
                "seconds": f"{last['seconds'].mean():.0f}",
            }
        )
    return pd.DataFrame(table)


def _mean_cells(rows: pd.DataFrame, own: pd.DataFrame, first: str, label: str) -> dict[str, str]:
    matrix, base = score_matrix(own), rows[(rows["agent"] == first) & (rows["steps"] == own["steps"].iloc[0])]
    alone = own["agent"].iloc[0] == first or base.empty
    difference = "" if alone else str(mean_difference(matrix, score_matrix(base)))
    return {label: str(mean(matrix)), f"{label}, minus {first}": difference}


def factor_table(rows: pd.DataFrame) -> pd.DataFrame:
    """
    The same by factor: every level in order, the base's own too.

    :param rows: of one suite
    """
    table, grid = score_table(rows).set_index(""), GRIDS[rows["grid"].iloc[0]]
    found = []
    for factor in dict.fromkeys(rows["factor"].loc[rows["factor"] != ""]):
        for level, changes in grid.factors[factor].items():
            is_base = all(grid.base[name] == value for name, value in changes.items())
            name = "base" if is_base else f"{factor}={level}"
            if name in table.index:
                text = f"{level} (base)" if is_base else level
                found.append({"factor": f"`{factor}`", "level": text, **table.loc[name]})
    return pd.DataFrame(found)


def task_table(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """
    A row per contender and a column per task: mean over seeds, of scores with its interval.

    :param rows: of one suite at one step
    :param column: which number
    """
    tasks = list(dict.fromkeys(rows["task"]))
    values = rows.pivot_table(column, "seed", ["contender", "task"])
    is_score = column.endswith("score")
    table = []
    for contender in ordered_contenders(rows):
        if contender in values:
            # Of an unfinished grid a contender may have fewer seeds than others.
            own = values[contender].dropna()
            cells = {f"`{t}`": str(mean(own[[t]].to_numpy())) if is_score else f"{own[t].mean():,.0f}" for t in tasks}
            table.append({"": contender, **cells})
    return pd.DataFrame(table)


def separation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """
    A row per contender: distance of the two tasks' mean actions, for each pair, at the first evaluation and at the end,
    and the share of the training after which that of the conflicting pair exceeded 1 for the first time.

    :param rows: of one suite
    """
    table = []
    for contender in ordered_contenders(rows):
        own = rows[rows["contender"] == contender]
        total = own["steps"].iloc[0]
        cells = {"": contender}
        for column in ("distance_conflicting", "distance_identical"):
            means = own.groupby("step")[column].mean().dropna()
            if len(means):
                name = column.removeprefix("distance_")
                cells |= {
                    f"{name}, after {means.index[0] / total:.0%}": f"{means.iloc[0]:.2f}",
                    f"{name}, end": f"{means.iloc[-1]:.2f}",
                }
                if column == "distance_conflicting":
                    apart = means.index[means > APART]
                    cells[f"above {APART:g} after"] = f"{apart[0] / total:.0%}" if len(apart) else "never"
        if len(cells) > 1:
            table.append(cells)
    return pd.DataFrame(table).fillna("")


def suite_tables(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """
    :param rows: of one suite, from :func:`scores.with_scores`
    :return: kind and table
    """
    ends = rows[rows["step"] == rows["steps"]]
    yield "scores", factor_table(rows) if (rows["factor"] != "").any() else score_table(rows)
    yield "tasks", task_table(ends, "score")
    yield "base", task_table(ends, "base_score")
    yield "kl_actor", task_table(ends, "kl_actor")
    yield "kl_critic", task_table(ends, "kl_critic")
    yield "separation", separation_table(rows)


def grid_tables(rows: pd.DataFrame) -> Tables:
    """
    :param rows: of one grid, from :func:`scores.with_scores`
    :return: name -> Markdown
    """
    return {
        f"{rows['grid'].iloc[0]}_{suite}_{kind}": markdown(table)
        for suite, own in rows.groupby("suite", sort=False)
        for kind, table in suite_tables(own)
        if len(table)
    }


def pool_tables(pool: Pool, rows: pd.DataFrame) -> Tables:
    """
    :param pool: a grid with its repetition
    :param rows: of both, from :func:`pooled.pooled_rows`
    :return: name -> Markdown, of all tasks together and of each
    """
    tables = {"mean": pooled_table(pool, rows)}
    tables |= {str(task): pooled_table(pool, own) for task, own in rows.groupby("task", sort=False)}
    return {f"{pool.repetition}_pooled_{name}": markdown(table) for name, table in tables.items()}


def fill(page: str, tables: Tables) -> str:
    """
    :param page: text with marks
    :param tables: name -> Markdown
    :return: the text with the tables between their marks
    :raises ValueError: a mark names a table that there is not
    """

    def replaced(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise ValueError(f"Expected the name of a table in the page's mark, got {match[2]!r} of {sorted(tables)}.")
        return f"{match[1]}\n\n{tables[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?(<!-- end of table -->)", replaced, page, flags=re.DOTALL)


def main(args: Args) -> None:
    """
    :param args: where things lie
    """
    tables: Tables = {}
    for folder in (args.tables, args.figures):
        folder.mkdir(parents=True, exist_ok=True)
    grids = {path.name.removesuffix(TABLE): with_scores(read(path)) for path in sorted(args.results.glob(f"*{TABLE}"))}
    for name, rows in grids.items():
        tables |= grid_tables(rows)
        for suite, own in rows.groupby("suite", sort=False):
            draw = draw_intervals if (own["factor"] != "").any() else draw_curves
            # A shorter run is the beginning of a longer one.
            longest = own[own["steps"] == own["steps"].max()]
            draw(longest, ordered_contenders(longest), args.figures / f"{name}_{suite}.svg")
    for pool in POOLS:
        if {pool.grid, pool.repetition} <= set(grids):
            tables |= pool_tables(pool, pooled_rows(pool, grids))
    for name, text in tables.items():
        (args.tables / f"{name}.md").write_text(text, encoding="utf-8")
    if args.page.exists():
        args.page.write_text(fill(args.page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"{len(tables)} tables in {args.tables}, figures in {args.figures}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
