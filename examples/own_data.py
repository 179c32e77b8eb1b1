"""Training on a log of one's own, here of a made-up shop.

    python examples/own_data.py

Replace `write_shop` with your files or frames. Text is taken for categories, numbers for numbers,
lists for bags; the last days test, those before them validate.
"""

import csv
import datetime
import pathlib
import random
import tempfile
from typing import Any

import dsmoe_jax

CATEGORIES = ("shoes", "shirts", "hats", "bags")


def write_shop(folder: pathlib.Path, num_users: int = 300, num_events: int = 6000) -> None:
    """Writes log.csv and items.csv: users like one category each, and look before they buy."""
    rng = random.Random(0)
    items = [(f"i{i}", rng.choice(CATEGORIES), rng.uniform(5, 80)) for i in range(120)]
    of = {name: [item for item, category, _ in items if category == name] for name in CATEGORIES}
    start = datetime.datetime(2026, 3, 1)
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item", "category", "price"), *items])
    with (folder / "log.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(("user", "item", "time", "page", "action"))
        for _ in range(num_events):
            user = rng.randrange(num_users)
            liked = CATEGORIES[user % 4] if rng.random() < 0.7 else rng.choice(CATEGORIES)
            when = start + datetime.timedelta(minutes=rng.randrange(21 * 24 * 60))
            page = rng.choice(("home", "home", "search"))
            action = rng.choice(("view", "buy"))
            log.writerow((f"u{user}", rng.choice(of[liked]), when.isoformat(), page, action))


def main(num_events: int = 6000, **fields: Any) -> dsmoe_jax.Model:
    """Trains, and prints results beside those of popularity."""
    with tempfile.TemporaryDirectory() as folder:
        write_shop(pathlib.Path(folder), num_events=num_events)
        model = dsmoe_jax.fit(
            f"{folder}/log.csv",
            items=f"{folder}/items.csv",
            user="user",
            item="item",
            time="time",
            scenario="page",
            positive="action == buy",
            progress=True,
            **fields,
        )
    rows = {"popularity": model.results["references"]["popularity"], "DSMOE": model.results}
    for name, row in rows.items():
        print(f"{name}: macro recall@10 {row['macro']['recall@10']:.3f}")
    return model


if __name__ == "__main__":
    main()
