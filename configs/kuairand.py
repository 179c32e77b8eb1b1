"""KuaiRand-Pure: short videos, four tabs of an app as scenarios, Recall@50 and @100.

    python -m dsmoe_jax.main --config configs/kuairand.py:sample
        Data: twelve days of real rows, shipped with the package (CC BY-SA 4.0).
    python -m dsmoe_jax.main --config configs/kuairand.py --config.data.raw_dir=FOLDER
        Data: the official archive (kuairand.com), any subset of its standard logs.
    python -m dsmoe_jax.main --config configs/kuairand.py:synthetic
        Data: generated rows in the official format; size by --config.data.num_users and others.

Time and expected results of `:sample`, with hardware and spread: docs/results/kuairand.md.

Variants, at most one token per axis, in any order:
    data       sample, synthetic; without one, the full archive
    method     another than DSMOE: a name in `models.registry.MATCHERS`; trained without a teacher
    recipe     paper_exact: the paper's values on the sample's or the synthetic rows
               undistilled: what was searched for DSMOE without a teacher; beside no_distill, there
    history    history=hstu, history=fuxi, history=fuxi_mme: what the student makes of the history
    ablation   no_sap, no_dsbn, no_norm, shared_item_tower, no_distill: of DSMOE
    teacher    teacher=NAME, a name in `models.registry.RANKERS`; mmoe_din by default
    fields     teacher_fields=same: the teacher sees the student's fields and nothing more
    inputs     plus: what users were shown without a click is a history of its own, popularity in
               a scenario counts it, is of the days before the split and part of every score,
               histories are longer; DSMOE becomes DSMOE beside FISM, without a teacher
    taught     taught: beside plus, several FISMs teach DSMOE by their mean score

The full archive and `paper_exact` keep the paper's values and, where it states none, the usual
ones. `:sample` and `:synthetic` have few rows: there the user id and wide layers over-fit and a
learning rate of 1e-4 hardly moves. Their values were chosen on the sample's validation days: what
all methods share by hand, each method's own by `python -m dsmoe_jax.compare tune` with one budget
for all, eight settings of at most 15 epochs with seed 0. What `FEW_ROWS_OF` lists is the best of
eight. Every ranker but the ensemble was searched likewise (`--stage teacher`); mmoe_din, ple, hmoe
and hinet on an NVIDIA H100. m3oe's best of eight were its defaults. mmoe_din keeps
values chosen by hand: trained again with three seeds, neither the searched one (eight experts,
learning rate 3e-3, input dropout 0.1) nor its student is better on validation days (macro recall@50
in %: 26.1 for 26.4, and 27.4 for 27.7). The ensemble's members have what was found for their models
and learn together at the default teacher's learning rate. FISM's values were chosen by hand, with
`plus`, among about ten settings with seed 0, and so were those of DSMOE beside FISM, and among
five of `taught`.
"""

from typing import Any

from dsmoe_jax.config import schema, variants
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.data.synthetic import kuairand_rows
from dsmoe_jax.models import registry
from dsmoe_jax.models.ranking import joint_ranker

AXES = {
    "data": ("sample", "synthetic"),
    "method": registry.METHOD_TOKENS,
    "recipe": ("paper_exact", "undistilled"),
    "ablation": registry.ABLATION_TOKENS,
    "history": registry.HISTORY_TOKENS,
    "teacher": registry.TEACHER_TOKENS,
    "fields": ("teacher_fields=same",),
    "inputs": registry.INPUT_TOKENS,
    "taught": registry.TAUGHT_TOKENS,
}

# What the data want of single methods, however many rows there are.
OF_METHOD: dict[str, dict[str, Any]] = {"sass": {"pretrain_epochs": 3}}
# What few rows want of every method, and of single ones beside it, by section of the experiment.
FEW_ROWS: dict[str, Any] = {"output_dim": 64, "input_dropout": 0.3}
FEW_ROWS_OF: dict[str, dict[str, dict[str, Any]]] = {
    "dsmoe": {
        "train": {"learning_rate": 3e-3},
        "model": {"input_dropout": 0.0, "hidden_dim": 256, "rank": 2},
    },
    "undistilled": {"model": {"hidden_dim": 64, "rank": 8}},
    "ican": {
        "train": {"learning_rate": 3e-3},
        "model": {"input_dropout": 0.0, "hidden_dims": (256, 128)},
    },
    "adin": {
        "train": {"learning_rate": 3e-3},
        "model": {"input_dropout": 0.1, "hidden_dims": (128,)},
    },
    "sass": {"model": {"hidden_dims": (64, 64), "pretrain_epochs": 0}},
    "m5": {
        "train": {"learning_rate": 3e-3, "weight_decay": 1e-5},
        "model": {"input_dropout": 0.0, "attention_length": 10, "attention_dim": 32},
    },
    "perscen": {"train": {"weight_decay": 1e-5}, "model": {"hidden_dim": 64}},
    "dssm": {"model": {"hidden_dims": (64,)}},
    "fism": {"train": {"learning_rate": 1e-2, "average_decay": 0.0}},
    "dssm_per_scenario": {
        "train": {"learning_rate": 3e-4},
        "model": {"input_dropout": 0.5, "output_dim": 32, "hidden_dims": (64,)},
    },
    "mind": {
        "train": {"weight_decay": 1e-5},
        "model": {"hidden_dims": (256,), "num_interests": 1},
    },
    "mmoe": {
        "train": {"learning_rate": 3e-3},
        "model": {
            "input_dropout": 0.1,
            "output_dim": 32,
            "expert_dims": (256,),
            "num_experts": 8,
        },
    },
    "hstu": {
        "train": {"weight_decay": 1e-5},
        "model": {"num_blocks": 1},
        "features": {"history_length": 20},
    },
    "fuxi": {
        "train": {"weight_decay": 1e-6},
        "model": {"input_dropout": 0.1, "output_dim": 128, "num_blocks": 1, "dropout": 0.5},
        "features": {"history_length": 20},
    },
    "fuxi_mme": {
        "train": {"weight_decay": 1e-6},
        "model": {"input_dropout": 0.1, "output_dim": 128, "num_blocks": 1, "dropout": 0.5},
        "features": {"history_length": 20},
    },
}
# The same with the inputs `plus`.
PLUS_OF: dict[str, dict[str, dict[str, Any]]] = {
    "dsmoe_plus": {"train": {"learning_rate": 1e-4, "average_decay": 0.99}},
    "fism": {
        "train": {"max_epochs": 30, "patience": 30, "decay_epochs": 30},
        "model": {"l2": 0.01},
    },
}
FEW_ROWS_OF_TEACHER: dict[str, dict[str, dict[str, Any]]] = {
    "mmoe_din": {
        "model": {"expert_dims": (64, 64), "tower_dims": (32,), "attention_length": 20},
    },
    "star": {
        "teacher": {"learning_rate": 3e-3},
        "model": {"dropout": 0.0, "partitioned_norm": False},
    },
    "din": {
        "teacher": {"learning_rate": 3e-3, "weight_decay": 1e-5},
        "model": {"input_dropout": 0.0, "dropout": 0.0, "activation": "prelu"},
    },
    "sap": {
        "teacher": {"learning_rate": 3e-3},
        "model": {"input_dropout": 0.0, "rank": 8},
    },
    "ple": {
        "teacher": {"learning_rate": 3e-3},
        "model": {"dropout": 0.3, "shared_experts": 2},
    },
    "hmoe": {
        "teacher": {"weight_decay": 1e-5},
        "model": {"input_dropout": 0.1},
    },
    "hinet": {
        "teacher": {"learning_rate": 3e-3},
        "model": {"dropout": 0.3},
    },
}


def get_config(variant: str = "") -> schema.Experiment:
    """The experiment of a variant, e.g. `sample,no_sap`.

    Raises:
      ValueError: On a wrong token, or `undistilled` where it would mean nothing.
    """
    chosen = variants.parse(variant, AXES)
    is_undistilled = chosen.get("recipe") == "undistilled"
    if is_undistilled and (chosen.get("ablation") != "no_distill" or "data" not in chosen):
        raise ValueError(
            "variant: expected 'undistilled' beside 'no_distill' and 'sample' or 'synthetic', "
            f"got {variant!r}"
        )
    data = {
        "sample": kuairand.KuaiRandConfig,
        "synthetic": kuairand_rows.SyntheticKuaiRandConfig,
    }.get(chosen.get("data", ""), kuairand.KuaiRandArchiveConfig)
    experiment = schema.Experiment(
        dataset="KuaiRand-Pure",
        variant=variant,
        data=data(),
        model=registry.make_matcher(chosen),
        teacher=schema.TeacherConfig(model=make_teacher(chosen)),
    )
    variants.assign(experiment.model, OF_METHOD.get(chosen.get("method", ""), {}))
    variants.assign(experiment.train, experiment.model.recipe)
    if "data" in chosen and chosen.get("recipe") != "paper_exact":
        use_few_rows_recipe(experiment, chosen)
    if "inputs" in chosen:
        experiment.data.exposures = True
        experiment.features.history_length = 100
    if "taught" in chosen:
        variants.assign(experiment.train, registry.TAUGHT_RECIPE)
    experiment.features.history_encoder = registry.history_encoder(chosen)
    if not registry.is_distilled(chosen):
        experiment.loss.distill_weight = 0.0
    return experiment


def make_teacher(chosen: dict[str, str]) -> schema.RankerConfig:
    """The teacher of a variant, of the paper's width."""
    teacher = registry.make_teacher(chosen)
    # The log-prior and the collaborative vectors are more than the student sees.
    more = chosen.get("fields") != "teacher_fields=same" and chosen.get("recipe") != "paper_exact"
    for ranker in registry.list_rankers(chosen, teacher).values():
        if isinstance(ranker, joint_ranker.JointRankerConfig):
            ranker.use_log_prior = ranker.collaborative = more
    return teacher


def use_few_rows_recipe(experiment: schema.Experiment, chosen: dict[str, str]) -> None:
    """Sets the values that the sample's validation days chose."""
    experiment.features.exclude = ("user_id",)
    experiment.features.scenario_history_length = 20
    experiment.train.learning_rate = 1e-3
    experiment.train.average_decay = 0.995
    experiment.loss.distill_weight = 3.0
    method = chosen.get("recipe", registry.matcher_name(chosen))
    fields = {n: value for n, value in FEW_ROWS.items() if hasattr(experiment.model, n)}
    variants.assign(experiment.model, fields)
    for section, values in FEW_ROWS_OF.get(method, {}).items():
        variants.assign(getattr(experiment, section), values)
    if "inputs" in chosen:
        for section, values in PLUS_OF.get(method, {}).items():
            variants.assign(getattr(experiment, section), values)
    experiment.teacher.patience = 3
    teacher = experiment.teacher
    for name, ranker in registry.list_rankers(chosen, teacher.model).items():
        values = FEW_ROWS_OF_TEACHER.get(name, {})
        shared = {"input_dropout": FEW_ROWS["input_dropout"]}
        variants.assign(ranker, {**shared, **values.get("model", {})})
        # An ensemble trains its members together: what one wants of training is not the others'.
        if ranker is teacher.model:
            variants.assign(teacher, values.get("teacher", {}))
