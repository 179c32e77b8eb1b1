"""`dsmoe recommend`: lists for a file of users or for one, see `bulk.py`."""

import argparse
import pathlib
import re


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags.

    Raises:
      ValueError: On a part that is none, or flags that do not go together.
    """
    parser = argparse.ArgumentParser(
        prog="dsmoe recommend",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes the best items of every user of a file, in one scenario or all, as\n"
        "Parquet: user_id, scenario, item_id, score, rank. Killed, the same command goes on.",
        epilog="The file has a column user_id, and may have a user's features, history (a list of\n"
        "item ids, oldest first) and shown; what it has not, the bundle knows of known users.\n"
        "In CSV history and shown are ids joined by blanks: 1868 6921 2962.\n\n"
        "examples:\n"
        "  dsmoe recommend runs/kuairand-sample/bundle --user 2017 --k 5\n"
        "  dsmoe recommend runs/kuairand-sample/bundle --users users.csv --out lists.parquet\n"
        "  dsmoe recommend BUNDLE --users u.parquet --scenario K1 --k 20 --exclude shown \\\n"
        "      --out k1.parquet\n"
        "  # the second of four shares, e.g. on another machine\n"
        "  dsmoe recommend BUNDLE --users u.parquet --part 2/4 --out lists.parquet",
    )
    parser.add_argument("bundle", help="folder of a bundle")
    parser.add_argument("--user", action="append", help="print the lists of this user; repeatable")
    parser.add_argument("--users", help="Parquet or CSV file")
    parser.add_argument("--out", help="Parquet file of the lists")
    parser.add_argument("--scenario", default="all", help="name, names joined by commas, or all")
    parser.add_argument("--k", type=int, default=100, help="items of a list (100)")
    parser.add_argument(
        "--exclude",
        choices=("usual", "seen", "shown", "none"),
        default="usual",
        help="what is left out: usual as in the model's evaluation, seen what the user clicked, "
        "shown all that the user was shown (usual)",
    )
    parser.add_argument(
        "--with_user",
        action="store_true",
        help="two more columns: user (known, from_history or cold) and unknown_events",
    )
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n shares of the users")
    options = parser.parse_args(arguments)
    matched = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if not matched or not 1 <= int(matched[1]) <= int(matched[2]):
        raise ValueError(f"--part: expected i/n with i from 1 to n, got {options.part!r}")
    options.part = int(matched[1]) - 1, int(matched[2])
    if bool(options.user) == bool(options.users) or bool(options.users) != bool(options.out):
        raise ValueError("recommend: expected either --user, or --users and --out")
    return options


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      ValueError: On a damaged bundle, or a file or value that cannot be used.
    """
    from dsmoe_jax import runlog
    from dsmoe_jax.serving import bulk, retriever

    found = retriever.Retriever.load(options.bundle)
    names = options.scenario.split(",")
    scenario = names if len(names) > 1 else names[0]
    exclude = None if options.exclude == "none" else options.exclude
    if options.user:
        for line in bulk.describe_lists(found, options.user, scenario, options.k, exclude):
            runlog.say(line)
        return
    out, part = pathlib.Path(options.out).expanduser(), bulk.Part(*options.part)
    rows = bulk.recommend_file(
        found,
        pathlib.Path(options.users).expanduser(),
        out,
        scenario=scenario,
        k=options.k,
        exclude=exclude,
        with_user=options.with_user,
        part=part,
    )
    runlog.say(f"{bulk.name_part(out, part)}: {rows:,} rows")
