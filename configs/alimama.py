"""Alimama display advertising: four city levels as scenarios, Recall@500 and @1000.

    python -m dsmoe_jax.main --config configs/alimama.py --config.data.raw_dir=FOLDER
        Data: the four official CSV files (Tianchi data set 56, "Ali_Display_Ad_Click").
    python -m dsmoe_jax.main --config configs/alimama.py:synthetic
        Data: generated rows in the official format; size by --config.data.num_users and others.

Never run on the official files. The synthetic rows show that the whole path works, not how well the
method does on Alimama.

Variants, at most one token per axis, in any order:
    data       synthetic; without one, the official files
    method     another than DSMOE: a name in `models.registry.MATCHERS`; trained without a teacher
    history    history=hstu, history=fuxi, history=fuxi_mme: what the student makes of the history
    ablation   no_sap, no_dsbn, no_norm, shared_item_tower, no_distill: of DSMOE
    teacher    teacher=NAME, a name in `models.registry.RANKERS`; mmoe_din by default
    inputs     plus: impressions without a click are a history of their own, popularity in a
               scenario counts them, is of the days before the split and part of every score,
               histories are longer; DSMOE becomes DSMOE beside FISM, without a teacher
    taught     taught: beside plus, several FISMs teach DSMOE by their mean score

A user lives in one scenario, so the history of the own scenario repeats the one of all and is left
out. The values are the paper's, and where it states none the usual ones: no method is tuned here.
"""

from dsmoe_jax.config import schema, variants
from dsmoe_jax.data.prepare import alimama
from dsmoe_jax.data.synthetic import alimama_rows
from dsmoe_jax.models import registry

AXES = {
    "data": ("synthetic",),
    "method": registry.METHOD_TOKENS,
    "ablation": registry.ABLATION_TOKENS,
    "history": registry.HISTORY_TOKENS,
    "teacher": registry.TEACHER_TOKENS,
    "inputs": registry.INPUT_TOKENS,
    "taught": registry.TAUGHT_TOKENS,
}

# A user lives in one scenario: only items can be seen in two.
OF_METHOD = {"sass": {"pretrain_epochs": 3, "contrastive_sides": "item"}}


def get_config(variant: str = "") -> schema.Experiment:
    """The experiment of a variant, e.g. `synthetic,no_sap`."""
    chosen = variants.parse(variant, AXES)
    is_synthetic = chosen.get("data") == "synthetic"
    experiment = schema.Experiment(
        dataset="Alimama",
        variant=variant,
        data=alimama_rows.SyntheticAlimamaConfig() if is_synthetic else alimama.AlimamaConfig(),
        model=registry.make_matcher(chosen),
        teacher=schema.TeacherConfig(model=registry.make_teacher(chosen)),
        features=schema.FeatureConfig(exclude=("scenario_history",)),
        eval=schema.EvalConfig(k=(500, 1000)),
    )
    variants.assign(experiment.model, OF_METHOD.get(chosen.get("method", ""), {}))
    if is_synthetic:
        experiment.train.learning_rate = 1e-3
        experiment.train.max_epochs = 10
        experiment.teacher.max_epochs = 5
    if "inputs" in chosen:
        experiment.data.exposures = True
        experiment.features.history_length = 100
    variants.assign(experiment.train, experiment.model.recipe)
    if "taught" in chosen:
        variants.assign(experiment.train, registry.TAUGHT_RECIPE)
    experiment.features.history_encoder = registry.history_encoder(chosen)
    if not registry.is_distilled(chosen):
        experiment.loss.distill_weight = 0.0
    return experiment
