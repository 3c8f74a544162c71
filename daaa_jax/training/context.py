"""What every stage is handed beside its settings: where to write, on which devices, how often."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.runtime.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Context:
    """The surroundings of a run.

    Attributes:
      workdir: where the stages write.
      mesh: the devices.
      writer: the sink of figures and pictures.
      settings: `config.run`: how often to log and to save; nothing in it changes a result.
      notice: whether the run has been told to end.
      profiled: whether some updates of each stage are traced, see `profiling`.
      later: by stage, what those after it cost in units of its own, see `costs.later`.
    """

    workdir: Path
    mesh: Mesh
    writer: MetricWriter
    settings: ConfigDict
    notice: Notice = dataclasses.field(default_factory=Notice)
    profiled: bool = False
    later: Mapping[str, float] = dataclasses.field(default_factory=dict)
