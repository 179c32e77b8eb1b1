"""YoutubeDNN of torch-rechub (Covington, Adams and Sargin, RecSys 2016).

A perceptron over the user's fields, the scenario and the means of the histories, against a table of
items; a softmax over the clicked item and uniform negatives, cosines divided by a temperature. The
model, its loss and its optimiser are the library's, with the library's defaults. Batches are ours:
its own loader takes most of the time for the same rows. The id of the user is left out, as it is
for our models, and so are multi-valued fields.

Numbers depend on the seed, and beyond float error on the number of PyTorch's threads.

Letters: B examples of a batch or queries, N negatives, V rows of the corpus (row 0 is padding),
D vectors' width, Q queries of a split.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features as features_lib
from dsmoe_jax.baselines import builtin, linear, selection
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.data import store as store_lib

# What validation chooses from. A fit is evaluated after each of these numbers of epochs, each of
# which is a trial.
TEMPERATURES = (0.1, 0.2, 0.4)
EPOCHS = (5, 10, 15, 20)

WIDTH = 32
HIDDEN = 64
HISTORY_LENGTH = 50
NUM_NEGATIVES = 100
BATCH_SIZE = 816
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-6
# Queries that are embedded at once.
_QUERY_BATCH = 4096


def evaluate_baselines(
    store: store_lib.Store, config: schema.EvalConfig, *, seed: int
) -> list[builtin.Baseline]:
    """YoutubeDNN as it comes and with the scenario prior; see `catalogue`."""
    name = "torch-rechub YoutubeDNN"
    return selection.evaluate_trials(name, fit(store, seed), store, config, seed=seed)


def fit(store: store_lib.Store, seed: int) -> Iterator[selection.Trial]:
    """One trial for each temperature and number of epochs."""
    import torch
    from torch_rechub import trainers

    spec = choose_features(store.spec)
    source = pipeline.BatchSource(
        store,
        spec,
        seed=seed,
        batch_size=min(BATCH_SIZE, len(store.train_NC)),
        max_epochs=EPOCHS[-1],
    )
    for temperature in TEMPERATURES:
        torch.manual_seed(seed)
        model = make_model(spec, temperature)
        trainer = trainers.MatchTrainer(
            model,
            mode=2,  # the softmax over lists
            optimizer_params={"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
        )
        for epoch in range(EPOCHS[-1]):
            # Its progress bar cannot be switched off.
            with contextlib.redirect_stderr(io.StringIO()):
                trainer.train_one_epoch(read_epoch(source, spec, seed, epoch))
            if epoch + 1 not in EPOCHS:
                continue
            item_VD = _run(model, "item", {"item": torch.arange(spec.num_items)})
            scorer = _make_scorer(embed_queries(model, store, spec), item_VD)
            yield {"temperature": temperature, "epochs": epoch + 1}, scorer


def _make_scorer(query_QD: dict[str, np.ndarray], item_VD: np.ndarray) -> linear.Scorer:
    return lambda split, query_B: query_QD[split][query_B] @ item_VD.T


def choose_features(spec: features_lib.FeatureSpec) -> features_lib.FeatureSpec:
    """What the model sees: all single-valued fields but the user's id, and histories of items."""
    sequences = tuple(
        dataclasses.replace(sequence, max_len=HISTORY_LENGTH)
        for sequence in spec.sequences
        if sequence.fields[0] == "item_id"
    )
    # Column 0 is the user's row.
    return dataclasses.replace(
        spec, user_sparse=spec.user_sparse[1:], user_bags=(), sequences=sequences
    )


def make_model(spec: features_lib.FeatureSpec, temperature: float) -> Any:
    """The library's model of these features."""
    from torch_rechub.basic import features
    from torch_rechub.models import matching

    def sequence(name: str, pooling: str) -> Any:
        return features.SequenceFeature(
            name, spec.num_items, WIDTH, pooling=pooling, shared_with="item", padding_idx=0
        )

    user = [
        features.SparseFeature("scenario", spec.num_scenarios, WIDTH),
        *(
            features.SparseFeature(f"sparse_{i}", feature.num_ids, WIDTH)
            for i, feature in enumerate(spec.user_sparse)
        ),
        *(features.DenseFeature(f"dense_{i}") for i in range(len(spec.user_dense))),
        *(sequence(f"sequence_{i}", "mean") for i in range(len(spec.sequences))),
    ]
    item = features.SparseFeature("item", spec.num_items, WIDTH, padding_idx=0)
    return matching.YoutubeDNN(
        user,
        [item],
        [sequence("negatives", "concat")],
        user_params={"dims": [HIDDEN, WIDTH]},
        temperature=temperature,
    )


def read_epoch(
    source: pipeline.BatchSource, spec: features_lib.FeatureSpec, seed: int, epoch: int
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Batches of an epoch as the trainer reads them; the clicked item is candidate 0."""
    import torch

    rng = np.random.default_rng([seed, epoch])
    for index in range(source.steps_per_epoch):
        batch = source[epoch * source.steps_per_epoch + index]
        negative_BN = rng.integers(1, spec.num_items, (len(batch.item_B), NUM_NEGATIVES))
        inputs = {
            **_user_inputs(batch.users, batch.scenario_B, spec),
            "item": torch.from_numpy(batch.item_B),
            "negatives": torch.from_numpy(negative_BN),
        }
        yield inputs, torch.zeros(len(batch.item_B))


def embed_queries(
    model: Any, store: store_lib.Store, spec: features_lib.FeatureSpec
) -> dict[str, Float[np.ndarray, "Q D"]]:
    """Unit vectors of the queries of each split."""
    reader = pipeline.UserReader(store, spec)
    found = {}
    for split in store_lib.SPLITS:
        rows_QC = np.asarray(store.queries(split).rows_QC)
        parts = []
        for start in range(0, len(rows_QC), _QUERY_BATCH):
            rows_BC = rows_QC[start : start + _QUERY_BATCH]
            scenario_B = rows_BC[:, store.columns["scenario"]]
            parts.append(_run(model, "user", _user_inputs(reader.read(rows_BC), scenario_B, spec)))
        found[split] = np.concatenate(parts)
    return found


def _user_inputs(
    users: batch_lib.Users, scenario_B: np.ndarray, spec: features_lib.FeatureSpec
) -> dict[str, Any]:
    """Tensors by the names of `make_model`."""
    import torch

    columns = {"scenario": scenario_B}
    columns |= {f"sparse_{i}": column_B for i, column_B in enumerate(users.sparse_BF.T)}
    columns |= {f"dense_{i}": column_B for i, column_B in enumerate(users.dense_BF.T)}
    for i, sequence in enumerate(spec.sequences):
        columns[f"sequence_{i}"] = users.sequences[sequence.name].ids_BLF[:, :, 0]
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in columns.items()}


def _run(model: Any, mode: str, inputs: dict[str, Any]) -> np.ndarray:
    """The unit vectors of one side."""
    import torch

    model.eval()
    model.mode = mode
    with torch.no_grad():
        vectors: np.ndarray = model(inputs).numpy()
    model.mode = None  # both sides, for training
    return vectors
