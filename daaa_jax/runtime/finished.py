"""Where a stage lies finished: in this working directory, or in another that has done the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daaa_jax.errors import UserError
from daaa_jax.runtime import markers

NONE = "none"  # as `run.reuse`: every stage is run here
NOTES = "reused.json"  # in a working directory, what it has from others
_SHOWN = 5  # settings that differ


class Stages:
    """The stages of a run, each with its settings and the folder where it is found finished."""

    def __init__(
        self,
        workdir: Path,
        reuse: str,
        settings: Mapping[str, Mapping[str, Any]],
        shared: Mapping[str, Callable[[Path], bool]],
    ):
        """Looks at nothing yet.

        Args:
          workdir: of the run.
          reuse: `run.reuse`: another working directory, empty, or `none`.
          settings: by stage, all that its outcome depends on.
          shared: the stages that may be taken from another working directory, and whether all that
            such a stage has made is still there.
        """
        self.workdir, self.settings, self._shared = workdir, settings, shared
        self._given = Path(reuse).expanduser() if reuse not in ("", NONE) else None
        self._alone = reuse == NONE

    def home(self, stage: str) -> Path:
        """The working directory where the stage is finished, or else this one."""
        places = self._places(stage)
        return next((place for place in places if self._marker(stage, place)), self.workdir)

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

    def note(self, stage: str) -> None:
        """Keeps what the result needs of a stage that another working directory has finished.

        The other directory may be gone when this run ends.
        """
        if self.home(stage) != self.workdir:
            path = self.workdir / NOTES
            notes = markers.read_json(path) if path.exists() else {}
            notes[stage] = {
                "from": self.home(stage).absolute(),
                "extra": self.finished(stage)["extra"],
            }
            markers.write_json(path, notes)

    def extra(self, stage: str) -> dict[str, Any]:
        """What a finished stage, here or elsewhere, has left for the result."""
        if marker := self._marker(stage, self.workdir):
            return marker["extra"]
        return markers.read_json(self.workdir / NOTES)[stage]["extra"]

    def finish(self, stage: str, extra: Mapping[str, Any]) -> None:
        """Writes a stage's marker."""
        markers.write_marker(self.workdir / stage, stage, self.settings[stage], extra)

    def why_not_reused(self, stage: str) -> str:
        """Why the given working directory does not serve a stage; empty if it was not asked to."""
        if self._given is None or stage not in self._shared:
            return ""
        marker = markers.read_marker(self._given / stage)
        if marker is None:
            return f"not finished in {self._given}"
        differing = markers.differing_settings(marker["settings"], self.settings[stage])
        return "; ".join(differing[:_SHOWN])

    def _places(self, stage: str) -> list[Path]:
        if stage not in self._shared:
            return [self.workdir]
        own = self.workdir.absolute()
        try:
            siblings = [] if self._alone else sorted(own.parent.iterdir())
        except OSError:
            siblings = []
        others = [place for place in siblings if place != own and self._is_whole(stage, place)]
        # What a run has begun with it goes on with, whatever has been finished beside it since.
        others.sort(key=lambda place: str(place) != self._noted(stage))
        return [self.workdir, *([self._given] if self._given else []), *others]

    def _noted(self, stage: str) -> str:
        path = self.workdir / NOTES
        return (markers.read_json(path) if path.exists() else {}).get(stage, {}).get("from", "")

    def _is_whole(self, stage: str, place: Path) -> bool:
        """Whether a sibling, which somebody may have tidied up, still has what a stage made."""
        try:
            return (place / markers.CONFIG_NAME).is_file() and self._shared[stage](place)
        except (OSError, UserError):
            return False

    def _marker(self, stage: str, place: Path) -> dict[str, Any] | None:
        try:
            marker = markers.read_marker(place / stage)
        except (OSError, UserError):
            if place in (self.workdir, self._given):
                raise
            return None  # a sibling's damage is not this run's concern
        same = marker and marker["fingerprint"] == markers.fingerprint(self.settings[stage])
        return marker if same else None
