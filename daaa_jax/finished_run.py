"""A finished run is shown and not trained again, and only for the images that it was made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daaa_jax import fingerprints
from daaa_jax.errors import UserError
from daaa_jax.report import page
from daaa_jax.runtime import distributed, markers

RESULT = "result.json"  # in a working directory, written when all stages are finished
_SHOWN = 5  # settings that differ


def show(workdir: Path, profiled: bool) -> dict[str, Any]:
    """The result of a finished run, and its report if it was killed before it could write it.

    Args:
      workdir: of the run.
      profiled: whether it was asked for a trace, of which there is none.
    """
    if distributed.is_first():
        left = " and has no updates left to profile" if profiled else ""
        print(f"{workdir} is finished{left}; other images need another --workdir", flush=True)
        if not (workdir / page.NAME).exists():
            page.write(workdir)
    return markers.read_json(workdir / RESULT)


def check_same_data(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that what a finished run was made of is what is given now.

    Args:
      workdir: of the run.
      settings: of the stage `adapt`, which depends on all images and files.

    Raises:
      UserError: names what is not the same, or says that it cannot be told.
    """
    path = workdir / "adapt"
    if (marker := markers.read_marker(path)) is None:
        raise UserError(
            f"{path / markers.MARKER_NAME} is missing, which tells of which images the result is: "
            "choose another --workdir"
        )
    differing = markers.differing_settings(
        fingerprints.of_data(marker["settings"]), fingerprints.of_data(settings)
    )
    if differing:
        raise UserError(
            f"{workdir} is finished, with other images or files: "
            f"{'; '.join(differing[:_SHOWN])}. Choose another --workdir"
        )
