"""Which systems are compared in the planted worlds, and which questions their differences answer.

Owns names and words. How a cell is run is in `compare/simulation/simulate.py`; sizes and strengths
of the worlds are in `configs/planted.py`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
    """One system of a world.

    Attributes:
      name: Part of a record's name.
      label: What the table prints.
      kind: What is judged: "student", "teacher", the "truth" or its best approximation of the
        towers' width, "truncated".
      tokens: Of the configuration's variant, after the world.
    """

    name: str
    label: str
    kind: str = "student"
    tokens: str = ""


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
      text: What is planted; `{data[...]}` and `{model[...]}` are fields of a record.
      arms: A teacher comes before those who share its variant, and its checkpoints.
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
        Question(
            "Does SAP earn more than as many parameters in wider layers?",
            "dsmoe",
            "wide",
        ),
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
        Arm("truncated", "_their best approximation of the towers' rank_", "truncated"),
        Arm("teacher", "teacher, MMOE-DIN", "teacher"),
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
