"""KuaiRand-Pure.

    python -m dsmoe_jax.main --config configs/kuairand.py:sample

Variants, at most one token per axis, in any order:
    data       sample (the packaged twelve days)
    ablation   no_sap, no_dsbn, no_norm, shared_item_tower, no_distill
    recipe     paper_exact
    teacher    teacher=mmoe_din (default), teacher=sap
    fields     teacher_fields=same
"""

from dsmoe_jax import config
from dsmoe_jax.data.prepare import kuairand
from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.models.ranking import mmoe_din

AXES = {
    "data": ("sample",),
    "ablation": ("no_sap", "no_dsbn", "no_norm", "shared_item_tower", "no_distill"),
    "recipe": ("paper_exact",),
    "teacher": ("teacher=mmoe_din", "teacher=sap"),
    "fields": ("teacher_fields=same",),
}


def get_config(variant: str = "") -> config.Experiment:
    """The experiment of a variant."""
    chosen = config.parse_variant(variant, AXES)
    experiment = config.Experiment(
        dataset="KuaiRand-Pure",
        variant=variant,
        data=kuairand.KuaiRandConfig(),
        model=dsmoe.DSMOEConfig(hidden_dim=64, output_dim=64, input_dropout=0.3),
        teacher=config.TeacherConfig(
            model=mmoe_din.MMoEDINConfig(
                expert_dims=(64, 64),
                tower_dims=(32,),
                use_log_prior=True,
                collaborative=True,
                input_dropout=0.3,
                attention_length=20,
            ),
            max_epochs=20,
            patience=3,
        ),
        features=config.FeatureConfig(exclude=("user_id",), scenario_history_length=20),
    )
    experiment.train.learning_rate = 1e-3
    if chosen.get("ablation") == "no_distill":
        experiment.loss.distill_weight = 0.0
    return experiment
