"""What lists hold and leave out, changes of items, parts of a score."""

import threading

import numpy as np
import pandas as pd
import polars as pl
import pytest

from dsmoe_jax.serving import bulk, indexing, retriever
from tests.models import small
from tests.serving import shop, small_bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shop.prepare(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "plus"
    shop.Untrained(store, small.SMALL_MATCHERS["dsmoe_plus"]).export(folder)
    return folder


@pytest.fixture
def found(folder):
    return retriever.Retriever.load(folder)


def items(frame, user="u3", scenario="feed"):
    own = frame.filter((pl.col("user_id") == user) & (pl.col("scenario") == scenario))
    assert own["rank"].to_list() == list(range(1, len(own) + 1))
    assert own["score"].is_sorted(descending=True)
    return own["item_id"].to_list()


def test_users_may_be_ids_mappings_or_frames(found):
    expected = found.recommend(["u3", "u4"], "feed", 4)
    assert expected.columns == ["user_id", "scenario", "item_id", "score", "rank"]
    for users in (
        [{"user_id": "u3"}, {"user_id": "u4"}],
        pl.DataFrame({"user_id": ["u3", "u4"]}),
        pl.Series(["u3", "u4"]),
        np.array(["u3", "u4"]),
    ):
        assert found.recommend(users, "feed", 4).equals(expected)
    frame = pd.DataFrame({"user_id": ["u3", "u4"], "age": [None, float("nan")]})
    answered = found.recommend(frame, "feed", 4)
    assert isinstance(answered, pd.DataFrame)
    assert pl.DataFrame(answered.to_dict("list"), schema=expected.schema).equals(expected)
    assert found.recommend("u3", "feed", 4).equals(expected.filter(pl.col("user_id") == "u3"))
    assert found.recommend([], "feed", 4).is_empty()


def test_scenarios_are_one_several_or_all(found):
    everywhere = found.recommend(["u3"], k=3)
    assert everywhere["scenario"].unique(maintain_order=True).to_list() == list(shop.SCENARIOS)
    two = found.recommend(["u3"], ["deals", "feed"], 3)
    assert two["scenario"].unique(maintain_order=True).to_list() == ["deals", "feed"]
    for name in shop.SCENARIOS:
        alone = items(found.recommend(["u3"], name, 3), scenario=name)
        assert alone == items(everywhere, scenario=name)


def test_excluded_allowed_and_filtered_items(found, store):
    catalogue = pl.read_csv(store.root.parent / "raw" / "items.csv")
    everything = items(found.recommend("u3", "feed", 99, exclude=None))
    assert len(everything) == shop.NUM_ITEMS
    encoded = found.encoder.encode({"user_id": ["u3"]})
    raw = store.items_raw_id
    seen = set(raw[encoded.seen(0)].tolist())
    shown = set(raw[encoded.shown(0)].tolist())
    assert seen < shown
    cases = {
        "seen": seen,
        "shown": shown,
        ("i1", "i4", "gone"): {"i1", "i4"},
        ("seen", "i1"): seen | {"i1"},
        (): set(),
    }
    for exclude, left_out in cases.items():
        got = items(found.recommend("u3", "feed", 99, exclude=exclude))
        assert got == [item for item in everything if item not in left_out]
    assert items(found.recommend("u3", "feed", 99)) == items(
        found.recommend("u3", "feed", 99, exclude="seen")
    )
    allow = ["i5", "i6", "gone", "i7"]
    got = items(found.recommend("u3", "feed", 99, exclude=None, allow=allow))
    assert got == [item for item in everything if item in allow]
    wanted = catalogue.filter(
        pl.col("brand").is_in(["b1", "b3"]) & pl.col("colours").str.contains("red")
    )
    limits = {"brand": ["b1", "b3"], "colours": ["red"]}
    got = items(found.recommend("u3", "feed", 99, exclude=None, filter=limits))
    assert got == [item for item in everything if item in wanted["item_id"].to_list()]
    assert items(found.recommend("u3", "feed", 2, exclude=None, filter=limits)) == got[:2]
    assert not items(found.recommend("u3", "feed", 9, allow=[]))


def test_what_is_left_out_where_nobody_says_is_what_the_evaluation_left_out(tmp_path):
    users = [{"user_id": 3}, {"user_id": 4, "shown": [1002]}]
    for rule, named in (("none", None), ("positives", "seen"), ("shown", "shown")):
        path = small_bundle.write_bundle(tmp_path / rule, remove_seen=rule)
        found = retriever.Retriever.load(path)
        assert found.usual_exclude == named
        expected = found.recommend(users, "feed", 99, exclude=named)
        assert found.recommend(users, "feed", 99).equals(expected)
        assert found.recommend(users, "feed", 99, exclude="usual").equals(expected)
        served = found.recommend(users, "feed", 99, exclude=["usual", 1001])
        assert served.equals(
            found.recommend(users, "feed", 99, exclude=[*[named] * bool(named), 1001])
        )
        pl.DataFrame({"user_id": [3]}).write_parquet(tmp_path / "users.parquet")
        bulk.recommend_file(
            found, tmp_path / "users.parquet", tmp_path / "out.parquet", scenario="feed", k=99
        )
        own = expected.filter(pl.col("user_id") == 3)
        assert pl.read_parquet(tmp_path / "out.parquet").equals(own)
        assert len(own) == small_bundle.NUM_ITEMS if rule == "none" else len(own) < 40


def test_items_that_came_since_are_left_out_where_a_request_names_them(found, tmp_path):
    found.upsert_items([{"item_id": name, "brand": "b1"} for name in ("n1", "n2", "n3")])
    users = [
        {"user_id": "u3", "history": ["i1", "n1"], "shown": ["n2", "gone"]},
        {"user_id": "nobody", "history": [{"item_id": "n1"}], "shown": ["n2"]},
        {"user_id": "u4"},
    ]
    for exclude, left_out in ((None, set()), ("seen", {"n1"}), ("shown", {"n1", "n2"})):
        lists = found.recommend(users, "feed", 99, exclude=exclude)
        for user, gone in (("u3", left_out), ("nobody", left_out), ("u4", set())):
            assert {"n1", "n2", "n3"} - set(items(lists, user)) == gone
    # They say nothing of who asks.
    told = found.recommend(users, "feed", 1, with_user=True)
    assert told.columns[-2:] == ["user", "unknown_events"]
    assert told["user"].to_list() == ["known", "cold", "known"]
    assert told["unknown_events"].to_list() == [3, 2, 0]
    # A bundle without a sequence of what was shown knows that from the request alone.
    integer = retriever.Retriever.load(small_bundle.write_bundle(tmp_path / "bundle"))
    integer.upsert_items({"item_id": 7})
    got = integer.recommend({"user_id": 2, "shown": ["7"]}, "feed", 99, exclude="shown")
    assert 7 not in got["item_id"].to_list()


def test_a_cold_user_gets_the_scenarios_prior(found, store):
    prior_SV = found.bundle.load("log_prior")
    for s, name in enumerate(shop.SCENARIOS):
        lists = found.recommend({"user_id": "nobody"}, name, 99)
        order = np.argsort(-prior_SV[s, 1:], kind="stable") + 1
        assert lists["item_id"].to_list() == store.items_raw_id[order].tolist()
    answers = found.retrieve(
        {"user_id": ["nobody", "nobody", "u3"], "history": [None, ["i1", "gone"], None]},
        "feed",
        found.want(5),
    )
    assert [answer.user for answer in answers] == ["cold", "from_history", "known"]
    assert [answer.unknown_events for answer in answers] == [0, 1, 0]
    assert all(len(answer.item_ids) == len(answer.scores) == 5 for answer in answers)
    assert "i1" not in answers[1].item_ids


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scenario": "fed"}, "scenario: expected 'all' or one of feed, .*; nearest: 'feed'"),
        ({"scenario": []}, "scenario: expected at least one, got none"),
        ({"scenario": ["all"]}, "scenario: expected one of feed, search, deals, got 'all'"),
        ({"scenario": ["feed", "feed"]}, "scenario: expected every name once, got feed, feed"),
        ({"k": 0}, "k: expected an integer >= 1, got 0"),
        ({"k": True}, "k: expected an integer >= 1, got True"),
        ({"exclude": "everything"}, "exclude: expected 'seen', 'shown', 'usual' or a list"),
        ({"exclude": {"a": 1}}, "exclude: expected 'seen', 'shown', 'usual' or a list"),
        ({"exclude": pl.DataFrame({"a": [1]})}, "exclude: expected a list .* got a frame; name"),
        ({"allow": pl.DataFrame({"a": [1]})}, "allow: expected a list .* got a frame; name"),
        ({"filter": pl.DataFrame({"a": [1]})}, "filter: expected a mapping from features"),
        (
            {"filter": {"brand": ["b1", "bb2"]}},
            "filter: brand: expected values that items have, got 'bb2'; nearest: 'b2'",
        ),
        ({"filter": ["brand"]}, "filter: expected a mapping from features to lists of values"),
        ({"allow": 3}, "allow: expected a list of item ids, got 3"),
        ({"allow": "i1"}, "allow: expected a list of item ids, got 'i1'"),
        (
            {"filter": {"weight": [1]}},
            "filter: expected features among brand, colours, got 'weight'",
        ),
        (
            {"users": 3.5},
            "users: expected raw ids, mappings or a polars or pandas frame, got float",
        ),
        ({"users": ["u1", {"user_id": "u2"}]}, "users: expected ids or mappings, got both"),
        ({"users": [{1: 2}]}, "users: unknown field 1; known: history, .*shown, time, user_id"),
        ({"users": [True]}, "users: user_id: expected an id, got True"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(found, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        found.recommend(**{"users": ["u3"], **arguments})
    assert "\n" not in str(caught.value)


def test_a_number_is_no_scenario(found):
    # Not by `recommend`, whose types the tests check.
    with pytest.raises(ValueError, match=r"scenario: expected 'all' or one of feed, .*, got 0"):
        found._scenario_ids(0)


def test_vectors_score_what_lists_say(found):
    user_BMD, item_ND = found.user_vectors(["u3"], "deals"), found.item_vectors(None, "deals")
    lists = found.recommend("u3", "deals", 99, exclude=None)
    place = {item: n for n, item in enumerate(found.item_ids)}
    expected = item_ND[[place[item] for item in lists["item_id"]]] @ user_BMD[0, 0]
    np.testing.assert_allclose(lists["score"].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.item_vectors(["i4"], "deals")[0], item_ND[place["i4"]])
    assert found.user_vectors([], "deals").shape == (0, *user_BMD.shape[1:])
    with pytest.raises(ValueError, match="items: expected items of the bundle, got 'gone'"):
        found.item_vectors(["i4", "gone"], "deals")
    with pytest.raises(ValueError, match=r"scenario: expected one of feed, .* got none"):
        found.item_vectors(["i4"])


def test_similar_items_are_near_by_cosine(found):
    item_ND, ids = found.item_vectors(None, "feed"), found.item_ids
    unit_ND = item_ND / np.linalg.norm(item_ND, axis=1, keepdims=True)
    cosine = unit_ND @ unit_ND[ids.index("i9")]
    order = [ids[n] for n in np.argsort(-cosine) if ids[n] != "i9"]
    near = found.similar_items(["i9"], "feed", 4)
    assert near["similar_item_id"].to_list() == order[:4] and set(near["item_id"]) == {"i9"}
    answered = found.similar_items(pd.Series(["i9"]), "feed", 4)
    assert isinstance(answered, pd.DataFrame)
    assert pl.DataFrame(answered.to_dict("list"), schema=near.schema).equals(near)
    for wrong, told in (
        ((pd.DataFrame({"item_id": ["i9"]}), "feed"), "items: expected a list .* got a frame"),
        ((["i9"], "all"), "scenario: expected one of feed, search, deals, got 'all'"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            found.similar_items(*wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dsmoe", "dsmoe_plus", "fism"])
def test_the_parts_of_a_score_sum_to_it(store, tmp_path, name):
    shop.Untrained(store, small.SMALL_MATCHERS[name]).export(tmp_path / "bundle")
    found = retriever.Retriever.load(tmp_path / "bundle")
    lists = found.recommend("u3", "deals", 3, exclude=None)
    for item, score in zip(lists["item_id"], lists["score"], strict=True):
        explained = found.explain("u3", "deals", item)
        assert explained.score == pytest.approx(score, rel=1e-5, abs=1e-6)
        assert explained.parts["value"].sum() == pytest.approx(score, rel=1e-4, abs=1e-5)
    parts = set(explained.parts["part"])
    assert ("expert" in parts) == (name != "fism") and ("event" in parts) == (name != "dsmoe")
    if name != "dsmoe":
        encoded = found.encoder.encode({"user_id": ["u3"]})
        own = explained.parts.filter(pl.col("detail") == "history")["item_id"].to_list()
        assert own == store.items_raw_id[encoded._events(0, "history")[0]].tolist()[-6:]
    with pytest.raises(
        ValueError, match="expected a known id or event to explain, got a cold user"
    ):
        found.explain("nobody", "deals", "i1")


def test_an_item_by_its_own_features_is_itself(found, store):
    before = found.recommend(["u3", "nobody"], "all", 99, exclude=None)
    raw = pl.read_csv(store.root.parent / "raw" / "items.csv")
    assert found.upsert_items(raw) == shop.NUM_ITEMS
    after = found.recommend(["u3", "nobody"], "all", 99, exclude=None)
    assert after.drop("score").equals(before.drop("score"))
    np.testing.assert_allclose(after["score"], before["score"], rtol=1e-5, atol=1e-6)


def test_items_come_and_go_without_training(found, folder, tmp_path):
    new = [
        {"item_id": "n1", "brand": "b1", "price": 3.0, "colours": ["red", "blue"]},
        {"item_id": "n2", "brand": "b1", "price": 3.0, "colours": "red|blue"},
        {"item_id": "n3"},
    ]
    assert found.upsert_items(new) == shop.NUM_ITEMS + 3
    lists = items(found.recommend("u3", "feed", 99, exclude=None))
    assert {"n1", "n2", "n3"} < set(lists)
    vector_ND = found.item_vectors(["n1", "n2", "n3"], "feed")
    np.testing.assert_array_equal(vector_ND[0], vector_ND[1])
    assert (vector_ND[0] != vector_ND[2]).any()
    limits = {"brand": ["b1"], "colours": ["blue"]}
    got = items(found.recommend("u3", "feed", 99, exclude=None, filter=limits))
    assert {"n1", "n2"} < set(got) and "n3" not in got
    assert found.remove_items(["n2", "i4"]) == shop.NUM_ITEMS + 1
    left = items(found.recommend("u3", "feed", 99, exclude=None))
    assert left == [item for item in lists if item not in ("n2", "i4")]
    for gone in ("n2", "i4"):
        with pytest.raises(ValueError, match=f"items: expected items of the bundle, got '{gone}'"):
            found.similar_items([gone], "feed")
    # What failed half-way may be done again.
    before = found.catalogue
    assert found.remove_items(["i4", "n2"]) == shop.NUM_ITEMS + 1 and found.catalogue is before
    with pytest.raises(ValueError, match="items: expected items of the bundle, got 'n9'"):
        found.remove_items(["n1", "n9"])
    cold = found.recommend({"user_id": "nobody"}, "feed", 99)
    assert set(cold["item_id"]) == set(left)
    expected = found.recommend(["u3", "nobody"], "all", 99, exclude=None)
    found.compact()
    assert found.recommend(["u3", "nobody"], "all", 99, exclude=None).equals(expected)
    # An item that was removed comes back with its own vector.
    found.upsert_items({"item_id": "n2", "brand": "b1", "price": 3.0, "colours": "red|blue"})
    np.testing.assert_array_equal(found.item_vectors(["n2"], "feed"), vector_ND[:1])


def test_changes_are_kept_in_the_bundle(store, tmp_path):
    shop.Untrained(store, small.SMALL_MATCHERS["dsmoe"]).export(tmp_path / "bundle")
    found = retriever.Retriever.load(tmp_path / "bundle")
    found.upsert_items([{"item_id": f"n{n}", "brand": f"b{n}"} for n in range(3)])
    found.remove_items(["n1", "i7"])
    found.compact()
    found.upsert_items({"item_id": "i8", "brand": "b2"})
    found.save_changes()
    expected = found.recommend(["u3", "nobody"], "all", 99, exclude=None)
    again = retriever.Retriever.load(tmp_path / "bundle")
    assert again.recommend(["u3", "nobody"], "all", 99, exclude=None).equals(expected)
    again.upsert_items({"item_id": "n1", "brand": "b1"})
    again.save_changes()
    third = retriever.Retriever.load(tmp_path / "bundle")
    assert "n1" in third.item_ids and "i7" not in third.item_ids


@pytest.mark.parametrize(
    "new, message",
    [
        ({"item_id": "n1", "brandd": "b"}, "items: unknown field 'brandd'; nearest: 'brand'"),
        ({"brand": "b1"}, "items: item_id: expected an id, got None"),
        ({"item_id": True}, "items: item_id: expected an id, got True"),
        ({"item_id": "n1", "colours": 27}, "items: colours: expected a list, got 27"),
        ([{"item_id": "n1"}, {"item_id": "n1"}], "items: item_id: expected distinct ids, got 'n1'"),
        ({"item_id": "n1", "price": "dear"}, "items: price: expected a number, got 'dear'"),
    ],
)
def test_a_change_that_is_refused_changes_nothing(found, new, message):
    before = found.catalogue
    with pytest.raises(ValueError, match=message):
        found.upsert_items(new)
    assert found.catalogue is before


def test_threads_see_a_change_whole(found):
    names = [f"n{n}" for n in range(4)]
    stop, wrong = threading.Event(), []

    def ask():
        while not stop.is_set():
            got = items(found.recommend("u3", "feed", 99, exclude=None))
            if len({*names} & {*got}) not in (0, 4):
                wrong.append(got)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        found.upsert_items([{"item_id": name, "brand": "b1"} for name in names])
        found.remove_items(names)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_chosen_index_of_a_small_corpus_keeps_its_lists(store, tmp_path):
    shop.Untrained(store, small.SMALL_MATCHERS["dsmoe_plus"]).export(tmp_path / "bundle")
    before = retriever.Retriever.load(tmp_path / "bundle").recommend(["u3"], "all", 5)
    bundle = indexing.make_index(tmp_path / "bundle", min_recall=1.0, k=5)
    choices = bundle.manifest["indexes"]
    assert len(choices) == 3 and all(choice["recall"] == 1.0 for choice in choices)
    assert {point["name"] for point in choices[0]["curve"]} == {"exact", "HNSW32"}
    assert bundle.load("probes_0").ndim == 3
    assert retriever.Retriever.load(tmp_path / "bundle").recommend(["u3"], "all", 5).equals(before)


def test_an_index_of_vectors_that_cannot_be_searched_is_refused_by_name(store, tmp_path):
    untrained = shop.Untrained(store, small.SMALL_MATCHERS["dsmoe"])
    untrained.export(tmp_path / "bundle")
    folder = tmp_path / "bundle"
    vectors_SVD = np.load(folder / "item_vectors.npy")
    vectors_SVD[1, 4] = np.nan
    from dsmoe_jax.serving import bundle as bundle_lib

    bundle_lib.extend(bundle_lib.Bundle.open(folder), {"item_vectors": vectors_SVD}, {}, {})
    raw = store.items_raw_id[4]
    with pytest.raises(ValueError, match=f"item vectors of search: .*{raw}"):
        indexing.make_index(folder, min_recall=0.9, k=5)
