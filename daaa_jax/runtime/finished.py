"""Where a stage lies finished: in this working directory, or in another that has done the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daaa_jax.errors import UserError
from daaa_jax.runtime import markers

NONE = "none"  # as `run.reuse`: every stage is run here
_SHOWN = 5  # settings that differ


class Stages:
    """The stages of a run, each with its settings and the folder where it is found finished."""

    def __init__(self, workdir: Path, reuse: str, settings: Mapping[str, Mapping[str, Any]]):
        """Looks at nothing yet.

        Args:
          workdir: of the run.
          reuse: `run.reuse`: another working directory, empty, or `none`.
          settings: by stage, all that its outcome depends on.
        """
        self.workdir, self.settings = workdir, settings
        self._given = Path(reuse).expanduser() if reuse not in ("", NONE) else None
        self._alone = reuse == NONE

    def home(self, stage: str) -> Path:
        """The working directory where the stage is finished, or else this one."""
        return next((place for place in self._places() if self._marker(stage, place)), self.workdir)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The marker of a finished stage."""
        return self._marker(stage, self.home(stage))

    def begin(self, stage: str) -> None:
        """Makes sure that a half-done stage goes on with the inputs that it began with.

        Raises:
          UserError: if it began with others; names them.
        """
        path = self.workdir / stage / "started.json"
        if path.exists():
            begun = markers.read_json(path)
            differing = markers.differing_settings(begun, self.settings[stage])
            if differing:
                raise UserError(
                    f"stage {stage} in {self.workdir} began with other inputs: "
                    f"{'; '.join(differing[:_SHOWN])}. Restore them, or remove {path.parent}"
                )
        markers.write_json(path, self.settings[stage])

    def finish(self, stage: str, extra: Mapping[str, Any]) -> None:
        """Writes a stage's marker."""
        markers.write_marker(self.workdir / stage, stage, self.settings[stage], extra)

    def why_not_reused(self, stage: str) -> str:
        """Why the given working directory does not serve a stage; empty if none was given."""
        if self._given is None:
            return ""
        marker = markers.read_marker(self._given / stage)
        if marker is None:
            return f"not finished in {self._given}"
        differing = markers.differing_settings(marker["settings"], self.settings[stage])
        return "; ".join(differing[:_SHOWN])

    def _places(self):
        yield self.workdir
        if self._given:
            yield self._given
        parent = self.workdir.absolute().parent
        if self._alone or not parent.is_dir():
            return
        for sibling in sorted(parent.iterdir()):
            if sibling != self.workdir.absolute() and (sibling / markers.CONFIG_NAME).is_file():
                yield sibling

    def _marker(self, stage: str, place: Path) -> dict[str, Any] | None:
        try:
            marker = markers.read_marker(place / stage)
        except UserError:
            if place in (self.workdir, self._given):
                raise
            return None  # a sibling's damage is not this run's concern
        same = marker and marker["fingerprint"] == markers.fingerprint(self.settings[stage])
        return marker if same else None
