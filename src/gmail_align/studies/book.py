"""All studies together: what exists, what ran, what each costs, and the book of all tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gmail_align.errors import ConfigError
from gmail_align.progress import say
from gmail_align.studies.language import read_study, study_names
from gmail_align.studies.real import DATA_STUDIES, run_data_study
from gmail_align.studies.result import RESULT, StudyResult
from gmail_align.studies.run import StudyOptions, plan_study, run_study
from gmail_align.studies.tables import write_book, write_tables
from gmail_align.workflow.plan import plan_lines

BOOK: Final = "book.html"
TITLE: Final = "The tables of GMAIL, again"


def run_one(name: str, options: StudyOptions) -> dict[str, Any]:
    """Run a study, write its tables, and return its result with the path of its page.

    Raises:
        UserError: a key, a model or an input cannot be used.
    """
    if name in DATA_STUDIES:
        result = run_data_study(name, options)
        result.write(options.place(name) / RESULT)
    else:
        if options.data is not None:
            raise ConfigError(f"study {name} does not read a folder of data: leave out --data")
        result = run_study(name, options)
    page = write_tables(result, options.place(result.study))
    return {**_body(result), "page": str(page)}


def run_all(options: StudyOptions) -> dict[str, Any]:
    """Run every shipped study of a scale and write one book.

    Raises:
        UserError: a key, a model or an input cannot be used.
    """
    if options.out is not None:
        raise ConfigError("study all writes several folders: give --work instead of --out")
    results = []
    for name in names_at(options):
        say(f"study {name}")
        result = run_study(name, options)
        write_tables(result, options.place(name))
        results.append(result)
    path = options.tables / BOOK
    write_book(results, TITLE, path)
    return {"book": str(path), "studies": [_body(result) for result in results]}


def blocked_plans(name: str, options: StudyOptions) -> list[dict[str, Any]]:
    """Return the plans of the paper's scale where data, models or modules are missing, or none."""
    if options.scale != "paper" or name in DATA_STUDIES:
        return []
    made = plans(name, options)
    return made if any(plan["needs"] for plan in made) else []


def plans(name: str, options: StudyOptions) -> list[dict[str, Any]]:
    """Return the plan of a study, or of all; without torch."""
    if name in DATA_STUDIES:
        title = DATA_STUDIES[name].title
        raise ConfigError(f"study {name} ({title}) does not have a plan: leave out --dry-run")
    return [plan_study(one, options) for one in (names_at(options) if name == "all" else [name])]


def names_at(options: StudyOptions) -> list[str]:
    """Return the names of the shipped studies that exist at a scale."""
    return [name for name in study_names() if options.scale in read_study(name).scale]


def list_studies(options: StudyOptions) -> list[dict[str, Any]]:
    """Say of every study what it is, whether it ran in the work folder, and what is left to pay."""
    rows: list[dict[str, Any]] = []
    for name in names_at(options):
        study, plan = read_study(name), plan_study(name, options)
        rows.append(
            {
                "name": name,
                "number": study.number,
                "title": study.title,
                "ran": (options.place(name) / RESULT).exists(),
                "steps": len(plan["steps"]),
                "steps_to_make": plan["missing_steps"],
                "tflop_to_pay": _total(plan["costs"]),
                "gpu_hours_to_pay": plan["gpu_hours"],
                "needs": len(plan["needs"]),
            }
        )
    for name, real in DATA_STUDIES.items():
        ran = (options.place(name) / RESULT).exists()
        left = "needs --data DIR" if real.needs_data else "does not state its cost"
        rows.append({"name": name, "number": "", "title": real.title, "ran": ran, "left": left})
    return rows


def list_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay the list of studies out for people."""
    width = max(len(row["name"]) for row in rows)
    return [f"{row['name']:{width}}  {row['title']}: {_state(row)}" for row in rows]


def _state(row: Mapping[str, Any]) -> str:
    if row["ran"]:
        return "ran in this work folder"
    if "steps" not in row:
        return str(row["left"])
    made = row["steps"] - row["steps_to_make"]
    tflop, needs = row["tflop_to_pay"], row["needs"]
    cost = "an unknown number of" if tflop is None else f"{tflop:,.3g}"
    missing = f", {needs} inputs are missing" if needs else ""
    return f"{made} of {row['steps']} steps are there, {cost} TFLOP are left{missing}"


def plan_text(plan: Mapping[str, Any]) -> str:
    """Lay the plan of a study out for people."""
    return "\n".join(
        [f"{plan['study']}, scale {plan['scale']}: {plan['title']}", *plan_lines(plan)]
    )


def verdict_lines(made: Mapping[str, Any]) -> list[str]:
    """Return one line for each claim of a study's result."""
    return [f"{claim['verdict']:15} {claim['name']}" for claim in made["claims"]]


def _total(costs: Sequence[Mapping[str, Any]]) -> float | None:
    every = [cost["tflop"] for cost in costs]
    return None if None in every else float(sum(every))


def _body(result: StudyResult) -> dict[str, Any]:
    return {"fingerprint": result.fingerprint, **result.model_dump(mode="json")}
