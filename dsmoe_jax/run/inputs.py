"""Inputs of a run's models: which of the store's features they see."""

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib


def select_features(
    store: store_lib.Store, experiment: schema.Experiment, *, for_teacher: bool = False
) -> features.FeatureSpec:
    """The features that a run's models see; a teacher's without what the student alone reads."""
    chosen = experiment.features
    return features.select(
        store.spec,
        exclude=tuple(chosen.exclude),
        history_length=chosen.history_length,
        scenario_history_length=chosen.scenario_history_length,
        embedding_dim=chosen.embedding_dim,
        scenario_histories=experiment.model.scenario_histories and not for_teacher,
        history_encoder="mean" if for_teacher else chosen.history_encoder,
    )
