"""Method registry: the names of matchers and rankers, and their configurations.

Owns the names that variants of the configuration files use (`configs/kuairand.py:sample,mind`,
`teacher=sap`). What a method is stands in its own file; to add one is to write that file and name
its configuration here.
"""

from typing import Any

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.models.matching import (
    adin,
    dsmoe,
    dsmoe_plus,
    dssm,
    fism,
    fuxi,
    hstu,
    ican,
    m5,
    mind,
    mmoe,
    perscen,
    sass,
)
from dsmoe_jax.models.ranking import din, fused, hinet, hmoe, m3oe, mmoe_din, ple, sap_ranker, star

# Two-tower methods, which an index serves, in the order of tables: the name, what tables print and
# the configuration.
_MATCHERS: tuple[tuple[str, str, type[schema.MatcherConfig]], ...] = (
    ("dsmoe", "DSMOE", dsmoe.DSMOEConfig),
    ("dsmoe_plus", "DSMOE beside FISM", dsmoe_plus.DSMOEPlusConfig),
    # Of the paper's Table 2.
    ("ican", "ICAN", ican.ICANConfig),
    ("adin", "ADIN-style", adin.ADINConfig),
    ("sass", "SASS-style", sass.SASSConfig),
    ("m5", "M5-style", m5.M5Config),
    ("perscen", "PERSCEN-style", perscen.PERSCENConfig),
    # Classic ones.
    ("dssm", "DSSM", dssm.DSSMConfig),
    ("dssm_per_scenario", "DSSM per scenario", dssm.DSSMPerScenarioConfig),
    ("fism", "FISM", fism.FISMConfig),
    ("mind", "MIND", mind.MINDConfig),
    ("mmoe", "MMOE, two-tower", mmoe.MMoEConfig),
    # Sequential ones.
    ("hstu", "HSTU", hstu.HSTUConfig),
    ("fuxi", "FuXi-alpha", fuxi.FuxiConfig),
    ("fuxi_mme", "Fuxi-MME-style", fuxi.FuxiMMEConfig),
)
MATCHERS = {name: config for name, _, config in _MATCHERS}
LABELS = {name: label for name, label, _ in _MATCHERS}
# Joint-input rankers, which teach.
RANKERS: dict[str, type[schema.RankerConfig]] = {
    "mmoe_din": mmoe_din.MMoEDINConfig,
    "sap": sap_ranker.SAPRankerConfig,
    "ple": ple.PLEConfig,
    "hmoe": hmoe.HMoEConfig,
    "hinet": hinet.HiNetConfig,
    "m3oe": m3oe.M3oEConfig,
    "star": star.STARConfig,
    "din": din.DINConfig,
    "fused": fused.FusedConfig,
}
# The rankers that `teacher=fused` averages.
FUSED_MEMBERS = ("mmoe_din", "ple", "star")

DEFAULT_MATCHER = "dsmoe"
# What it becomes with the inputs `plus`.
PLUS_MATCHER = "dsmoe_plus"
DEFAULT_RANKER = "mmoe_din"

# Tokens of a configuration file's variants.
METHOD_TOKENS = tuple(n for n in MATCHERS if n not in (DEFAULT_MATCHER, PLUS_MATCHER))
TEACHER_TOKENS = tuple(f"teacher={name}" for name in RANKERS)
HISTORY_TOKENS = tuple(f"history={n}" for n in features.HISTORY_ENCODERS if n != "mean")
ABLATION_TOKENS = (*dsmoe.ABLATIONS, "no_distill")
INPUT_TOKENS = ("plus",)
TAUGHT_TOKENS = ("taught",)
# With it, the teachers, and what training wants then: beside them a larger step does not over-fit.
TEACHERS = 3
TAUGHT_RECIPE: dict[str, Any] = {"learning_rate": 1e-3}


def matcher_name(chosen: dict[str, str]) -> str:
    """The name of a variant's method: its axes "method" and "inputs"."""
    own = PLUS_MATCHER if "inputs" in chosen else DEFAULT_MATCHER
    return chosen.get("method", own)


def make_matcher(chosen: dict[str, str]) -> schema.MatcherConfig:
    """The method of a variant: its axes "method", "inputs" and "ablation", see `variants.parse`.

    With the inputs `plus` every method has a place for the popularity that is known, and DSMOE
    beside FISM may be taught by several of the latter.

    Raises:
      ValueError: When another method than DSMOE is to be ablated, or taught so.
    """
    name, ablation = matcher_name(chosen), chosen.get("ablation", "")
    if "taught" in chosen and name != PLUS_MATCHER:
        raise ValueError(f"variant: expected 'taught' beside 'plus' alone, got it with {name!r}")
    if name == DEFAULT_MATCHER:
        return dsmoe.DSMOEConfig(**dsmoe.ABLATIONS.get(ablation, {}))
    if ablation:
        raise ValueError(
            f"variant: {ablation!r} is an ablation of {DEFAULT_MATCHER}, got it with {name!r}"
        )
    method = MATCHERS[name]()
    method.known_prior = "inputs" in chosen and not isinstance(method, fism.FISMConfig)
    if isinstance(method, dsmoe_plus.DSMOEPlusConfig) and "taught" in chosen:
        method.teachers = TEACHERS
    return method


def make_teacher(chosen: dict[str, str]) -> schema.RankerConfig:
    """The teacher of a variant: its axis "teacher", whose tokens are `teacher=NAME`."""
    teacher = RANKERS[_teacher_name(chosen)]()
    if isinstance(teacher, fused.FusedConfig):
        teacher.members = {name: RANKERS[name]() for name in FUSED_MEMBERS}
    return teacher


def list_rankers(
    chosen: dict[str, str], teacher: schema.RankerConfig
) -> dict[str, schema.RankerConfig]:
    """The members of a variant's teacher by name, or the teacher itself where it has none."""
    if isinstance(teacher, fused.FusedConfig):
        return teacher.members
    return {_teacher_name(chosen): teacher}


def history_encoder(chosen: dict[str, str]) -> str:
    """The history encoder of a variant: its axis "history", whose tokens are `history=NAME`."""
    return chosen.get("history", "history=mean").partition("=")[2]


def components(experiment: schema.Experiment, *, student: bool, teacher: bool) -> list[str]:
    """Components of `numerics.VERSIONS` that decide the numbers of a run.

    `student` says whether the run trains the two-tower method, `teacher` whether it trains a
    teacher or learns from one. A method class that a configuration file defines has no version: the
    hash of the configuration names it.
    """
    names = {cls: name for known in (MATCHERS, RANKERS) for name, cls in known.items()}
    used: list[Any] = [experiment.model] if student else []
    if teacher:
        ranker = experiment.teacher.model
        members = ranker.members.values() if isinstance(ranker, fused.FusedConfig) else ()
        used += [ranker, *members]
    found = [names[type(method)] for method in used if type(method) in names]
    encoder = experiment.features.history_encoder
    if student and encoder in MATCHERS:
        found.append(encoder)
    return ["data", "training", "evaluation", *found]


def is_distilled(chosen: dict[str, str]) -> bool:
    """Whether a variant's method learns from a teacher: DSMOE does, unless that is taken away."""
    return matcher_name(chosen) == DEFAULT_MATCHER and chosen.get("ablation") != "no_distill"


def _teacher_name(chosen: dict[str, str]) -> str:
    return chosen.get("teacher", f"teacher={DEFAULT_RANKER}").partition("=")[2]
