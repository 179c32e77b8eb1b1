"""Corpus statistics of the training period: who clicked what, popularity, collaborative vectors.

Owns what is computed once from a store before training, for models that use it (their collection
`constants`) and for the baselines. Nothing here reads an event of the validation or
test days, except `read_windows`, which reads the histories that queries may see, and
`known_log_prior`, which counts what was known when a split began.

Letters: U rows of the user table, V rows of the corpus (row 0 is padding), S scenarios, C width of
a collaborative vector, Q queries, E events.
"""

from collections.abc import Mapping

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Int

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib

# Weight of the all-scenario popularity in a scenario's, in clicks.
PRIOR_CLICKS = 10.0
# Of the prior from what was shown, chosen on validation days of KuaiRand-Pure: the weight of an
# exposure in the clicks that it would have had in its scenario, and days after which a row counts
# half.
EXPOSURE_WEIGHT = 3.0
KNOWN_HALF_LIFE_DAYS = 4.0
# The constant that is another for every split.
KNOWN_PRIOR = "known_log_prior_SV"
# The constant of sequential matchers with that prior.
SEQUENCE_PRIOR = "sequence_log_prior_V"
# Sequences of all items that a user is known to have been shown.
SHOWN = (features.HISTORY, features.EXPOSURES)


def make_constants(
    store: store_lib.Store, shapes: Mapping[str, tuple[int, ...]], split: str = "validation"
) -> dict[str, np.ndarray]:
    """The constants that a model declares by name and shape, float32 but for ids.

    `log_prior_SV` [S, V], see `log_prior`; `known_log_prior_SV` [S, V], see `known_log_prior`, or
    `log_prior` where the store holds no exposures; `sequence_log_prior_V` [V], see
    `sequence_log_prior`; `clicked_SV` [S, V], 1 where an item has training clicks in a scenario;
    `item_vector_VC` [V, C], see `item_vectors`; `sparse_NAME_V`, `dense_NAME_V` and `bag_NAME_VP`,
    the items' feature NAME.

    `split` is the one whose queries are asked; training is asked those of "validation".

    Raises:
      ValueError: On an unknown name, or a shape that the store does not give.
    """
    constants = {}
    for name, shape in shapes.items():
        if name == KNOWN_PRIOR and features.EXPOSURES in store.sequences:
            constants[name] = known_log_prior(store, split)
        elif name in ("log_prior_SV", KNOWN_PRIOR):
            constants[name] = log_prior(store)
        elif name == SEQUENCE_PRIOR:
            constants[name] = sequence_log_prior(store)
        elif name == "clicked_SV":
            constants[name] = (count_clicks(store) > 0).astype(np.float32)
        elif name == "item_vector_VC":
            constants[name] = item_vectors(read_interactions(store), shape[-1])
        else:
            constants[name] = _read_item_field(store, name)
        if constants[name].shape != tuple(shape):
            raise ValueError(
                f"constant {name!r}: expected shape {constants[name].shape} for this store, got "
                f"{tuple(shape)} from the model"
            )
    return constants


def changing_constants(
    store: store_lib.Store, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Those of a model's constants that are others for another split."""
    names = {KNOWN_PRIOR} if features.EXPOSURES in store.sequences else set()
    return {name: shape for name, shape in shapes.items() if name in names}


def _read_item_field(store: store_lib.Store, name: str) -> np.ndarray:
    """A feature of all items by the name of its constant."""
    for group, columns in (("sparse", store.items_sparse), ("dense", store.items_dense)):
        names = [f"{group}_{f.name}_V" for f in getattr(store.spec, f"item_{group}")]
        if name in names:
            return np.ascontiguousarray(columns[:, names.index(name)])
    for bag in store.spec.item_bags:
        if name == f"bag_{bag.name}_VP":
            return np.asarray(store.items_bags[bag.name])
    raise ValueError(
        f"constant {name!r}: expected 'log_prior_SV', '{KNOWN_PRIOR}', '{SEQUENCE_PRIOR}', "
        "'clicked_SV', 'item_vector_VC' or a feature of the items"
    )


def read_interactions(store: store_lib.Store) -> scipy.sparse.csr_matrix:
    """Binary [U, V]: the user's clicks from before the log and training positives.

    Users without any positive in the log have no row of the store that points at their earlier
    clicks, and stay empty.
    """
    columns, train_NC = store.columns, store.train_NC
    user_X, rows_XC = store.first_rows()
    start_X = rows_XC[:, columns["history_start"]]
    ids_EF, time_E = store.sequences["history"]
    # Clicks from before the log have no time and open a user's history; these users have at least
    # one timed click, so the first one ends the run.
    timed = np.append(np.flatnonzero(time_E), len(time_E))
    stop_X = timed[np.searchsorted(timed, start_X)]
    row, event = _expand(start_X, stop_X)
    user = np.concatenate([user_X[row], train_NC[:, columns["user"]]])
    item = np.concatenate([ids_EF[event, 0], train_NC[:, columns["item"]]])
    return _binary(user, item, (len(store.users_sparse), store.spec.num_items))


def read_exposures(store: store_lib.Store) -> scipy.sparse.csr_matrix:
    """Binary [U, V]: what users were shown before the first validation day and did not click then.

    Of users that have a row of the store; empty where it holds no exposures.
    """
    U, V = len(store.users_sparse), store.spec.num_items
    if features.EXPOSURES not in store.sequences:
        return scipy.sparse.csr_matrix((U, V), dtype=np.float32)
    columns = store.columns
    user_X, rows_XC = store.first_rows()
    ids_EF, time_E = store.sequences[features.EXPOSURES]
    # A user's events are together, and who has one has a row, which tells where they start.
    start_X = rows_XC[:, columns[f"{features.EXPOSURES}_start"]]
    user_E = np.repeat(user_X, np.diff(np.append(start_X, len(time_E))))
    known_E = time_E < store.queries("validation").rows_QC[:, columns["time_s"]].max()
    shown_UV = _binary(user_E[known_E], ids_EF[known_E, 0], (U, V))
    row, item = (shown_UV - shown_UV.multiply(read_interactions(store))).nonzero()
    return _binary(row, item, (U, V))


def read_windows(
    store: store_lib.Store,
    rows_QC: Int[np.ndarray, "Q C"],
    sequences: tuple[str, ...] = ("history",),
) -> scipy.sparse.csr_matrix:
    """Binary [Q, V]: everything in the rows' windows of item sequences, however long.

    By default clicks of all scenarios; a sequence that the store does not have is empty.
    """
    rows, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for name in (name for name in sequences if name in store.sequences):
        start_QK, stop_QK = store_lib.Windows(name).read(rows_QC, store.columns)
        row, event = _expand(start_QK[:, 0], stop_QK[:, 0])
        rows.append(row)
        items.append(store.sequences[name][0][event, 0])
    shape = (len(rows_QC), store.spec.num_items)
    return _binary(np.concatenate(rows), np.concatenate(items), shape)


def read_events(
    store: store_lib.Store, rows_QC: Int[np.ndarray, "Q C"]
) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
    """Row number and item of every click in the rows' windows of all scenarios, oldest first."""
    start_QK, stop_QK = store_lib.Windows(features.HISTORY).read(rows_QC, store.columns)
    row, event = _expand(start_QK[:, 0], stop_QK[:, 0])
    return row, store.sequences[features.HISTORY][0][event, 0]


def count_clicks(
    store: store_lib.Store, half_life_days: float | None = None
) -> Float[np.ndarray, "S V"]:
    """Training positives per scenario and item.

    A click `half_life_days` before the first validation day counts half; None counts each as 1.
    """
    columns, train_NC = store.columns, store.train_NC
    V = store.spec.num_items
    pair_N = train_NC[:, columns["scenario"]] * V + train_NC[:, columns["item"]]
    weight_N = np.ones(len(train_NC))
    if half_life_days is not None:
        cut_s = store.queries("validation").rows_QC[:, columns["time_s"]].max()
        # A few clicks of the last training day carry a time past the cut; they count as new.
        age_days_N = np.maximum(cut_s - train_NC[:, columns["time_s"]], 0) / store_lib.DAY_S
        weight_N = 0.5 ** (age_days_N / half_life_days)
    count = np.bincount(pair_N, weights=weight_N, minlength=store.spec.num_scenarios * V)
    return count.reshape(-1, V)


def log_prior(
    store: store_lib.Store,
    *,
    half_life_days: float | None = None,
    prior_clicks: float = PRIOR_CLICKS,
) -> Float[np.ndarray, "S V"]:
    """Logarithm of P(item | scenario) from training positives, float32, finite everywhere.

    A scenario's counts are smoothed with `prior_clicks` pseudo-clicks that follow the popularity
    over all scenarios, itself smoothed with one click an item. Row 0 of the corpus, which is no
    candidate, holds the scenario's minimum. `half_life_days` is that of `count_clicks`.
    """
    return _smooth(count_clicks(store, half_life_days), prior_clicks)


def known_log_prior(
    store: store_lib.Store,
    split: str,
    *,
    half_life_days: float | None = KNOWN_HALF_LIFE_DAYS,
    prior_clicks: float = PRIOR_CLICKS,
    exposure_weight: float = EXPOSURE_WEIGHT,
) -> Float[np.ndarray, "S V"]:
    """As `log_prior`, from all rows that were known when a split's queries are asked.

    Positives and exposures of all days before the split's first one count, as in the histories of
    its queries; for queries past the test days, those before the test days. To an item's positives
    `exposure_weight` times those are added that its rows would have had at the scenario's rate.

    Args:
      store: One that holds exposures.
      split: Whose queries are asked.
      half_life_days: A row so many days before the last known day counts half; None counts each
        as 1.
      prior_clicks: As in `log_prior`.
      exposure_weight: Weight of exposures, at least 0.
    """
    daily_RF = store.load("daily")
    cut_s = store.queries(split).rows_QC[:, store.columns["time_s"]].max()
    known_RF = daily_RF[daily_RF[:, 0] < cut_s].astype(np.int64)
    weight_R = np.ones(len(known_RF))
    if half_life_days is not None and len(known_RF):
        # Calendar days, of which two a year may have 23 or 25 hours.
        days_R = np.rint((known_RF[:, 0].max() - known_RF[:, 0]) / store_lib.DAY_S)
        weight_R = 0.5 ** (days_R / half_life_days)
    S, V = store.spec.num_scenarios, store.spec.num_items
    pair_R = known_RF[:, 1] * V + known_RF[:, 2]
    click_SV, exposure_SV = (
        np.bincount(pair_R, weights=weight_R * known_RF[:, column], minlength=S * V).reshape(S, V)
        for column in (3, 4)
    )
    shown_SV = click_SV + exposure_SV
    rate_S1 = click_SV.sum(axis=1, keepdims=True) / np.maximum(
        shown_SV.sum(axis=1, keepdims=True), 1e-30
    )
    return _smooth(click_SV + exposure_weight * rate_S1 * shown_SV, prior_clicks)


def sequence_log_prior(store: store_lib.Store) -> Float[np.ndarray, "V"]:
    """Log share of every item among the positives of all users, float32, finite everywhere.

    A user's positives are those of training and of before the log, of any age and scenario, each
    item once: what a loss of every position of a history is to predict, and what was before the
    longest history that is read. One user is added to those
    of every item; row 0, which is no candidate, holds that of an item nobody has.
    """
    count_V = np.asarray(read_interactions(store).sum(axis=0), np.float64).ravel()
    count_V[0] = 0.0
    log_V: np.ndarray = np.log((count_V + 1.0) / (count_V[1:] + 1.0).sum())
    return log_V.astype(np.float32)


def _smooth(count_SV: np.ndarray, prior_clicks: float) -> Float[np.ndarray, "S V"]:
    """Logarithms of shares of counts, see `log_prior`; column 0 of the counts is ignored."""
    count_SV = count_SV[:, 1:]
    overall_V = count_SV.sum(axis=0) + 1.0
    overall_V /= overall_V.sum()
    smooth_SV = count_SV + prior_clicks * overall_V[None]
    log_SV = np.log(smooth_SV / smooth_SV.sum(axis=1, keepdims=True))
    lowest_S1 = log_SV.min(axis=1, keepdims=True)
    return np.concatenate([lowest_S1, log_SV], axis=1).astype(np.float32)


def item_vectors(interactions_UV: scipy.sparse.csr_matrix, C: int) -> Float[np.ndarray, "V C"]:
    """Collaborative item vectors by a truncated SVD, float32, of unit mean square.

    The columns of the interaction matrix are divided by the square root of the item's clicks, and
    so are the right singular vectors: an item's vector is then the mean of what its users like,
    of comparable length for popular and rare items. The scale of the whole matrix is free; items
    without a click are zero, and so are columns past the rank of the matrix.
    """
    click_V = np.asarray(interactions_UV.sum(axis=0)).ravel()
    root_V = np.sqrt(np.maximum(click_V, 1.0))
    scaled_UV = (interactions_UV @ scipy.sparse.diags(1.0 / root_V)).astype(np.float32)
    rank = min(C, min(scaled_UV.shape) - 1)
    # A fixed start makes the iteration, and with it the vectors, repeatable.
    start = np.ones(min(scaled_UV.shape), np.float32)
    _, _, right_CV = scipy.sparse.linalg.svds(scaled_UV, k=rank, v0=start)
    right_VC = right_CV[::-1].T  # largest singular value first
    largest_C = right_VC[np.abs(right_VC).argmax(axis=0), np.arange(rank)]
    vector_VC = right_VC * np.sign(largest_C)[None] / root_V[:, None]
    vector_VC[click_V == 0] = 0.0
    vector_VC /= np.sqrt(np.mean(vector_VC[click_V > 0] ** 2))
    return np.pad(vector_VC, ((0, 0), (0, C - rank))).astype(np.float32)


def _expand(start_X: np.ndarray, stop_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row number and position of every event of the windows `[start, stop)`."""
    count_X = stop_X - start_X
    row = np.repeat(np.arange(len(count_X)), count_X)
    first = np.repeat(np.cumsum(count_X) - count_X, count_X)
    return row, start_X[row] + np.arange(len(row)) - first


def _binary(row: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(row), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (row, item)), shape=shape)
    matrix.data[:] = 1.0  # building sums what is repeated
    return matrix
