"""Small bundles with every kind of feature, exported without training."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
import tiny_features

from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import alimama, custom
from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.run import inputs
from dsmoe_jax.serving import export
from dsmoe_jax.training import train_state
from tests.models import small

SCENARIOS = ("home", "search", "cart")
NUM_USERS, NUM_ITEMS, NUM_EVENTS = 40, 30, 900
_DAY_S = 86_400
_START_S = 1_700_006_400  # A midnight
K = 8


def write_log(folder: pathlib.Path, seed: int = 0) -> None:
    """Views and purchases of twelve days, with nulls in every feature."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    user_E = rng.integers(0, NUM_USERS, NUM_EVENTS)
    second_E = rng.choice(12 * _DAY_S, NUM_EVENTS, replace=False)
    pl.DataFrame(
        {
            "user": [f"u{u}" for u in user_E],
            "item": [f"i{i}" for i in rng.integers(0, NUM_ITEMS, NUM_EVENTS)],
            "time": _START_S + second_E,
            "page": rng.choice(SCENARIOS, NUM_EVENTS, p=[0.5, 0.3, 0.2]),
            "action": rng.choice(["view", "buy"], NUM_EVENTS),
        }
    ).write_csv(folder / "log.csv")
    none = rng.random(NUM_USERS) < 0.2
    pl.DataFrame(
        {
            "user": [f"u{u}" for u in range(NUM_USERS)],
            "country": _with_nulls(none, rng.choice(["DE", "FR", "-1"], NUM_USERS)),
            "age": _with_nulls(none[::-1], rng.integers(9, 90, NUM_USERS)),
            "spent": rng.gamma(2.0, 30.0, NUM_USERS),
            "interests": ["|".join(rng.choice(list("abcd"), n)) for n in _counts(rng, NUM_USERS)],
        },
        strict=False,
    ).write_csv(folder / "users.csv")
    pl.DataFrame(
        {
            "item": [f"i{i}" for i in range(NUM_ITEMS)],
            "brand": _with_nulls(
                rng.random(NUM_ITEMS) < 0.2, rng.choice(["acme", "nope"], NUM_ITEMS)
            ),
            "price": rng.gamma(2.0, 30.0, NUM_ITEMS),
            "tags": ["|".join(rng.choice(list("xyz"), n)) for n in _counts(rng, NUM_ITEMS)],
        },
        strict=False,
    ).write_csv(folder / "items.csv")


def write_ads(folder: pathlib.Path, seed: int = 0) -> None:
    """Clicks on ads, and what users browsed: categories, and brands that no ad may have."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    first_s, users, clicks, browsed = 1_494_000_000, np.arange(1, 25), 400, 300
    tables = {
        "raw_sample": {
            "user": rng.choice(users, clicks),
            "time_stamp": first_s + rng.choice(8 * _DAY_S, clicks, replace=False),
            "adgroup_id": rng.integers(1, 21, clicks),
            "pid": ["430548_1007"] * clicks,
            "nonclk": [0] * clicks,
            "clk": [1] * clicks,
        },
        "ad_feature": {
            "adgroup_id": np.arange(1, 21),
            "cate_id": rng.integers(0, 5, 20),
            "campaign_id": np.arange(20),
            "customer": np.arange(20) // 2,
            "brand": rng.integers(600, 606, 20),
            "price": rng.gamma(2.0, 30.0, 20),
        },
        "user_profile": {
            "userid": users,
            "cms_segid": rng.integers(0, 4, len(users)),
            "cms_group_id": rng.integers(0, 3, len(users)),
            "final_gender_code": rng.integers(1, 3, len(users)),
            "age_level": rng.integers(0, 5, len(users)),
            "pvalue_level": rng.integers(1, 4, len(users)),
            "shopping_level": rng.integers(1, 4, len(users)),
            "occupation": rng.integers(0, 2, len(users)),
            "new_user_class_level ": 1 + users % 4,
        },
        "behavior_log": {
            "user": rng.choice(users, browsed),
            "time_stamp": first_s + rng.choice(8 * _DAY_S, browsed, replace=False),
            "btag": ["pv"] * browsed,
            "cate": rng.integers(0, 5, browsed),
            "brand": rng.integers(603, 609, browsed),
        },
    }
    for name, columns in tables.items():
        pl.DataFrame(columns).write_csv(folder / f"{name}.csv")


def data_config(folder: pathlib.Path, store_dir: pathlib.Path) -> custom.CustomConfig:
    """The mapping of the log's columns."""
    return custom.CustomConfig(
        raw_dir=str(folder),
        store_dir=str(store_dir),
        name="tiny shop",
        users_file="users.csv",
        items_file="items.csv",
        user_id="user",
        item_id="item",
        positive="action == buy",
        scenario="page",
        scenarios=SCENARIOS,
        user_sparse=("country",),
        user_dense=("age",),
        user_log_dense=("spent",),
        user_bags=("interests",),
        item_sparse=("brand",),
        item_log_dense=("price",),
        item_bags=("tags",),
        bag_separator="|",
        exposures=True,
        validation_days=2,
        test_days=3,
    )


def make_experiment(folder: pathlib.Path, method: str, **changes: Any) -> schema.Experiment:
    """A small experiment on the log, whose store is prepared in `folder/store`."""
    if not (folder / "raw").is_dir():
        write_log(folder / "raw")
    data = data_config(folder / "raw", folder / "store")
    return _make_experiment(data, folder, method, **changes)


def make_ads_experiment(folder: pathlib.Path, method: str) -> schema.Experiment:
    """A small experiment on ads, whose ids are integers, with a log of two fields an event."""
    write_ads(folder / "raw")
    return _make_experiment(alimama.AlimamaConfig(raw_dir=str(folder / "raw")), folder, method)


def _make_experiment(
    data: schema.DataConfig, folder: pathlib.Path, method: str, **changes: Any
) -> schema.Experiment:
    data.prepare(str(folder / "store"))
    experiment = schema.Experiment(
        dataset="tiny",
        variant=method,
        data=data,
        model=dataclasses.replace(small.SMALL_MATCHERS[method], **changes),
        teacher=schema.TeacherConfig(model=mmoe_din.MMoEDINConfig()),
        features=schema.FeatureConfig(embedding_dim=4, history_length=6, scenario_history_length=4),
        loss=schema.LossConfig(distill_weight=0.0),
        eval=schema.EvalConfig(k=(3, K)),
    )
    return experiment


def make_model(
    store: store_lib.Store, experiment: schema.Experiment, seed: int = 0
) -> tuple[Any, train_state.Frozen]:
    """The experiment's matcher with random variables."""
    matcher = experiment.model.make(inputs.select_features(store, experiment))
    rows_QC = np.asarray(store.queries("test").rows_QC)[:4]
    users = pipeline.UserReader(store, matcher.spec).read(rows_QC)
    items = tiny_features.make_items(matcher.spec, (4, 2))
    variables = tiny_features.make_variables(matcher, users, items, jnp.zeros(4, jnp.int32), seed)
    return matcher, train_state.Frozen(variables.pop("params"), variables)


def write(
    folder: pathlib.Path,
    method: str = "dsmoe_plus",
    *,
    name: str = "bundle",
    seed: int = 0,
    run: dict[str, Any] | None = None,
    **changes: Any,
) -> pathlib.Path:
    """The bundle `folder/name` of a small matcher."""
    experiment = make_experiment(folder, method, **changes)
    return write_of(folder, experiment, name=name, seed=seed, run=run)


def write_of(
    folder: pathlib.Path,
    experiment: schema.Experiment,
    *,
    name: str = "bundle",
    seed: int = 0,
    run: dict[str, Any] | None = None,
) -> pathlib.Path:
    """The bundle `folder/name` of an experiment."""
    store = store_lib.Store.open(folder / "store")
    matcher, frozen = make_model(store, experiment, seed)
    about = {
        "variant": experiment.variant,
        "config_hash": "0" * 12,
        "remove_seen": experiment.eval.remove_seen,
        "results": {},
        **(run or {}),
    }
    export.write_bundle(folder / name, store, matcher, frozen, run=about)
    return folder / name


def _counts(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.integers(0, 4, rows)


def _with_nulls(is_null: np.ndarray, values: np.ndarray) -> list[Any]:
    return [None if null else v for null, v in zip(is_null, values.tolist(), strict=True)]
