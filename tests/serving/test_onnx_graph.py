import numpy as np
import onnxruntime
import pytest

from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import onnx_feeds, onnx_graph, retriever
from tests.serving import tool_bundle

METHODS = {
    "dsmoe": {},
    "dsmoe_shared": {"item_scenario": "shared", "use_sap": False},
    # Weights that reach their least within a window.
    "fism": {"recency": 0.6, "recency_floor": 0.3, "exposure_recency": 0.5},
    "dsmoe_plus": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=METHODS)
def served(request, folder):
    name = request.param.partition("_shared")[0]
    path = tool_bundle.write(folder, name, name=request.param, **METHODS[request.param])
    served = retriever.Retriever.load(path)
    file = onnx_graph.write_onnx(served.bundle, folder / f"{request.param}.onnx", k=tool_bundle.K)
    return served, open_session(file)


def check(served, session, columns, scenario):
    found = onnx_feeds.feeds(served.bundle, columns, scenario, encoder=served.encoder)
    taken = {entry.name: found[entry.name] for entry in session.get_inputs()}
    assert taken.keys() == found.keys()
    item_id, score = session.run(["item_id", "score"], taken)
    names = [scenario] * len(item_id) if isinstance(scenario, str) else scenario
    for q, name in enumerate(names):
        one = {field: values[q : q + 1] for field, values in columns.items()}
        wanted = served.want(tool_bundle.K, exclude=served.usual_exclude)
        [expected] = served.retrieve(one, name, wanted)
        count = len(expected.item_ids)
        assert item_id[q, :count].tolist() == expected.item_ids
        np.testing.assert_allclose(score[q, :count], expected.scores, rtol=1e-5, atol=1e-5)


def test_it_returns_the_lists_of_the_retriever_for_every_known_user(served):
    served, session = served
    users = served.encoder.known_users()
    names = [served.scenarios[(7 * n) % 3] for n in range(len(users))]
    check(served, session, {"user_id": users}, names)
    check(served, session, {"user_id": users[:1]}, served.scenarios[2])


def test_raw_values_that_a_request_brings_count_as_in_the_retriever(served):
    served, session = served
    history = [["i3", "never met", "i4", "i3"], [f"i{n}" for n in range(12)], ["i5"]]
    columns = {
        "history": history,
        "shown": [["i9"], [], ["i1", "i2"]],
        "country": ["FR", "-1", "XX"],
        "age": [31.0, None, 70.0],
        "spent": [0.0, 12.5, None],
        "interests": ["b|b|a", ["d"], "zz|a|b|c|d|a"],
    }
    check(served, session, columns, list(served.scenarios))


def test_a_missing_number_is_nan_or_negative_where_it_has_a_logarithm(served):
    served, session = served
    fed = onnx_feeds.feeds(served.bundle, {"history": [["i3", "i4"], ["i5"]]}, "home")
    numbers = {"age", "spent"} & fed.keys()
    expected = session.run(None, fed)
    got = session.run(None, fed | dict.fromkeys(numbers, np.array([np.nan, np.nan])))
    assert got[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)
    if "spent" in numbers:
        assert "age" in numbers
        [_, again] = session.run(None, fed | {"spent": np.array([-2.0, np.nan])})
        np.testing.assert_allclose(again, expected[1], rtol=1e-5, atol=1e-6)


def test_padding_may_lie_anywhere_and_long_matrices_are_cut_as_requests_are(served):
    served, session = served
    users = served.encoder.known_users()[:6]
    plain = onnx_feeds.feeds(served.bundle, {"user_id": users}, "home")
    more = dict(plain)
    for name in {"history", "shown", "scenario_history"} & plain.keys():
        raw_BL = plain[name]
        # Events from before the window, then the window with its padding on the left.
        events = [row[row != ""] for row in raw_BL]
        more[name] = np.full((len(users), 15), "", raw_BL.dtype)
        for q, row in enumerate(events):
            more[name][q, 15 - len(row) :] = row
            if len(row) == raw_BL.shape[1]:
                more[name][q, :4] = "i1"
    if "interests" in plain:
        more["interests"] = np.repeat(plain["interests"], 2, axis=1)
    more["removed"] = np.concatenate([np.full((len(users), 2), ""), plain["removed"]], axis=1)
    expected, got = session.run(None, plain), session.run(None, more)
    assert got[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-6, atol=1e-6)


def test_lists_end_in_blanks_where_all_else_is_removed(served):
    served, session = served
    fed = onnx_feeds.feeds(served.bundle, {"user_id": served.encoder.known_users()[:2]}, "cart")
    fed["removed"] = np.array([[i for i in served.item_ids if i != "i7"]] * 2)
    item_id, score = session.run(None, fed)
    assert item_id.tolist() == [["i7", *[""] * 7]] * 2
    assert np.isfinite(score[:, 0]).all() and np.isneginf(score[:, 1:]).all()


def test_an_unknown_scenario_ends_the_run(served):
    served, session = served
    fed = onnx_feeds.feeds(served.bundle, {"user_id": served.encoder.known_users()[:2]}, "cart")
    fed["scenario"] = np.array(["cart", "checkout"])
    with pytest.raises(Exception, match="known_scenario"):
        session.run(None, fed)
    with pytest.raises(ValueError, match=r"scenario: expected 1 of home, search, cart, got 1: x"):
        onnx_feeds.feeds(served.bundle, {"user_id": ["u1"]}, ["x"])


def test_items_that_came_later_are_found_and_removed_ones_are_not(folder, tmp_path):
    path = tool_bundle.write(folder, "dsmoe_plus", name="changed")
    served = retriever.Retriever.load(path)
    served.upsert_items([{"item_id": "new", "brand": "acme"}, {"item_id": "i2", "price": 1.5}])
    served.remove_items(["i3", "i4"])
    served.save_changes()
    session = open_session(onnx_graph.write_onnx(served.bundle, tmp_path / "x.onnx", k=29))
    users = served.encoder.known_users()
    item_id, _ = session.run(None, onnx_feeds.feeds(served.bundle, {"user_id": users}, "home"))
    assert "new" in item_id and not {"i3", "i4"} & set(item_id.ravel().tolist())
    check(served, session, {"user_id": users}, "search")


def test_integers_and_logs_of_several_fields_are_read(tmp_path):
    path = tool_bundle.write_of(tmp_path, tool_bundle.make_ads_experiment(tmp_path, "dsmoe"))
    served = retriever.Retriever.load(path)
    session = open_session(onnx_graph.write_onnx(served.bundle, tmp_path / "ads.onnx", k=8))
    names = {entry.name: entry.type for entry in session.get_inputs()}
    assert names["behavior.category"] == names["history"] == "tensor(int64)"
    users = served.encoder.known_users()
    check(served, session, {"user_id": users}, [served.scenarios[n % 4] for n in range(len(users))])
    events = [[{"category": 3, "brand": 601}, {"category": 99, "brand": 601}], [], None]
    events[1] = [{"category": n % 4, "brand": 608 - n} for n in range(9)]
    columns = {"behavior": events, "history": [[3, 77, 4], [], [5]], "age_level": [2, -5, None]}
    check(served, session, columns, list(served.scenarios[:3]))


def test_integer_vocabularies_take_integers_and_may_hold_minus_one():
    raw_X = np.array([-1, 3, 5])
    assert onnx_feeds.blank(raw_X) == -1
    assert onnx_feeds.blank(np.array([-1, -1, 5])) == -(2**63)
    assert onnx_feeds.blank(np.array(["", "a"])) == ""


def test_what_no_file_can_hold_is_refused(folder, tmp_path, monkeypatch):
    bundle = bundle_lib.Bundle.open(tool_bundle.write(folder, "fism", name="refused"))
    with pytest.raises(ValueError, match="k: expected an integer >= 1, got 0"):
        onnx_graph.write_onnx(bundle, tmp_path / "x.onnx", k=0)
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="expected a graph of at most 1,000 bytes"):
        onnx_graph.write_onnx(bundle, tmp_path / "x.onnx", k=5)
    bundle.manifest["towers"] = {"kind": "stablehlo"}
    with pytest.raises(ValueError, match="expected towers that fold into arrays for ONNX"):
        onnx_graph.write_onnx(bundle, tmp_path / "x.onnx", k=5)
    assert list(tmp_path.iterdir()) == []
