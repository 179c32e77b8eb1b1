import contextlib
import http.server
import json
import pathlib
import re
import threading

import jax
import numpy as np
import pytest

from dsmoe_jax.data import pipeline
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.run import bundle_command, bundle_diff, replay, results, workdir
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import retriever
from dsmoe_jax.training import sharding, train_state
from tests.serving import tool_bundle

HASH = "0" * 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with its store, bundle and results."""
    folder = tmp_path_factory.mktemp("run")
    experiment = tool_bundle.make_experiment(folder, "fism")
    store = store_lib.Store.open(folder / "store")
    matcher, frozen = tool_bundle.make_model(store, experiment)
    mesh = sharding.make_mesh(jax.devices()[:1])
    corpus = sharding.put_replicated(mesh, pipeline.read_corpus(store, matcher.spec))
    evaluate = evaluators.MatcherEvaluator(
        store, matcher.spec, corpus, matcher, experiment.eval, mesh
    )
    placed = train_state.Frozen(*sharding.put_replicated(mesh, tuple(frozen)))
    found = evaluate(placed, "test", protocol.sample_queries(store, "test", None, 0))
    record = {"k": [3, tool_bundle.K], "config_hash": HASH, "data_hash": store.data_hash}
    record |= {"remove_seen": "positives"}
    record |= results.plain(found.summarise())
    tool_bundle.write(folder, "fism", run={"results": record})
    (folder / "results.json").write_text(json.dumps(record))
    workdir.write_config(experiment, folder, {})
    return folder


def call(capsys, *arguments):
    status = bundle_command.main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_replayed_recall_equals_the_evaluation(run, capsys):
    status, out, _ = call(capsys, "replay", run / "bundle", run)
    assert status == 0 and out.endswith("results.json: equal to the last digit\n")
    found = replay.replay(run / "bundle", run)
    assert found.num_queries > 40 and found.recorded == found.replayed
    values = [value for row in found.recorded.values() for value in row.values()]
    assert len(values) == 8 and len(set(values)) > 4 and 0 < min(values) < max(values) < 1


def test_another_recall_is_told_and_what_an_index_may_lose_is_granted(run, tmp_path, capsys):
    record = json.loads((run / "results.json").read_text())
    cart = record["scenarios"]["cart"]
    cart["recall@8"] = np.nextafter(cart["recall@8"], 1.0)
    (tmp_path / "results.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    status, out, _ = call(capsys, "replay", run / "bundle", tmp_path)
    assert status == 1 and out.endswith("results.json: NOT equal\n")
    assert call(capsys, "replay", run / "bundle", tmp_path, "--lose", "0.01")[0] == 0
    cart["recall@8"] *= 1.02
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert call(capsys, "replay", run / "bundle", tmp_path, "--lose", "0.01")[0] == 1
    status, _, err = call(capsys, "replay", run / "bundle", tmp_path, "--lose", "1")
    assert status == 2 and err == "error: --lose: expected a share in [0, 1), got 1.0\n"


def test_a_bundle_of_another_run_is_refused(run, tmp_path, capsys):
    record = json.loads((run / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(record | {"config_hash": "1" * 12}))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    status, _, err = call(capsys, "replay", run / "bundle", tmp_path)
    assert status == 2 and re.fullmatch(
        rf"error: .*: expected the bundle of .*, configuration {'1' * 12}, got .* {HASH}\n", err
    )
    status, _, err = call(capsys, "replay", run / "bundle", tmp_path / "nothing")
    assert status == 2 and "config.json: expected the configuration of a run" in err
    (tmp_path / "results.json").unlink()
    status, _, err = call(capsys, "replay", run / "bundle", tmp_path)
    assert status == 2 and "results.json: expected the results of an evaluated run" in err


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as the service does, from a retriever."""

    served: retriever.Retriever
    wrong = False

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/retrieve"
        assert self.headers["Authorization"] == "Bearer secret"
        wanted = self.served.want(asked["k"], exclude=asked["exclude"])
        users = {"user_id": [user["user_id"] for user in asked["users"]]}
        answers = self.served.retrieve(users, asked["scenario"], wanted)
        lists = [{"scenario": a.scenario, "items": a.item_ids} for a in answers]
        body = json.dumps({"lists": lists[1:] if self.wrong else lists}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(path, **attributes):
    attributes |= {"served": retriever.Retriever.load(path)}
    handler = type("Handler", (Service,), attributes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_service_is_replayed(run, capsys, monkeypatch):
    monkeypatch.setenv("DSMOE_TOKEN", "secret")
    with serving(run / "bundle") as url:
        status, out, _ = call(capsys, "replay", run / "bundle", run, "--url", url)
    assert status == 0 and out.endswith("results.json: equal to the last digit\n")
    with serving(run / "bundle", wrong=True) as url:
        status, _, err = call(capsys, "replay", run / "bundle", run, "--url", url)
    assert status == 2 and re.search(r"/v1/retrieve: expected \d+ lists of home, got \d+ of ", err)
    status, _, err = call(capsys, "replay", run / "bundle", run, "--url", url)
    assert status == 2 and err.count("\n") == 1
    assert f"--url: expected lists from {url}/v1/retrieve, got [Errno" in err and "refused" in err
    status, _, err = call(capsys, "replay", run / "bundle", run, "--url", "localhost:1")
    assert status == 2 and "--url: expected an address like" in err


def rewrite(source, target, change, **described):
    """A copy of a bundle with other arrays and facts."""
    bundle = bundle_lib.Bundle.open(source)
    arrays = {name[:-4]: np.array(bundle.load(name[:-4])) for name in bundle.manifest["files"]}
    change(arrays)
    kept = {k: v for k, v in bundle.manifest.items() if k not in ("format", "files", "digest")}
    bundle_lib.write(target, arrays, {}, {**kept, **described})
    return target


def rank_by(arrays, score_V):
    """Lists in the order of a score, whoever asks: an item's vector holds nothing else."""
    arrays["item_vectors"][:] = 0
    arrays["item_vectors"][:, :, -1] = score_V


def add_queries(arrays):
    """Two queries at home and one in a cart, each with one item to find."""
    arrays["test_queries"] = np.array([[1, 0], [2, 0], [1, 2]], np.int32)
    arrays["test_relevant_indptr"] = np.array([0, 1, 2, 3])
    arrays["test_relevant"] = np.array([30, 4, 1], np.int32)


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    """Bundles whose lists are known: B's best item is the last of A."""
    folder, score_V = tmp_path_factory.mktemp("pair"), -np.arange(31.0)
    record = {
        "k": [4],
        "scenarios": {n: {"recall@4": 0.5, "recall@4_se": 0.01} for n in tool_bundle.SCENARIOS},
        "macro": {"recall@4": 0.5, "recall@4_se": 0.01},
    }

    def first(arrays):
        rank_by(arrays, score_V)
        add_queries(arrays)

    def second(arrays):
        rank_by(arrays, np.where(np.arange(31) == 30, 5.0, score_V + 0.25))
        add_queries(arrays)
        arrays["vocabulary_brand"] = np.array(["", "acme", "none"])

    facts = {"remove_seen": "none", "results": record}
    rewrite(run / "bundle", folder / "a", first, **facts)
    better = {**record, "macro": {"recall@4": 0.6, "recall@4_se": 0.02}}
    rewrite(
        run / "bundle", folder / "b", second, **facts | {"results": better, "date": "2031-01-02"}
    )
    return folder


def test_the_difference_of_two_bundles_is_the_literal_one(pair):
    before, after = (retriever.Retriever.load(pair / name) for name in "ab")
    tables = {t.title: t for t in bundle_diff.compare(before, after, users=7, k=4)}
    date = before.bundle.manifest["date"]
    assert ("date", date, "2031-01-02") in tables["What differs"].rows
    assert tables["Vocabulary"].rows == [("brand", "2", "2", "1: none", "1: nope")]
    # Item 30 pushes item 4 out; texts sort as i0, i1, i10, i11, ... i9.
    assert tables["Top 4"].rows == [
        (name, "75.0 %", "+0.25", "0.25") for name in tool_bundle.SCENARIOS
    ]
    assert tables["Items that came into the top 4, and that left it"].rows == [
        (name, "i9 (7)", "i11 (7)") for name in tool_bundle.SCENARIOS
    ]
    assert tables["Recall of the runs"].rows[-1] == (
        "recall@4 macro",
        "50.00 ± 1.00",
        "60.00 ± 2.00",
        "+10.00",
    )
    # At home item 30 is found by the second alone and item 4 by the first alone.
    rows = tables["Recall on the same queries"].rows
    assert [row[0::2] for row in rows] == [("home", "2"), ("cart", "1"), ("macro", "3")]
    assert rows[0][1] == "+0.0 [-100.0, +100.0] no difference shown"
    assert rows[1][1] == "+0.0 [+0.0, +0.0] no difference shown"


def test_a_bundle_does_not_differ_from_itself(pair):
    served = retriever.Retriever.load(pair / "a")
    tables = {t.title: t for t in bundle_diff.compare(served, served, users=3, k=4)}
    assert tables["What differs"].rows == tables["Vocabulary"].rows == []
    assert {row[1:] for row in tables["Top 4"].rows} == {("100.0 %", "+0", "0")}


def test_the_difference_is_text_and_one_page(pair, tmp_path, capsys):
    page = tmp_path / "diff.html"
    status, out, _ = call(capsys, "diff", pair / "a", pair / "b", "--html", page)
    assert status == 0 and "overlap@100" in out and f"wrote {page}" in out
    assert max(map(len, out.splitlines())) <= 120 + len(str(page))
    text = page.read_text()
    for word in ("Recall on the same queries", "prefers-color-scheme", "2031-01-02"):
        assert word in text
    for word in ("<script", "http://", "https://", "@import", "url("):
        assert word not in text


def test_texts_of_a_bundle_are_escaped_on_the_page(pair, tmp_path, capsys):
    evil = rewrite(pair / "a", tmp_path / "evil", lambda _: None, variant="<b>&amp;")
    page = tmp_path / "diff.html"
    assert call(capsys, "diff", pair / "a", evil, "--html", page)[0] == 0
    assert "&lt;b&gt;&amp;amp;" in page.read_text() and "<b>" not in page.read_text()


def test_bundles_without_a_common_scenario_are_refused(pair, tmp_path, capsys):
    spec = bundle_lib.Bundle.open(pair / "a").manifest["spec"] | {"scenarios": ["x", "y", "z"]}
    other = rewrite(pair / "a", tmp_path / "other", lambda _: None, spec=spec)
    status, _, err = call(capsys, "diff", pair / "a", other)
    assert status == 2 and "expected a scenario of home, search, cart, got x, y, z" in err


def test_commands_end_with_their_status(run, tmp_path, capsys, monkeypatch):
    status, out, _ = call(capsys, "verify", run / "bundle")
    assert status == 0 and out.count("\n") == 1 and ": ok, " in out
    assert call(capsys, "show", run / "bundle")[0] == 0
    status, _, err = call(capsys, "verify", tmp_path)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    status, out, _ = call(capsys, "onnx", run / "bundle", "--out", tmp_path / "x.onnx", "--k", "5")
    assert status == 0 and "overlap@5 100.00 %" in out
    uri = tmp_path / "items.parquet"
    push = ("push", run / "bundle", "--to", "parquet", "--uri", uri, "--k", "5")
    assert call(capsys, *push)[0] == 0
    status, _, err = call(capsys, *push)
    assert status == 2 and "--replace" in err
    from dsmoe_jax.serving import parity

    monkeypatch.setattr(parity, "_TOLERANCE", -1.0)
    status, out, err = call(capsys, *push, "--replace")
    assert status == 1 and "DIFFERENT" in out
    assert err == "error: parquet: expected the exact lists, got others\n"


def test_help_has_examples_of_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        bundle_command.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    commands = ("verify", "show", "replay", "diff", "onnx", "push")
    assert all(f"dsmoe bundle {command} " in told for command in commands)
    from dsmoe_jax.serving import vector_stores

    assert tuple(vector_stores.STORES) == bundle_command.STORES
    for command in commands:
        with pytest.raises(SystemExit):
            bundle_command.main([command, "--help"])
        assert "usage: dsmoe bundle" in capsys.readouterr().out


def test_no_module_of_serving_needs_evaluation():
    for file in (pathlib.Path(bundle_command.__file__).parents[1] / "serving").glob("*.py"):
        assert "dsmoe_jax.evaluation" not in file.read_text()
