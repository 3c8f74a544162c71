"""The stages in order: pair, translate, source, adapt; each resumed, or skipped if finished."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import (
    adaptation,
    baselines,
    colours,
    costs,
    cyclegan,
    evaluation,
    fingerprints,
    finished_run,
    models,
    outcome,
    overview,
    paired_inference,
    preflight,
    settings,
    source,
    translation,
)
from daaa_jax import workdir as workdirs
from daaa_jax.baselines import training as baseline_training
from daaa_jax.data import external_translations, load_task
from daaa_jax.data.images import Images
from daaa_jax.data.pairs import all_images
from daaa_jax.data.records import Records
from daaa_jax.data.types import Task
from daaa_jax.errors import Diverged, UserError
from daaa_jax.inference import GENERATORS
from daaa_jax.models import network_file
from daaa_jax.outcome import Outcome
from daaa_jax.report import page
from daaa_jax.runtime import distributed, lock, markers
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.finished import Stages
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.runtime.preemption import Notice
from daaa_jax.training import rounds
from daaa_jax.training.context import Context

STAGES = ("pair", "translate", "source", "adapt")
NEEDS = {"translate": ["pair"], "adapt": ["pair", "translate", "source"]}
OVERVIEW = "networks.txt"
# In a working directory.
SOURCE_NETWORK = Path("source") / network_file.NAME
_NO_TRANSLATIONS = (
    "no loss looks at translations (adapt.mix.t_f, adapt.mix.s_f and adapt.beta are 0, and "
    "em.posterior is target)"
)


def run(
    config: ConfigDict, workdir: Path, stage: str = "all", profiled: bool = False
) -> dict[str, Any]:
    """Runs the stages, or one of them, in a working directory.

    Args:
      config: the whole config.
      workdir: where everything is written; an earlier run of the same config is continued.
      stage: `all`, or one of `STAGES`, which then needs the finished ones before it.
      profiled: whether some updates of each stage that trains are traced, in `workdir/profile`.

    Returns:
      The result, as `result.json` holds it, on the first process; empty on others, and unless all
      stages are finished.

    Raises:
      UserError: for anything that the user can mend.
      Preempted: if SIGTERM has told the run to end; the same call goes on.
    """
    if stage not in ("all", *STAGES):
        raise UserError(f"--stage={stage} is unknown: choose {', '.join(STAGES)}, or leave it out")
    mesh = meshes.data_mesh(shards=config.run.parameter_shards)
    meshes.connect(mesh)
    begun = (workdir / markers.CONFIG_NAME).exists()
    settings.fit_to_devices(config, mesh.size, workdirs.read_config(workdir) if begun else None)
    workdirs.check_same_config(workdir, config)
    finished = (workdir / finished_run.RESULT).exists()
    if finished and workdirs.is_where(workdir, config):
        return finished_run.show(workdir, profiled)
    # Before anything is written: a run with bad settings, or without its data, leaves nothing.
    settings.check(config, mesh)
    preflight.check_workdir(workdir)
    preflight.check_brought(config)
    task = load_task(config.data)
    preflight.check_networks(config, task)
    job = _Run(config, task, workdir, mesh)
    if finished:
        finished_run.check_same_data(workdir, job.stages.settings["adapt"])
        workdirs.moved(workdir, config)
        return finished_run.show(workdir, profiled)
    job.check_needs(stage)
    with lock.held(workdir):
        workdirs.write_config(workdir, config)
        distributed.barrier("config written")
        distributed.check_shared(workdir)
        with MetricWriter(workdir) as writer, Notice().listening() as notice:
            overview.write(config, task, workdir / OVERVIEW)
            later = costs.later(config, task, job.to_come(stage))
            context = Context(workdir, mesh, writer, config.run, notice, profiled, later)
            job.through(stage, context)
        if stage not in ("all", "adapt"):
            return {}
        result = markers.plain(job.result()) if distributed.is_first() else {}
        markers.write_json(workdir / finished_run.RESULT, result)
        if distributed.is_first():
            page.write(workdir)
    distributed.barrier("result written")  # at their end the others wait for a minute only
    return result


class _Run:
    """One run: a task, its settings, and the stages on them."""

    def __init__(self, config: ConfigDict, task: Task, workdir: Path, mesh: Mesh):
        self.config, self.task, self.workdir = config, task, workdir
        self.model = models.create_classifier(
            config.model, len(task.class_names), config.adapt.attention
        )
        self.generator, _ = models.create_gan(config.pair)
        self.evaluate = evaluation.make_evaluator(self.model, mesh, config)
        originals = {
            task.source_name: task.source_train.images,
            task.target_name: task.target_train.images,
        }
        # The CycleGAN knows its domains by the order of their names: one serves both directions.
        self.domains = dict(sorted(originals.items()))
        self.forth = f"{task.source_name}_to_{task.target_name}"
        self.back = f"{task.target_name}_to_{task.source_name}"
        # What a user brings takes the place of stages.
        self.brought_translations = self._brought_translations()
        self.brought_source = self._brought_source()
        self.runs = {
            "pair": self._pair,
            "translate": self._translate,
            "source": self._source,
            "adapt": self._adapt,
        }
        for name in (
            *(() if adaptation.trains_cyclegan(config) else ("pair", "translate")),
            *(("source",) if self.brought_source else ()),
        ):
            del self.runs[name]
        # What adaptation gives is evaluated in a way of its own, and is the run's own concern.
        shared = {
            "pair": lambda home: (home / GENERATORS).is_file(),
            "translate": lambda home: all(
                translation.is_whole(home / "translate" / direction)
                for direction in (self.forth, self.back)
            ),
            "source": lambda home: (home / SOURCE_NETWORK).is_file(),
        }
        depends = fingerprints.of_stages(
            config, task, self.brought_translations, self.brought_source
        )
        self.stages = Stages(workdir, config.run.reuse, depends, shared)

    def _brought_translations(self) -> dict[str, Images]:
        folder = self.config.pair.translations
        if not (folder and adaptation.needs_translations(self.config)):
            return {}
        task, size = self.task, self.task.source_train.images.shape[1]
        if not task.source_files:
            raise UserError(
                f"pair.translations={folder}: the images of {self.config.data.name} are no files "
                "of their own, so none can be found by its name"
            )
        return {
            self.forth: Images(
                external_translations.read(folder, self.forth, task.source_files, size)
            ),
            self.back: Images(
                external_translations.read(folder, self.back, task.target_files, size)
            ),
        }

    def _brought_source(self) -> models.Variables | None:
        if not (place := self.config.source.checkpoint):
            return None
        size = self.task.source_train.images.shape[1]
        shapes = network_file.variable_shapes(self.model, size, self.config.augment)
        return network_file.read_source_network(
            place, self.config.model, shapes, self.task.class_names
        )

    def check_needs(self, wanted: str) -> None:
        """Makes sure that a stage which shall run alone can, and has what it builds upon."""
        if wanted != "all" and wanted not in self.runs:
            brought = "source.checkpoint takes its place"
            why = brought if wanted == "source" else self._no_generators()
            raise UserError(f"--stage={wanted} has nothing to do: {why}")
        for needed in NEEDS.get(wanted, ()):
            if needed in self.runs and self.stages.finished(needed) is None:
                raise UserError(
                    f"--stage={wanted} needs the stage {needed}, which is not finished in "
                    f"{self.workdir}: run --stage={needed} first, or leave --stage out"
                )

    def to_come(self, wanted: str) -> list[str]:
        """The stages that are to be run, in order."""
        return [
            name
            for name in self.runs
            if wanted in ("all", name) and self.stages.finished(name) is None
        ]

    def home(self, stage: str) -> Path:
        """The working directory where a stage is finished."""
        return Path(distributed.of_first(lambda: str(self.stages.home(stage))))

    def through(self, wanted: str, context: Context) -> None:
        """Runs one stage, or all of them, unless they are finished, and writes their markers."""
        for name, stage in self.runs.items():
            if wanted not in ("all", name):
                continue
            if distributed.of_first(lambda of=name: "yes" if self.stages.finished(of) else ""):
                if distributed.is_first():
                    self.stages.note(name)
                    self._tell(name)
                    if context.profiled and name != "translate":
                        print(f"{name}: has no updates left to profile", flush=True)
                continue
            if reason := self.stages.why_not_reused(name):
                print(f"{name}: not reused, {reason}", flush=True)
            for needed in NEEDS.get(name, ()):  # passed over above if this stage runs alone
                if wanted == name and needed in self.runs and distributed.is_first():
                    self.stages.note(needed)
                    self._tell(needed)
            self.stages.begin(name)
            try:
                left = stage(context)
            except Diverged as error:
                error.stage = name
                raise
            self.stages.finish(name, left)
            distributed.barrier(f"{name} finished")  # before others look for what it has made

    def _tell(self, name: str) -> None:
        place = self.stages.home(name)
        how = "finished before" if place == self.workdir else "taken from another run"
        print(f"{name}: {how}, in {place / name}", flush=True)

    def _pair(self, context: Context) -> Mapping[str, Any]:
        params, memory = cyclegan.run(self.config.pair, *self.domains.values(), context)
        about = {
            "domains": list(self.domains),
            "image_size": self.task.source_train.images.shape[1],
            "pair": self.config.pair,
        }
        network_file.write_tensors(self.workdir / GENERATORS, params, network_file.metadata(about))
        return memory

    def _translate(self, context: Context) -> Mapping[str, Any]:
        start = time.monotonic()
        params = network_file.read_tensors(self.home("pair") / GENERATORS)
        first, second = self.domains
        for name, origin, other in (("a_to_b", first, second), ("b_to_a", second, first)):
            translation.run(
                self.config,
                self.generator,
                params[name],
                self.domains[origin],
                f"{origin}_to_{other}",
                context,
            )
        # The manifests, which the first process writes last, are its own.
        distances = {}
        if distributed.is_first():
            distances = colours.of_translations(self.domains, self._made(self.workdir))
            colours.tell(distances)
        return {"seconds": time.monotonic() - start, "colours": distances}

    def _source(self, context: Context) -> Mapping[str, Any]:
        variables, memory = source.run(
            self.config, self.model, self.task.source_train, self._accuracies, context
        )
        path = self.workdir / SOURCE_NETWORK
        outcome.write_network(path, variables, "source", self.config, self.task)
        return memory

    def _accuracies(self, variables: models.Variables) -> dict[str, float]:
        measured = self.task.evaluation
        return {
            measured.source_figure: self.evaluate(variables, measured.source_test).accuracy,
            "target_test": self.evaluate(variables, measured.target_test).accuracy,
        }

    def _adapt(self, context: Context) -> Mapping[str, Any]:
        task, config = self.task, self.config
        variables = self.brought_source
        if variables is None:
            variables = network_file.read(self.home("source") / SOURCE_NETWORK).variables
        # Here and not in stage `source`, which may be one that another target domain shares.
        before = {"source_network": self._accuracies(variables)}
        made = self._translations()
        self._keep_generators()
        training = self._target_training(variables, made, context.mesh.size)
        kept = Outcome(self.workdir, config, task, self.model, self.evaluate)
        last, memory = rounds.run(
            training, config, self.evaluate, task.evaluation, context, kept.keep
        )
        translated = self._translated_test(made, context)
        left = before | kept.finish(last, memory, variables, made.get(self.forth))
        if translated is not None:
            selected = network_file.read(self.workdir / outcome.SELECTED).variables
            left |= paired_inference.accuracies(
                self.evaluate,
                task.evaluation.target_test,
                translated,
                {"source": variables, "last": last, "selected": selected},
                memory["em"]["gamma"],
                config.em.threshold,
            )
        return left

    def _keep_generators(self) -> None:
        """Copies the generators to the networks that need them, whoever trained them.

        Before the training: the working directory that they are from may be gone at its end.
        """
        if "pair" not in self.runs:
            return
        origin, copy = self.home("pair") / GENERATORS, self.workdir / GENERATORS
        if copy.absolute() != origin.absolute():
            markers.write_bytes(copy, origin.read_bytes() if distributed.is_first() else b"")
        distributed.barrier("generators copied")

    def _no_generators(self) -> str:
        """Why a run trains no CycleGAN."""
        if self.config.method != baselines.OURS:
            return f"method={self.config.method} has no generators"
        if adaptation.needs_translations(self.config):
            return "pair.translations has no generators"
        return _NO_TRANSLATIONS

    def _translated_test(self, made: Mapping[str, Images], context: Context) -> Records | None:
        """The target's test images in the source's style; None where there is no generator.

        Args:
          made: the translations of the training images, by direction.
          context: the surroundings of the run.
        """
        if "pair" not in self.runs:
            if distributed.is_first():
                print(f"adapt: no inference on both images: {self._no_generators()}", flush=True)
            return None
        measured = self.task.evaluation
        if measured.target_test is measured.target_train:
            return made[self.back]
        # Of the copy: the working directory that they are from may be gone by now.
        params = network_file.read_tensors(self.workdir / GENERATORS)
        params = params[translation.direction(self.task.target_name, self.domains)]
        images, name = measured.target_test.images, f"{self.back}_test"
        translation.run(self.config, self.generator, params, images, name, context)
        return translation.read(context.workdir / "translate" / name)

    def _target_training(
        self, source: models.Variables, made: Mapping[str, Images], devices: int
    ) -> rounds.TargetTraining:
        config, task = self.config, self.task
        if config.method != baselines.OURS:
            return baseline_training.target_training(
                config,
                self.model,
                source,
                task.source_train,
                task.target_train,
                task.evaluation.target_train.labels,
            )
        source_images, target_images = task.source_train.images, task.target_train.images
        images = all_images(
            source_images,
            made.get(self.forth, source_images),
            target_images,
            made.get(self.back, target_images),
        )
        return adaptation.target_training(
            config, self.model, source, images, task.source_train.labels, devices
        )

    def _translations(self) -> Mapping[str, Images | Records]:
        """By direction; empty where none are needed."""
        if not adaptation.trains_cyclegan(self.config):
            return self.brought_translations
        return self._made(self.home("translate"))

    def _made(self, home: Path) -> Mapping[str, Records]:
        folder = home / "translate"
        return {name: translation.read(folder / name) for name in (self.forth, self.back)}

    def result(self) -> dict[str, Any]:
        """The result of a run whose stages are all finished."""
        extra = {stage: self.stages.extra(stage) for stage in self.runs}
        return outcome.result(self.config, self.task, extra)
