"""Own data in an object store, against a local S3 server."""

import json
import urllib.request

import boto3
import moto.server
import pytest

from dsmoe_jax.config import load
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom, objects
from dsmoe_jax.run import run
from tests.data.prepare import test_own_options

FIELDS = {"user_id": "user", "item_id": "item", "scenario": "page"}
FIELDS |= {"validation_days": 2, "test_days": 2}


@pytest.fixture(scope="module")
def server():
    made = moto.server.ThreadedMotoServer(port=0, verbose=False)
    made.start()
    yield "http://{}:{}".format(*made.get_host_and_port())
    made.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket, with credentials in the environment."""
    urllib.request.urlopen(
        urllib.request.Request(f"{server}/moto-api/reset", method="POST")
    ).close()
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="logs")
    yield client
    client.close()


def put(bucket, key, frame):
    bucket.put_object(Bucket="logs", Key=key, Body=frame.write_csv().encode())


def prepare(tmp_path, raw_dir, **fields):
    custom.CustomConfig(raw_dir=raw_dir, **{**FIELDS, **fields}).prepare(str(tmp_path / "store"))
    return store_lib.Store.open(tmp_path / "store", verify=True)


def test_objects_give_the_store_that_files_give(bucket, tmp_path, capsys):
    log, files = test_own_options.log_of(), tmp_path / "files"
    for part, frame in enumerate((log[: log.height // 2], log[log.height // 2 :])):
        (files / "log" / f"dt={part}").mkdir(parents=True)
        frame.write_csv(files / "log" / f"dt={part}" / "part.csv")
        put(bucket, f"shop/log/dt={part}/part.csv", frame)
    bucket.put_object(Bucket="logs", Key="shop/log/_SUCCESS", Body=b"")
    expected = prepare(tmp_path / "a", str(files), log_files=("log",))
    found = prepare(tmp_path / "b", "s3://logs/shop/", log_files=("log",))
    assert found.data_hash == expected.data_hash
    assert found.manifest["inputs"] == expected.manifest["inputs"]
    # Unchanged objects stay, a changed one is copied, one that is gone goes.
    capsys.readouterr()
    prepare(tmp_path / "b", "s3://logs/shop/", log_files=("log",))
    assert "copying" not in capsys.readouterr().out
    put(bucket, "shop/log/dt=1/part.csv", log[log.height // 2 : -1])
    prepare(tmp_path / "b", "s3://logs/shop/", log_files=("log/*/part.csv",))
    assert "copying 1 objects" in capsys.readouterr().out
    bucket.delete_object(Bucket="logs", Key="shop/log/dt=0/part.csv")
    bucket.put_object(Bucket="logs", Key="shop/log/dt=2.csv", Body=log.write_csv().encode())
    prepare(tmp_path / "b", "s3://logs/shop", log_files=("log/dt=2.csv",))
    [folder] = [path for path in (tmp_path / "b").glob("raw-*") if path.is_dir()]
    kept = [path.name for path in folder.rglob("*") if path.is_file()]
    assert kept == ["dt=2.csv"]
    assert len(json.loads(folder.with_name(f"{folder.name}.objects.json").read_text())) == 1


@pytest.mark.parametrize(
    ("url", "fields", "message"),
    [
        ("s3://logs/shop", {"log_files": ("none.csv",)}, r"data\.log_files: expected s3://logs/shop/"
         r"none\.csv to exist, found no object"),
        ("s3://logs/shop", {"items_file": "items.csv"}, r"data\.items_file: expected s3://logs/shop/"
         r"items\.csv to exist"),
        ("s3://other/shop", {}, r"data\.(raw_dir|log_files): expected s3://other/shop.* to exist"),
        ("s3://logs/shop", {"log_files": ("../log.csv",)}, r"data\.log_files: expected a name or"),
        ("ftp://logs/shop", {}, r"data\.raw_dir: expected a folder, or an address s3://, gs:// or"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(bucket, tmp_path, url, fields, message):
    put(bucket, "shop/log.csv", test_own_options.log_of())
    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path, url, **fields)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_credentials_and_servers_that_fail_are_one_line(bucket, tmp_path, monkeypatch):
    put(bucket, "shop/log.csv", test_own_options.log_of())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=r"data\.raw_dir: .*credentials") as caught:
        prepare(tmp_path, "s3://logs/shop")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ValueError, match=r"data\.raw_dir: expected to reach s3://logs/shop"):
        prepare(tmp_path, "s3://logs/shop")


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(objects.optional, "list_missing", list)
    with pytest.raises(
        ValueError, match=r"data\.raw_dir gs://b/x: .*gcsfs.*pip install '\.\[gcs\]'"
    ):
        prepare(tmp_path, "gs://b/x")


def test_an_address_is_no_path_of_a_run():
    experiment = load.load_config("custom", {"data.raw_dir": "s3://logs/shop"})
    assert run.resolve(experiment).data.raw_dir == "s3://logs/shop"
