"""The guide's worked example of MovieLens: its commands, word for word, on generated rows."""

import csv
import json
import random
import re
import shlex

import polars as pl
import pytest

from tests.e2e import commands

GUIDE = (commands.ROOT / "docs" / "guide" / "own-data.md").read_text()
SECTION = GUIDE.partition("## MovieLens as an example\n")[2].partition("\n## ")[0]
CONFIGURATIONS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = re.findall(r"^dsmoe (.*)$", SECTION, re.MULTILINE)
# The values for few rows but fewer epochs, and lists shorter than the few movies.
FEWER = ("--config.train.max_epochs=8", "--config.eval.k=(10,)")


GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
)  # fmt: skip
USERS, MOVIES, LIKED = range(1, 121), range(1, 91), 10


def draw_ratings():
    """User, movie, stars and second: a user likes movies of one kind in six, and no other."""
    rng, second = random.Random(0), 1_000_000_000
    for user in USERS:
        own = [movie for movie in MOVIES if movie % 6 == user % 6]
        liked = rng.sample(own, LIKED)
        for movie in dict.fromkeys([*liked, *rng.sample(MOVIES, 6)]):
            second += rng.randrange(1, 60)
            yield user, movie, rng.choice((4, 5) if movie in liked else (1, 2, 3)), second


def genres_of(movie):
    return sorted({GENRES[movie % 6], GENRES[6 + movie % 12]})


def write_latest_small(folder):
    with (folder / "ratings.csv").open("w", newline="") as file:
        rows = [(user, movie, float(stars), time) for user, movie, stars, time in draw_ratings()]
        csv.writer(file).writerows([("userId", "movieId", "rating", "timestamp"), *rows])
    with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(m, f"Café, The {m} (1995)", "|".join(genres_of(m))) for m in MOVIES]
        csv.writer(file).writerows([("movieId", "title", "genres"), *rows])


def write_100k(folder):
    with (folder / "u.data").open("w") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in draw_ratings())
    with (folder / "u.item").open("w", encoding="latin-1") as file:
        for movie in MOVIES:
            flags = [str(int(genre in genres_of(movie))) for genre in ("unknown", *GENRES)]
            cells = [str(movie), f"Café, The {movie} (1995)", "01-Jan-1995", "", "http://x", *flags]
            file.write("|".join(cells) + "\n")
    with (folder / "u.user").open("w") as file:
        for user in USERS:
            file.write(f"{user}|{20 + user % 40}|{'MF'[user % 2]}|student|V3N4P\n")


def configure(path, code):
    """Puts what the guide says in place of the example's function."""
    text = path.read_text()
    example = re.search(r"def data_config\(\).*?\n\n\n", text, re.DOTALL)[0]
    path.write_text(text.replace(example, f"{code}\n\n"))


def run(line, cwd, *more):
    return commands.run(*shlex.split(line), *more, cwd=cwd)


def check(folder):
    results = json.loads((folder / "runs" / "my_movies-fism" / "results.json").read_text())
    popularity = results["references"]["popularity"]["macro"]["recall@10"]
    assert results["macro"]["recall@10"] > 2 * popularity > 0


def test_from_init_to_lists_in_the_layout_of_the_latest_releases(tmp_path):
    init, train, one, many, _ = COMMANDS
    raw = tmp_path / "ml-latest-small"
    raw.mkdir()
    write_latest_small(raw)
    run(init, tmp_path)
    configure(tmp_path / "my_movies.py", CONFIGURATIONS[0])
    run(train, tmp_path, *FEWER)
    check(tmp_path)
    printed = run(one, tmp_path)
    [shown] = re.findall(r"everywhere: (.*)", printed)
    assert len(set(shown.split())) == 5
    liked = [str(movie) for user, movie, stars, _ in draw_ratings() if user == 1 and stars >= 4]
    # The last one is held out, so that the bundle may recommend it.
    assert not set(liked[:-1]) & set(shown.split())
    pl.DataFrame({"user_id": USERS}).write_csv(tmp_path / "users.csv")
    run(many, tmp_path)
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert lists.height == 20 * len(USERS) == lists.unique(["user_id", "item_id"]).height


# The same commands on other columns, which tests of preparation read too.
@pytest.mark.slow
def test_from_init_to_results_in_the_layout_of_100k(tmp_path):
    *first, train = COMMANDS
    raw = tmp_path / "ml-100k"
    raw.mkdir()
    write_100k(raw)
    run(first[0], tmp_path)
    configure(tmp_path / "my_movies.py", CONFIGURATIONS[1])
    run(train, tmp_path, *FEWER)
    check(tmp_path)
