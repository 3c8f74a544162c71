"""Runs the stages pair, translate, source and adapt; resumes them, and skips finished ones."""

import functools
import time
from collections.abc import Mapping
from os import PathLike
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from daaa_jax import adaptation, cyclegan, data, evaluation, models, source, translation, validate
from daaa_jax.baselines import training as baseline_training
from daaa_jax.data import load_task
from daaa_jax.data.images import Images
from daaa_jax.data.pairs import all_images
from daaa_jax.data.types import ImageArray, Task
from daaa_jax.errors import Diverged, UserError, check_choice
from daaa_jax.evaluation import diagnostics, second_view, source_classes
from daaa_jax.experiment import external_inputs
from daaa_jax.experiment import result as results
from daaa_jax.experiment import stages as stage_rules
from daaa_jax.experiment.stages import NEEDS, OURS, STAGES, Stages
from daaa_jax.experiment.workdir import Workdir, differences, same_paths
from daaa_jax.models import network_file, parameter_table
from daaa_jax.report import page
from daaa_jax.runtime import device_memory, distributed, files
from daaa_jax.runtime import mesh as meshes
from daaa_jax.runtime.metrics import MetricWriter
from daaa_jax.runtime.preemption import Notice
from daaa_jax.training import loop, rounds
from daaa_jax.training.context import Context


def run(
    config: ConfigDict, workdir: str | PathLike, stage: str = "all", profiled: bool = False
) -> dict[str, Any]:
    """Runs all stages, or one of them, in a working directory.

    Args:
      config: the whole config.
      workdir: output folder; an earlier run of the same config in it is resumed.
      stage: `all`, or one of `STAGES`; the stages that it needs must be finished.
      profiled: whether to profile some updates of each training stage, into `workdir/profile`.

    Returns:
      On the first process, the content of `result.json`; empty on other processes, or if `stage`
      is not `all` or `adapt`.

    Raises:
      UserError: for any error that the user can fix.
      Preempted: if SIGTERM ended the run; call again to resume.
    """
    check_choice("--stage", stage, ("all", *STAGES), UserError)
    mesh = meshes.data_mesh(shards=config.run.parameter_shards)
    meshes.connect(mesh)
    place = Workdir(workdir)
    started = place.config() if place.config_json.exists() else None
    validate.resolve(config, mesh.size, started)
    finished = started if place.result_json.exists() else None
    if finished and same_paths(finished, config) and not differences(finished, config):
        return _finished_before(place, config, profiled)
    # Check before writing: a run with bad settings or missing data leaves no files.
    validate.check_settings(config, mesh)
    _check_has_stage(config, stage)
    validate.check_workdir(place.path, data.check(config.data))
    external_inputs.check(config)
    task = load_task(config.data)
    shapes = validate.network_shapes(config, task)
    job = _Run(config, task, place, mesh, stage)
    if job.stages.has_result():
        return _finished_before(place, config, profiled)
    job.check_needs()
    job.check_updates()
    job.check_external_source()
    with place.locked():
        for name in job.steps:
            job.stages.check_started(name)
        place.write_config(config)
        distributed.barrier("config written")
        distributed.check_shared(place.path)
        writer = MetricWriter(place.metrics_jsonl, place.tensorboard)
        with writer, Notice().listening() as notice:
            parameter_table.write(shapes, place.networks_txt)
            job.run(Context(place, mesh, writer, config.run, notice, profiled))
        if "adapt" not in job.wanted:
            return {}
        result = job.write_result()
    distributed.barrier("result written")  # processes that exit wait only a minute for others
    return result


def _check_has_stage(config: ConfigDict, stage: str) -> None:
    if stage not in ("all", *stage_rules.stages_of(config)):
        replaced = "source.checkpoint takes its place"
        why = replaced if stage == "source" else stage_rules.why_no_generators(config)
        raise UserError(f"--stage={stage} has nothing to do: {why}")


def _finished_before(workdir: Workdir, config: ConfigDict, profiled: bool) -> dict[str, Any]:
    """Returns the result of a finished run; writes its report if that is missing."""
    if distributed.is_first():
        left = " and has no updates left to profile" if profiled else ""
        print(f"{workdir} is finished{left}; other images need another --workdir", flush=True)
        if not same_paths(workdir.config(), config):
            workdir.update_paths(config)
        if not workdir.report.exists():
            page.write(workdir)
    return files.read_json(workdir.result_json)


class _Run:
    """One run: its task, settings and stages, of which those that are `wanted` are run."""

    def __init__(self, config: ConfigDict, task: Task, workdir: Workdir, mesh: Mesh, stage: str):
        self.config, self.task, self.workdir = config, task, workdir
        self.model = models.create_classifier(
            config.model, len(task.class_names), config.adapt.attention
        )
        self.generator, _ = models.create_gan(config.pair)
        self.evaluate = evaluation.make_evaluator(self.model, mesh, config)
        self.networks = results.Networks(workdir, config, task)
        originals = {
            task.source_name: task.source_train.images,
            task.target_name: task.target_train.images,
        }
        # Domains sorted by name, so that one CycleGAN serves both directions of a task.
        self.domains = dict(sorted(originals.items()))
        self.directions = self.forth, self.back = stage_rules.directions(task)
        self.external_translations = external_inputs.translations(config, task)
        self.external_source = external_inputs.source_network(config, task, self.model)
        steps = zip(STAGES, (self._pair, self._translate, self._source, self._adapt), strict=True)
        present = stage_rules.stages_of(config)
        self.steps = {name: step for name, step in steps if name in present}
        self.wanted = list(self.steps) if stage == "all" else [stage]
        self.needed = [name for name in NEEDS.get(stage, ()) if name in self.steps]
        self.stages = Stages(
            workdir,
            config.run.reuse,
            stage_rules.inputs(config, task, self.external_translations, self.external_source),
            {
                "pair": lambda place: place.generators.is_file(),
                "translate": lambda place: all(
                    translation.is_whole(place.translations(direction))
                    for direction in self.directions
                ),
                "source": lambda place: place.source_network.is_file(),
            },
        )

    def check_needs(self) -> None:
        """Checks that the stages that a stage needs are finished, if it runs alone."""
        for needed in self.needed:
            if self.stages.finished(needed) is None:
                raise UserError(
                    f"--stage={self.wanted[0]} needs the stage {needed}, which is not finished in "
                    f"{self.workdir}: run --stage={needed} first, or leave --stage out"
                )

    def check_updates(self) -> None:
        """Checks that updates of the later stages can be repeated, before the first one trains."""
        shape = self.task.source_train.images.shape[1:]
        training = functools.partial(self._target_training, translations={}, devices=1)
        to_run = [name for name in self.wanted if self.stages.finished(name) is None]
        validate.check_updates(self.config, self.model, shape, training, to_run[1:])

    def workdir_of(self, stage: str) -> Workdir:
        """The working directory where the stage is finished, the same on every process."""
        return Workdir(distributed.of_first(lambda: str(self.stages.workdir_of(stage))))

    def run(self, context: Context) -> None:
        """Runs the unfinished stages and writes their markers."""
        for name in self.wanted:
            if self._is_finished(name):
                self._use(name)
                if context.profiled and name != "translate":
                    print(f"{name}: has no updates left to profile", flush=True)
                continue
            if reason := self.stages.why_not_reused(name):
                print(f"{name}: not reused, {reason}", flush=True)
            for needed in self.needed:
                self._use(needed)
            self.stages.start(name)
            try:
                outputs = self.steps[name](context)
            except Diverged as error:
                error.stage = name
                raise
            self.stages.finish(name, outputs)
            distributed.barrier(f"{name} finished")  # before other processes read its outputs

    def _is_finished(self, name: str) -> bool:
        return bool(distributed.of_first(lambda: "yes" if self.stages.finished(name) else ""))

    def _use(self, name: str) -> None:
        """Uses a finished stage of this or of another working directory."""
        if distributed.is_first():
            place = self.stages.record_reuse(name)
            how = "finished before" if place == self.workdir else "taken from another run"
            print(f"{name}: {how}, in {place.stage(name)}", flush=True)

    def _pair(self, context: Context) -> Mapping[str, Any]:
        images_a, images_b = self.domains.values()
        params, loop_state = cyclegan.run(self.config.pair, images_a, images_b, context)
        about = {
            "domains": list(self.domains),
            "image_size": self.task.source_train.images.shape[1],
            "pair": self.config.pair,
        }
        network_file.write(self.workdir.generators, params, about)
        return loop_state

    def _translate(self, context: Context) -> Mapping[str, Any]:
        start = time.monotonic()
        params, count = network_file.read_tensors(self.workdir_of("pair").generators), 0
        for origin, images in self.domains.items():
            name = self.forth if origin == self.task.source_name else self.back
            generator = params[translation.direction(origin, self.domains)]
            count += translation.run(
                self.config.translate, self.generator, generator, images, name, context
            )
        seconds = time.monotonic() - start
        rate = {}  # none if all images were translated before
        if count:
            rate = {"images": count, "device_seconds": seconds * context.mesh.size}
            print(loop.rate_line("translate", rate), flush=True)
        # First process only: it writes the manifests last, and others may not see them yet.
        distances = {}
        if distributed.is_first():
            made = self._translated(self.workdir)
            distances = diagnostics.translation_colours(self.domains, made)
            diagnostics.log_colours(distances)
        return {"seconds": seconds, "colours": distances, **rate}

    def _source(self, context: Context) -> Mapping[str, Any]:
        variables, loop_state = source.run(
            self.config, self.model, self.task.source_train, self._accuracies, context
        )
        self.networks.write("source", variables)
        return loop_state

    def check_external_source(self) -> None:
        """Checks the classes of an external source network, before hours of work."""
        if self.external_source is None:
            return
        known = self.task.evaluation.source_test
        predicted = self.evaluate(self.external_source, known).log_posteriors.argmax(axis=1)
        names, where = self.task.class_names, self.config.source.checkpoint
        source_classes.check(predicted, known.labels, names, where)

    def _accuracies(self, variables: models.Variables) -> dict[str, float]:
        measured = self.task.evaluation
        return {
            measured.source_metric: self.evaluate(variables, measured.source_test).accuracy,
            "target_test": self.evaluate(variables, measured.target_test).accuracy,
        }

    def _adapt(self, context: Context) -> Mapping[str, Any]:
        variables = self.external_source
        if variables is None:
            variables = network_file.read(self.workdir_of("source").source_network).variables
        # Not in stage `source`, which runs with other target domains may share.
        outputs: dict[str, Any] = {"source_network": self._accuracies(variables)}
        translations = self._translations()
        if self.config.method == OURS:
            print(adaptation.batch_line(self.config), flush=True)
        if "pair" in self.steps:
            self._keep_generators()
        last, loop_state = rounds.run(
            self._target_training(variables, translations, context.mesh.size),
            self.config,
            self.evaluate,
            self.task.evaluation,
            context,
            self.networks.keep,
            self.task.class_names,
        )
        measured = {"em": loop_state["em"]} if "em" in loop_state else {}
        self.networks.write("last", last, **measured)
        print("adapt: measuring what the report shows", flush=True)
        with device_memory.enough_memory(
            "the report", "evaluate.audit_images, evaluate.batch_size"
        ):
            diagnostics.write(
                self.workdir,
                model=self.model,
                networks={"source": variables, "adapted": last},
                task=self.task,
                synthetic_target=translations.get(self.forth),
                evaluate=self.evaluate,
                config=self.config,
            )
        self.networks.select(loop_state["selected"]["step"], **measured)
        final = self.evaluate(last, self.task.evaluation.target_test)
        outputs |= {**loop_state, "per_class": final.per_class, "confusion": final.confusion}
        if "pair" not in self.steps:
            why = stage_rules.why_no_generators(self.config)
            print(f"adapt: no inference on both images: {why}", flush=True)
            return outputs
        selected = network_file.read(self.workdir.selected_network).variables
        return outputs | second_view.paired_accuracies(
            self.evaluate,
            self.task.evaluation.target_test,
            self._translated_test_images(translations[self.back], context),
            {"source": variables, "last": last, "selected": selected},
            loop_state["em"]["gamma"],
            self.config.em.threshold,
        )

    def _target_training(
        self, variables: models.Variables, translations: Mapping[str, ImageArray], devices: int
    ) -> rounds.TargetTraining:
        config, task = self.config, self.task
        if config.method != OURS:
            target_labels = task.evaluation.target_train.labels
            return baseline_training.target_training(
                config, self.model, variables, task.source_train, task.target_train, target_labels
            )
        source_images, target_images = task.source_train.images, task.target_train.images
        images = all_images(
            source_images,
            translations.get(self.forth, source_images),
            target_images,
            translations.get(self.back, target_images),
        )
        labels = task.source_train.labels
        return adaptation.target_training(config, self.model, variables, images, labels, devices)

    def _keep_generators(self) -> None:
        """Copies the generators into this working directory, for inference with its networks.

        Before training, as the working directory that they come from may be removed meanwhile.
        """
        origin, copy = self.workdir_of("pair").generators, self.workdir.generators
        if copy.absolute() != origin.absolute():
            files.write_bytes(copy, origin.read_bytes() if distributed.is_first() else b"")
        distributed.barrier("generators copied")

    def _translated_test_images(self, made: ImageArray, context: Context) -> ImageArray:
        """The target's test images in the source's style; `made` if they are those of training."""
        measured = self.task.evaluation
        if measured.target_test is measured.target_train:
            return made
        # Use the copy: the working directory that trained the generators may be removed by now.
        params = network_file.read_tensors(self.workdir.generators)
        params = params[translation.direction(self.task.target_name, self.domains)]
        images, name = measured.target_test.images, f"{self.back}_test"
        translation.run(self.config.translate, self.generator, params, images, name, context)
        return translation.read(self.workdir.translations(name))

    def _translations(self) -> Mapping[str, ImageArray]:
        """Translations by direction; empty if none are needed."""
        if not stage_rules.trains_cyclegan(self.config):
            return self.external_translations
        return self._translated(self.workdir_of("translate"))

    def _translated(self, workdir: Workdir) -> Mapping[str, Images]:
        return {name: translation.read(workdir.translations(name)) for name in self.directions}

    def write_result(self) -> dict[str, Any]:
        """Writes the result and the report of a run that is finished, on process 0 only."""
        if not distributed.is_first():
            return {}
        outputs = {name: self.stages.outputs(name) for name in self.steps}
        reused = {name for name in outputs if self.stages.workdir_of(name) != self.workdir}
        result = files.plain(results.result(self.config, self.task, outputs, reused))
        files.write_json(self.workdir.result_json, result)
        page.write(self.workdir)
        return result
