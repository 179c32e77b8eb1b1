"""The table of rolling days."""

from dsmoe_jax.bench import daily, measurements


def make_results(continued, yesterday, anew):
    def recalls(value):
        return {"macro": {"recall@50": value}}

    times = {"prepare": 9.0, "teacher": 1.0, "pretraining": 2.0, "student": 4.0, "evaluate": 9.0}
    return {
        **recalls(continued),
        "k": [50, 100],
        "device": "1 x cpu",
        "candidates": 77,
        "split": {"test": {"days": ["2022-05-01"]}},
        "scenarios": {"K1": {"queries": 3}, "K2": {"queries": 2}},
        "time_s": times,
        "continued": {
            "yesterday": recalls(yesterday),
            "anew": {**recalls(anew), "time_s": {**times, "student": 40.0}},
        },
    }


def test_a_day_has_the_recall_of_three_models_and_the_training_of_two():
    found = daily.summarise(make_results(0.3, 0.2, 0.25))
    assert found["recall"] == {"yesterday": 0.2, "continued": 0.3, "anew": 0.25}
    assert found["train_s"] == {"continued": 7.0, "anew": 43.0}
    assert (found["day"], found["queries"]) == ("2022-05-01", 5)


def test_the_table_has_means_over_seeds_and_days_and_says_how_it_was_made():
    rows = [
        {"seed": seed, **daily.summarise(make_results(0.3 + 0.1 * seed, 0.2, 0.25))}
        for seed in (0, 1)
    ]
    rows += [{"seed": 0, **daily.summarise(make_results(0.1, 0.2, 0.25)), "day": "2022-05-02"}]
    found = {"config": "kuairand:sample", "days": 7, "epochs": 3, "rows": rows}
    record = measurements.make("daily", ["--days=2"], found)
    lines = measurements.show_days([record]).splitlines()
    begin = "`kuairand:sample`, 2 of 7 days: macro recall@50 in %, mean of seeds 0, 1;"
    assert lines[0].startswith(begin)
    assert lines[2] == "| test day | queries | yesterday's | continued | trained anew |"
    assert lines[4:7] == [
        "| 2022-05-01 | 5 | 20.0 | 35.0 (7 s) | 25.0 (43 s) |",
        "| 2022-05-02 | 5 | 20.0 | 10.0 (7 s) | 25.0 (43 s) |",
        "| mean | | 20.0 | 26.7 (7 s) | 25.0 (43 s) |",
    ]
    assert lines[-1].startswith("Made by `python -m dsmoe_jax.bench daily --days=2`; ")
    assert measurements.show_days([]) == "Nothing was measured yet."
