"""The order of a run, without what it orders."""

import json
import pathlib
import signal
import types

import pytest

from dsmoe_jax.config import fingerprint, load
from dsmoe_jax.run import lock, run, workdir
from dsmoe_jax.training import interrupt


class Stages:
    """Stands for stages that do nothing but be asked to stop."""

    needs_teacher = False
    store = types.SimpleNamespace(data_hash="ab")

    def __init__(self, interrupted):
        self.interrupted, self.done = interrupted, []

    def describe(self):
        pass

    def train_student(self):
        self._do("student")

    def report(self):
        self._do("report")

    def export(self):
        self._do("export")

    def _do(self, part):
        if part == self.interrupted:
            signal.raise_signal(signal.SIGINT)
        self.done.append(part)


@pytest.fixture
def start(monkeypatch, tmp_path):
    experiment = load.load_config("kuairand:sample,no_distill")

    def start(stages, experiment=experiment, handle_signals=True):
        def prepare(*arguments):
            stages.done.append("prepare")
            return tmp_path / "store"

        monkeypatch.setattr(run, "prepare", prepare)
        monkeypatch.setattr(run.stages, "Stages", lambda *arguments: stages)
        monkeypatch.setattr(run.report, "write", lambda of: of.report())
        monkeypatch.setattr(run.export, "write", lambda of: of.export())
        return run.run(experiment, tmp_path, "all", handle_signals=handle_signals)

    return start


def test_a_signal_ends_a_report_at_once(start):
    stages = Stages("report")
    with pytest.raises(KeyboardInterrupt):
        start(stages)
    assert stages.done == ["prepare", "student"]


def test_a_signal_that_training_did_not_see_is_honoured_before_the_report(start):
    stages = Stages("student")
    with pytest.raises(interrupt.InterruptedRunError, match="resumes"):
        start(stages)
    assert stages.done == ["prepare", "student"]


def test_without_a_signal_all_is_done(start):
    stages = Stages(None)
    start(stages)
    assert stages.done == ["prepare", "student", "report", "export"]


def test_without_handlers_a_signal_is_the_callers(start):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(Stages("student"), handle_signals=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_given_configuration_is_not_changed(start):
    experiment = load.load_config("kuairand:sample,no_distill", {"data.raw_dir": "~/raw"})
    start(Stages(None), experiment)
    assert experiment.data.raw_dir == "~/raw"
    assert run.resolve(experiment).data.raw_dir == str(pathlib.Path("~/raw").expanduser())


def write_checkpoint(workdir, experiment, stage="student", **changes):
    """What of a checkpoint says which run wrote it."""
    meta = workdir / "checkpoints" / stage / "latest" / "7" / "meta"
    meta.mkdir(parents=True)
    identity = {**fingerprint.of_stage(experiment, stage=stage), "data_hash": "ab", **changes}
    (meta / "metadata").write_text(json.dumps({"identity": identity}))


def test_a_run_of_other_fields_is_refused_before_it_writes_or_prepares(start, tmp_path):
    experiment = load.load_config("kuairand:sample,no_distill")
    write_checkpoint(tmp_path, experiment)
    start(Stages(None))
    before = (tmp_path / "config.json").read_bytes()
    base = fingerprint.flatten(fingerprint.as_dict(experiment))
    for field in ("train.learning_rate=0.5", "data.validation_days=3", "seed=9"):
        name, _, value = field.partition("=")
        other = load.load_config(
            "kuairand:sample,no_distill", {name: type(base[name])(float(value))}
        )
        stages = Stages(None)
        with pytest.raises(ValueError, match=rf"{name}: checkpoint .*, run {value}"):
            start(stages, other)
        assert stages.done == []
        assert (tmp_path / "config.json").read_bytes() == before
    # What may change on resume is kept.
    start(Stages(None), load.load_config("kuairand:sample,no_distill", {"train.max_epochs": 9}))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["train"]["max_epochs"] == 9


def test_a_run_on_other_data_is_refused_before_it_writes(start, tmp_path):
    experiment = load.load_config("kuairand:sample,no_distill")
    write_checkpoint(tmp_path, experiment, data_hash="cd")
    stages = Stages(None)
    with pytest.raises(
        ValueError, match=r"data_hash: checkpoint 'cd', run 'ab'; its data are gone"
    ):
        start(stages)
    assert stages.done == ["prepare"]
    assert not (tmp_path / "config.json").exists()


def test_values_by_size_are_kept_and_compared_once_the_data_are_prepared(
    start, tmp_path, monkeypatch, capsys
):
    manifest = {"split": {"train": {"examples": 9000}}, "counts": {"items": 50}}
    store = types.SimpleNamespace(data_hash="ab", manifest=manifest)
    monkeypatch.setattr(run.store_lib.Store, "open", lambda folder: store)
    fields = {"by_size": True, "train.learning_rate": 0.5}
    given = load.load_config("kuairand:sample,no_distill", fields | {"features.exclude": ("age",)})
    ran = start(Stages(None), given)
    assert (ran.train.batch_size, ran.train.learning_rate) == (64, 0.5)
    assert ran.features.exclude == ("age",) and given.train.batch_size == 816
    assert fingerprint.as_dict(workdir.read_config(tmp_path)) == fingerprint.as_dict(ran)
    assert "by_size, for 9,000 positives: train.batch_size=64, " in capsys.readouterr().out
    # A second run resumes; one whose data now want other batches does not.
    write_checkpoint(tmp_path, ran)
    start(Stages(None), given)
    manifest["split"]["train"]["examples"] = 90_000
    stages = Stages(None)
    with pytest.raises(ValueError, match=r"train\.batch_size: checkpoint 64, run 512"):
        start(stages, given)
    assert stages.done == ["prepare"]
    # Fields that are known before are compared before.
    stages, given.seed = Stages(None), 5
    with pytest.raises(ValueError, match=r"checkpoint \(seed: checkpoint 0, run 5\)"):
        start(stages, given)
    assert stages.done == []


def test_a_teacher_of_another_workdir_is_compared_too(start, tmp_path):
    fields = {"teacher.from_workdir": str(tmp_path / "teacher"), "loss.distill_weight": 0.5}
    experiment = load.load_config("kuairand:sample", fields)
    write_checkpoint(tmp_path / "teacher", experiment, "teacher", **{"train.batch_size": 7})
    stages = Stages(None)
    with pytest.raises(ValueError, match=r"teacher/checkpoints/teacher: another run.*batch_size"):
        start(stages, experiment)
    assert stages.done == []


def test_a_second_run_in_a_workdir_is_refused_at_once(start, tmp_path):
    stages = Stages(None)
    with lock.hold(tmp_path), pytest.raises(ValueError, match="another run works in this folder"):
        start(stages)
    assert stages.done == []
    start(stages)
    assert stages.done == ["prepare", "student", "report", "export"]


def test_a_first_run_that_is_refused_leaves_nothing(tmp_path):
    experiment = load.load_config("kuairand:sample")
    experiment.data.raw_dir = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.raw_dir"):
        run.run(experiment, tmp_path / "new" / "run", "prepare")
    assert list(tmp_path.iterdir()) == []
