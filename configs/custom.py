"""Your own logs: say in `data_config` which column is what, and run this file.

    dsmoe train --config configs/custom.py --config.data.raw_dir=FOLDER

The example reads a folder with

    log.csv      user,item,time,page,action          one row per event
    users.csv    user,country,age,interests          one row per user
    items.csv    item,brand,price,tags               one row per item

    u7,i42,2024-05-01T12:30:00,home,view             a row of log.csv
    u7,DE,34,music|travel                            a row of users.csv
    i42,acme,19.99,shoes|sale                        a row of items.csv

Files may as well be compressed, of another separator or Parquet; the guide "Your own data" says
what else is read as it is. Users and items may go without a table: leave `users_file` or
`items_file` empty, with no features named for them.

Variants, at most one token per axis, in any order:
    method     another than DSMOE: a name in `models.registry.MATCHERS`; trained without a teacher
    history    history=hstu, history=fuxi, history=fuxi_mme: what the student makes of the history
    ablation   no_sap, no_dsbn, no_norm, shared_item_tower, no_distill: of DSMOE
    inputs     plus: rows that are no positives are a history of their own, popularity in a scenario
               counts them, is of the days before the split and part of every score, histories are
               longer; DSMOE becomes DSMOE beside FISM, without a teacher
    taught     taught: beside plus, several FISMs teach DSMOE by their mean score
"""

from dsmoe_jax.config import schema, variants
from dsmoe_jax.data.prepare import custom
from dsmoe_jax.models import registry
from dsmoe_jax.models.ranking import mmoe_din

AXES = {
    "method": registry.METHOD_TOKENS,
    "ablation": registry.ABLATION_TOKENS,
    "history": registry.HISTORY_TOKENS,
    "inputs": registry.INPUT_TOKENS,
    "taught": registry.TAUGHT_TOKENS,
}


def data_config() -> custom.CustomConfig:
    """Which column is what. `custom.CustomConfig` explains every field."""
    return custom.CustomConfig(
        name="my shop",
        # Names or patterns, such as "log_*.parquet".
        log_files=("log.csv",),
        users_file="users.csv",
        items_file="items.csv",
        # The log. A positive is any purchase; leave `positive` empty if every row is one.
        user_id="user",
        item_id="item",
        time="time",
        time_unit="iso",
        # Days start at midnight UTC; on a place's clock with time_zone="Europe/Berlin".
        positive="action == buy",
        # A scenario is the page an event happened on; `scenarios` names the ones to keep.
        scenario="page",
        scenarios=("home", "search", "cart"),
        # Features of users and items: categories, numbers, numbers on a log scale, lists.
        user_sparse=("country",),
        user_dense=("age",),
        user_bags=("interests",),
        item_sparse=("brand",),
        item_log_dense=("price",),
        item_bags=("tags",),
        bag_separator="|",
        # The last seven days test, the seven before them validate.
        validation_days=7,
        test_days=7,
    )


def get_config(variant: str = "") -> schema.Experiment:
    """The experiment of a variant."""
    chosen = variants.parse(variant, AXES)
    data = data_config()
    experiment = schema.Experiment(
        dataset=data.name,
        variant=variant,
        data=data,
        # Batch size, step size, epochs and so on by the number of positives, where they are not set
        # below or on the command line; the run prints them.
        by_size=True,
        model=registry.make_matcher(chosen),
        teacher=schema.TeacherConfig(
            model=mmoe_din.MMoEDINConfig(use_log_prior=True, collaborative=True)
        ),
    )
    variants.assign(experiment.train, experiment.model.recipe)
    if "inputs" in chosen:
        experiment.data.exposures = True
        experiment.features.history_length = 100
    if "taught" in chosen:
        variants.assign(experiment.train, registry.TAUGHT_RECIPE)
    experiment.features.history_encoder = registry.history_encoder(chosen)
    if not registry.is_distilled(chosen):
        experiment.loss.distill_weight = 0.0
    return experiment
