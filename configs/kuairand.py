"""KuaiRand-Pure: short videos, four tabs of an app as scenarios, Recall@50 and @100.

    python -m dsmoe_jax.main --config configs/kuairand.py:sample
        Data: twelve days of real rows, shipped with the package (CC BY-SA 4.0).
    python -m dsmoe_jax.main --config configs/kuairand.py --config.data.raw_dir=FOLDER
        Data: the official archive (kuairand.com), any subset of its standard logs.
    python -m dsmoe_jax.main --config configs/kuairand.py:synthetic
        Data: generated rows in the official format; size by --config.data.num_users and others.

Time and expected results of `:sample`, with hardware and spread: the README's results table.

Variants, at most one token per axis, in any order:
    data       sample, synthetic; without one, the full archive
    recipe     paper_exact: the paper's values on the sample's or the synthetic rows
    ablation   no_sap, no_dsbn, no_norm, shared_item_tower, no_distill
    teacher    teacher=mmoe_din (default), teacher=sap: the student's trunk on the joint input
    fields     teacher_fields=same: the teacher sees the student's fields and nothing more

The full archive and `paper_exact` keep the paper's values and, where it states none, the usual
ones. `:sample` and `:synthetic` have few rows: there the user id and wide layers over-fit and a
learning rate of 1e-4 hardly moves. Their values were chosen on the sample's validation days.
"""

from dsmoe_jax import config
from dsmoe_jax.data.prepare import kuairand, synthetic_kuairand
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din, sap_ranker

AXES = {
    "data": ("sample", "synthetic"),
    "recipe": ("paper_exact",),
    "ablation": (*dsmoe.ABLATIONS, "no_distill"),
    "teacher": ("teacher=mmoe_din", "teacher=sap"),
    "fields": ("teacher_fields=same",),
}


def get_config(variant: str = "") -> config.Experiment:
    """The experiment of a variant, e.g. `sample,no_sap`."""
    chosen = config.parse_variant(variant, AXES)
    ablation = chosen.get("ablation", "")
    data = {
        "sample": kuairand.KuaiRandConfig,
        "synthetic": synthetic_kuairand.SyntheticKuaiRandConfig,
    }.get(chosen.get("data", ""), kuairand.KuaiRandArchiveConfig)
    experiment = config.Experiment(
        dataset="KuaiRand-Pure",
        variant=variant,
        data=data(),
        model=dsmoe.DSMOEConfig(**dsmoe.ABLATIONS.get(ablation, {})),
        teacher=config.TeacherConfig(model=make_teacher(chosen)),
    )
    if "data" in chosen and "recipe" not in chosen:
        use_few_rows_recipe(experiment)
    if ablation == "no_distill":
        experiment.loss.distill_weight = 0.0
    return experiment


def make_teacher(chosen: dict[str, str]) -> config.RankerConfig:
    """The teacher of a variant, of the paper's width."""
    if chosen.get("teacher") == "teacher=sap":
        return sap_ranker.SAPRankerConfig()
    # The log-prior and the collaborative vectors are more than the student sees.
    more = chosen.get("fields") != "teacher_fields=same" and "recipe" not in chosen
    return mmoe_din.MMoEDINConfig(use_log_prior=more, collaborative=more)


def use_few_rows_recipe(experiment: config.Experiment) -> None:
    """Sets the values that the sample's validation days chose."""
    experiment.features.exclude = ("user_id",)
    experiment.features.scenario_history_length = 20
    experiment.train.learning_rate = 1e-3
    experiment.train.average_decay = 0.995
    experiment.loss.distill_weight = 3.0
    experiment.model.hidden_dim = 64
    experiment.model.output_dim = 64
    experiment.model.input_dropout = 0.3
    experiment.teacher.patience = 3
    teacher = experiment.teacher.model
    teacher.input_dropout = 0.3
    if isinstance(teacher, mmoe_din.MMoEDINConfig):
        teacher.expert_dims = (64, 64)
        teacher.tower_dims = (32,)
        teacher.attention_length = 20
