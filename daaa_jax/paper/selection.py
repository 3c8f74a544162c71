"""What the flags of `reproduce` select: data, tasks and rows of a table, settings of all runs."""

import dataclasses
from collections.abc import Mapping, Sequence

from daaa_jax.errors import UserError, check_choice
from daaa_jax.paper import cells, tables

# Settings that differ between cells, and what to use instead.
_OF_CELLS = dict.fromkeys(
    ("seed", "pair.seed", "source.seed"), "each cell has its own; use --seeds and --own_networks"
) | {"method": "each row has its own; use --methods"}


def some_rows(table: tables.Table, methods: Sequence[str]) -> tables.Table:
    """The table with only the rows of `methods`; with all rows if that is empty.

    Ignores case. A name that no method equals selects all methods that start with it: `ours` is
    with and without L_AT.

    Raises:
      UserError: if no method starts with a name.
    """
    known = dict.fromkeys(row.method for row in table.rows)
    chosen = set() if methods else set(known)
    for name in methods:
        same = [method for method in known if method.lower() == name.lower()]
        begin = [method for method in known if method.lower().startswith(name.lower())]
        if not begin:
            raise UserError(
                f"--methods={','.join(methods)}: {name!r} is not one of {', '.join(known)}"
            )
        chosen |= set(same or begin)
    rows = tuple(row for row in table.rows if row.method in chosen)
    return dataclasses.replace(table, rows=rows)


def chosen_tasks(
    plan: cells.Plan, known_tasks: Sequence[str], wanted: Sequence[str]
) -> tuple[str, ...]:
    """The requested tasks, in the table's order; all if none is requested.

    Raises:
      UserError: if the table has no such task on this data.
    """
    tasks = plan.tasks(known_tasks)
    names = {task: task for task in tasks} | {
        cells.DATA[plan.data][1][task]: task for task in tasks
    }
    unknown = [name for name in wanted if name not in names]
    if unknown:
        known = ", ".join(cells.DATA[plan.data][1][task] for task in tasks)
        raise UserError(f"--tasks={','.join(wanted)}: {unknown[0]!r} is not one of {known}")
    chosen = {names[name] for name in wanted} or set(tasks)
    return tuple(task for task in tasks if task in chosen)


def settings_for_all(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Checks and returns the settings that a user changes in all cells.

    Raises:
      UserError: if one cannot be the same in all cells, or has a comma in its value.
    """
    for name, value in settings.items():
        if "," in value:
            raise UserError(f"--config.{name}={value}: values with commas cannot be set here")
        if name in _OF_CELLS:
            raise UserError(f"--config.{name}={value}: {_OF_CELLS[name]}")
    return settings


def words_of(data: str) -> tuple[str, tuple[str, ...]]:
    """Splits `office10,cpu` into the data and the words after it.

    Raises:
      UserError: if the data is unknown, or a setting is among the words.
    """
    name, *words = data.split(",")
    if settings := [word for word in words if "=" in word]:
        raise UserError(f"--data={data}: use --config.{settings[0]}")
    check_choice("--data", name, cells.DATA, UserError)
    return name, tuple(words)
