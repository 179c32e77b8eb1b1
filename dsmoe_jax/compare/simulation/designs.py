"""Simulation designs: worlds with known truth, the systems that run in them, and what they answer.

Owns names, words and the jobs of a world. Sizes and strengths of the worlds are in
`configs/simulation.py`. Every seed has a world of its own; seed 0 is left for trying things out.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from dsmoe_jax.compare import plan
from dsmoe_jax.config import load

CONFIG = "simulation"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One system of a world.

    Attributes:
      name: Part of its job's name.
      kind: Of its job: "run", "teacher", or "truth", which has several systems.
      tokens: Of the configuration's variant, after the world.
      found_in: The arm whose record has its recall; empty for its own.
    """

    name: str
    label: str
    kind: str = "run"
    tokens: str = ""
    found_in: str = ""


@dataclasses.dataclass(frozen=True)
class Question:
    """What the difference of two arms answers: names of arms, `first` minus `second`."""

    text: str
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class World:
    """A world, its arms in the order they are run, and what they are compared for.

    Attributes:
      name: Token of the configuration.
      title: Heading of its part of the section.
      text: What is generated; `{data[...]}` and `{model[...]}` are fields.
      arms: A teacher comes before its students.
      questions: The differences to report.
      has_tail: Whether small scenarios are reported beside the mean over all.
    """

    name: str
    title: str
    text: str
    arms: tuple[Arm, ...]
    questions: tuple[Question, ...]
    has_tail: bool = False


SHIFT = World(
    name="shift",
    title="A taste shift of rank 4 between scenarios",
    text=(
        "{data[num_users]:,} users, {data[num_items]:,} items, {data[num_scenarios]} scenarios "
        "with Zipf shares. Every scenario connects the contexts of users and items by a free 4 x 4 "
        "matrix of its own; models see both sides' vectors with noise. Nothing is distilled. A "
        "control without SAP has wider layers, so that it has as many parameters."
    ),
    arms=(
        Arm("truth", "_true scores_", "truth"),
        Arm("dsmoe", "**DSMOE**"),
        Arm("wide", "without SAP, wider", tokens="no_sap_wide"),
        Arm("no_dsbn", "without DSBN", tokens="no_dsbn"),
        Arm("wide_no_dsbn", "without SAP and DSBN, wider", tokens="no_sap_wide,no_dsbn"),
    ),
    questions=(
        Question("Does SAP earn more than as many parameters in wider layers?", "dsmoe", "wide"),
        Question("And where normalisation is shared by all scenarios?", "no_dsbn", "wide_no_dsbn"),
        Question("What does DSBN earn beside SAP?", "dsmoe", "no_dsbn"),
    ),
    has_tail=True,
)

MATCH = World(
    name="match",
    title="An interaction of rank far above the towers' width",
    text=(
        "{data[num_users]:,} users, {data[num_items]:,} items of {data[num_creators]:,} creators, "
        "{data[num_scenarios]} scenarios. An item gains {data[match_weight]:g} nats if its creator "
        "is among those of the user's last {data[recent]} items: as many directions as creators, "
        "where an inner product of the towers' outputs has {model[output_dim]}. The teacher sees "
        "the student's features and nothing more."
    ),
    arms=(
        Arm("truth", "_true scores_", "truth"),
        Arm(
            "truncated", "_their best approximation of the towers' rank_", "truth", found_in="truth"
        ),
        Arm("teacher", "teacher, MMOE-DIN", "teacher", found_in="distilled"),
        Arm("distilled", "**DSMOE**, distilled"),
        Arm("student", "DSMOE, not distilled", tokens="no_distill"),
    ),
    questions=(
        Question(
            "Does the teacher learn what an inner product cannot hold?", "teacher", "truncated"
        ),
        Question("Is the teacher better than a student without one?", "teacher", "student"),
        Question("Does distillation help the student, or harm it?", "distilled", "student"),
    ),
)

WORLDS = (SHIFT, MATCH)


def make_jobs(
    worlds: Sequence[World], seeds: Sequence[int], overrides: plan.Overrides | None = None
) -> list[plan.Job]:
    """The jobs of every world and seed, one seed for both; a teacher stands before its students."""
    found = []
    for seed, world in itertools.product(seeds, worlds):
        teacher = next((arm for arm in world.arms if arm.kind == "teacher"), None)
        fields = {"seed": seed, "data.generator_seed": seed, **(overrides or {})}
        for arm in world.arms:
            if arm.kind == "truth" and arm.found_in:
                continue
            config = load.extend(load.extend(CONFIG, world.name), arm.tokens)
            system = plan.System(f"{world.name}-{arm.name}", arm.label, config, kind=arm.kind)
            job = plan.Job(system, seed, fields)
            if teacher and arm.kind == "run" and job.experiment.loss.distill_weight:
                taught_by = plan.job_name(f"{world.name}-{teacher.name}", seed, 0)
                job = dataclasses.replace(job, teacher=taught_by)
            found.append(job)
    return found
