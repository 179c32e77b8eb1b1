import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import movielens
from dsmoe_jax.data.synthetic import movielens_rows

RATINGS = """1::10::5::9000300
1::20::3::9000100
1::30::4::9000200
2::30::1::9000050
2::20::1::9000060
2::10::1::9000060
2::40::1::9000070
3::10::2::9000500
"""
MOVIES = """10::Amélie (2001)::Comedy|Romance
20::Heat: Director's Cut (1995)::Action
30::Toys, Toys (1990)::Action|Comedy
40::Alone (1991)::
"""
USERS = """1::F::1::10::48067
2::M::56::16::70072
3::M::25::15::55117
"""


def write(folder, ratings=RATINGS, movies=MOVIES, users=USERS):
    folder.mkdir(exist_ok=True)
    for name, text in (("ratings", ratings), ("movies", movies), ("users", users)):
        (folder / f"{name}.dat").write_text(text, encoding="latin-1")
    return folder


def prepare(folder, store_dir):
    movielens.MovieLensConfig(raw_dir=str(folder), name="ML").prepare(str(store_dir))
    return store_lib.Store.open(store_dir)


def read(store, table):
    """(user, history, item, time less nine million) of rows; raw ids."""
    columns = store.columns
    ids_EF, _ = store.sequences["history"]
    return [
        (
            int(store.users_raw_id[row[columns["user"]]]),
            store.items_raw_id[
                ids_EF[row[columns["history_start"]] : row[columns["history_stop"]], 0]
            ].tolist(),
            int(store.items_raw_id[row[columns["item"]]]),
            int(row[columns["time_s"]]) - 9_000_000,
        )
        for row in table
    ]


def check_store(store):
    # Of the same second, the smaller id first.
    assert read(store, store.train_NC) == [
        (1, [], 20, 100),
        (2, [], 30, 50),
        (2, [30], 10, 60),
        (3, [], 10, 500),
    ]
    validation, test = store.queries("validation"), store.queries("test")
    assert read(store, validation.rows_QC) == [(1, [20], -1, 200), (2, [30, 10], -1, 60)]
    assert read(store, test.rows_QC) == [(1, [20, 30], -1, 300), (2, [30, 10, 20], -1, 70)]
    assert store.items_raw_id[validation.relevant.items].tolist() == [30, 20]
    assert store.items_raw_id[test.relevant.items].tolist() == [10, 40]
    assert store.spec.scenarios == ("all",)


def test_the_last_rating_tests_and_the_one_before_validates(tmp_path):
    store = prepare(write(tmp_path / "raw"), tmp_path / "store")
    check_store(store)
    assert store.manifest["dataset"] == "ML"
    assert [f.name for f in store.spec.user_sparse] == ["user_id", "gender", "age", "occupation"]
    assert store.load("vocabulary_genres").tolist() == ["", "Action", "Comedy", "Romance"]
    np.testing.assert_array_equal(
        store.items_bags["genres"], [[0, 0], [2, 3], [1, 0], [1, 2], [0, 0]]
    )
    assert store.manifest["counts"]["items"] == 4


def test_the_later_releases_layout_gives_the_same_sequences(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = RATINGS.replace("::", ",")
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}")
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,Amélie (2001),Comedy|Romance\n20,"Heat: ""Cut""",Action\n'
        '30,"Toys, Toys (1990)",Action|Comedy\n40,Alone (1991),Action\n',
        encoding="utf-8",
    )
    store = prepare(folder, tmp_path / "store")
    check_store(store)
    assert [f.name for f in store.spec.user_sparse] == ["user_id"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings", RATINGS + "3::10::5\n", r"ratings.dat: row 9: expected 4 columns .* got 3"),
        (
            "ratings",
            RATINGS + "x::10::5::900\n",
            r"ratings.dat: row 9, column 'user': expected an integer >= 1, got 'x'",
        ),
        (
            "ratings",
            RATINGS + "3::20::9::900\n",
            r"ratings.dat: row 9, column 'rating': expected a finite number from 0.5 to 5, got 9",
        ),
        (
            "ratings",
            RATINGS + "3::::5::900\n",
            r"ratings.dat: row 9, column 'item': expected an integer >= 1, got nothing",
        ),
        (
            "ratings",
            RATINGS + "3::20::5::0\n",
            r"ratings.dat: row 9, column 'time_s': expected an integer from 1 to .*, got 0",
        ),
        (
            "ratings",
            "3::99::5::9\n" + RATINGS,
            r"ratings.dat: row 1, column 'item': expected an id that is in movies.dat, got 99",
        ),
        (
            "ratings",
            RATINGS + "9::10::5::9\n",
            r"ratings.dat: row 9, column 'user': expected an id that is in users.dat, got 9",
        ),
        ("ratings", "", r"ratings.dat: expected at least one row, found none"),
        (
            "movies",
            MOVIES + "10::Again::Drama\n",
            r"movies.dat: row 5, column 'item': expected every id once, got 10 again",
        ),
        (
            "users",
            USERS + "1::F::1::10::48067\n",
            r"users.dat: row 4, column 'user': expected every id once, got 1 again",
        ),
    ],
)
def test_a_bad_row_is_refused_in_one_line(tmp_path, name, text, message):
    folder = write(tmp_path / "raw", **{name: text})
    with pytest.raises(ValueError, match=message) as caught:
        prepare(folder, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_bad_row_of_the_later_layout_is_refused_by_its_headers_name(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n10,A,Drama\n")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,11,3,900\n")
    with pytest.raises(ValueError, match=r"ratings.csv: row 2, column 'movieId': expected an id"):
        prepare(folder, tmp_path / "store")


def test_exposures_are_refused(tmp_path):
    folder = write(tmp_path / "raw")
    config = movielens.MovieLensConfig(raw_dir=str(folder), exposures=True)
    with pytest.raises(ValueError, match=r"data.exposures: expected False, got True; MovieLens"):
        config.prepare(str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.raw_dir: expected the folder of MovieLens's files"):
        movielens.MovieLensConfig().prepare(str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"expected a folder with MovieLens files, got .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path / "store")
    folder = write(tmp_path / "raw")
    (folder / "users.dat").unlink()
    with pytest.raises(ValueError, match=r"missing users.dat; they are published at https"):
        prepare(folder, tmp_path / "store")
    (folder / "ratings.dat").unlink()
    with pytest.raises(ValueError, match=r"missing ratings.csv, movies.csv; they"):
        prepare(folder, tmp_path / "store")


SMALL = {"num_users": 40, "num_items": 120, "ratings_per_user": 25}


def test_generated_rows_say_so_and_repeat_byte_for_byte(tmp_path):
    stores = []
    for name in ("one", "two"):
        config = movielens_rows.SyntheticMovieLensConfig(**SMALL)
        config.prepare(str(tmp_path / name))
        stores.append(store_lib.Store.open(tmp_path / name))
    assert stores[0].manifest["dataset"] == "MovieLens-1M (synthetic)"
    assert stores[0].data_hash == stores[1].data_hash
    counts = stores[0].manifest["counts"]
    assert (counts["users"], counts["items"]) == (40, 120)
    assert counts["test_queries"] == counts["validation_queries"] == {"all": 40}
    other = movielens_rows.SyntheticMovieLensConfig(**SMALL, generator_seed=1)
    other.prepare(str(tmp_path / "other"))
    assert store_lib.Store.open(tmp_path / "other").data_hash != stores[0].data_hash


def test_simulated_parts_follow_each_other_within_the_hour(tmp_path):
    config = movielens_rows.SyntheticMovieLensConfig(**{**SMALL, "num_users": 200})
    config.prepare(str(tmp_path / "store"))
    folder = tmp_path / "store.synthetic"
    lines = (folder / "ratings.dat").read_text().splitlines()
    rows = np.array([[int(cell) for cell in line.split("::")] for line in lines])
    user, movie, time_s = rows[:, 0], rows[:, 1], rows[:, 3]
    assert len(np.unique(user * 1000 + movie)) == len(rows)
    assert np.bincount(user)[1:].min() >= 20
    same = user[1:] == user[:-1]
    is_next = (movie[1:] == movie[:-1] + 1) & (movie[:-1] % 8 > 0)
    soon = np.diff(time_s) < 3600
    assert is_next[same & soon].mean() > 0.4 and is_next[same & ~soon].mean() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_items": 50}, "data.num_items: expected at least 100, got 50"),
        ({"ratings_per_user": 20}, "data.ratings_per_user: expected at least 21, got 20"),
        ({"ratings_per_user": 70}, "data.ratings_per_user: expected at most half of data.num_it"),
    ],
)
def test_sizes_that_cannot_be_generated_are_refused(tmp_path, changes, message):
    config = movielens_rows.SyntheticMovieLensConfig(**{**SMALL, **changes})
    with pytest.raises(ValueError, match=message):
        config.prepare(str(tmp_path / "store"))
