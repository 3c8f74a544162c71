"""Tables of the parameters of a run's networks."""

from collections.abc import Mapping
from pathlib import Path

from clu import parameter_overview

from daaa_jax.models import Variables
from daaa_jax.runtime import files


def write(shapes: Mapping[str, Variables], path: Path) -> None:
    """Prints the size of each network, and writes tables of their parameters.

    Args:
      shapes: variables of each network, or their shapes, by its name.
      path: file for the tables.
    """
    tables = []
    for name, variables in shapes.items():
        params = variables["params"]
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        tables.append(f"{name}:\n{table}\n")
        count = parameter_overview.count_parameters(params)
        print(f"{name}: {count:,} parameters, listed in {path}", flush=True)
    files.write_text(path, "\n".join(tables))
