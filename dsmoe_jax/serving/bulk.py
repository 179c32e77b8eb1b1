"""Bulk recommendation: lists for a file of users, in bounded memory.

Owns files of lists that a killed command continues. A block's lists are one file beside the output
until all are there; what is there is not made again. Users are read by `user_files.py`.
"""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import requests, user_files
from dsmoe_jax.serving import retriever as retriever_lib

# Users read, and lists held, at once.
_BLOCK_USERS = 8192


class Part(NamedTuple):
    """Which share of the users: block b belongs to part b modulo `total`.

    Attributes:
      number: From 0.
      total: Parts in all.
    """

    number: int
    total: int


WHOLE = Part(0, 1)
# How a line calls what is left out.
SAID = {
    None: "nothing left out",
    lists_lib.SEEN: "what they clicked left out",
    lists_lib.SHOWN: "all that they were shown left out",
}


def recommend_file(
    found: retriever_lib.Retriever,
    users: pathlib.Path,
    out: pathlib.Path,
    *,
    scenario: str | list[str] = retriever_lib.ALL,
    k: int = 100,
    exclude: lists_lib.Exclude = lists_lib.USUAL,
    with_user: bool = False,
    part: Part = WHOLE,
    block_users: int = _BLOCK_USERS,
) -> int:
    """Writes the lists of all users of a file; a second call continues what was begun.

    Args:
      found: Who recommends.
      users: A file as `user_files.UserFile` reads it.
      out: The Parquet file of the lists, in the order of the users.
      scenario: As for `Retriever.recommend`.
      k: Items of a list.
      exclude: What lists leave out, as for `Retriever.recommend`.
      with_user: Whether to tell what each list rests on, likewise.
      part: The share of the users that is done here; its number goes into the file's name.
      block_users: Users at once at most, which bounds memory.

    Returns:
      The number of lists' rows.

    Raises:
      ValueError: On another kind of file, an unknown column or a bad value.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out: expected a file ending in .parquet, got {out}")
    file = user_files.UserFile(users, found)
    options = {"scenario": scenario, "k": k, "exclude": exclude, "with_user": with_user}
    # Nothing is begun that the last row would refuse.
    none = found.recommend(pl.DataFrame(schema={requests.USER: file.user_type}), **options)
    out = name_part(out, part)
    # Else a short file would be one block, and all but one part empty.
    block_users = max(1, min(block_users, -(-file.count // part.total)))
    blocks = range(part.number, -(-file.count // block_users), part.total)
    asked = {
        "bundle": found.bundle.digest,
        "users": [str(users.resolve()), users.stat().st_size, users.stat().st_mtime_ns],
        "lists": [options, str(file.user_type), block_users, list(part)],
    }
    folder = _open_folder(out, asked)
    with runlog.bar(total=len(blocks), desc="recommend", unit="block") as bar:
        for block, frame in file.read(blocks, block_users):
            path = folder / f"{block:08d}.parquet"
            if not path.is_file():
                lists = _recommend(found, frame, block * block_users, options)
                partial = path.with_suffix(".partial")
                lists.write_parquet(partial)
                os.replace(partial, path)
            bar.update()
    return _join(folder, out, [folder / f"{block:08d}.parquet" for block in blocks], none)


def name_part(out: pathlib.Path, part: Part) -> pathlib.Path:
    """The file of a part, `out` itself where there is but one."""
    if part.total == 1:
        return out
    return out.with_name(f"{out.stem}-{part.number:05d}-of-{part.total:05d}{out.suffix}")


def describe_lists(
    found: retriever_lib.Retriever,
    users: list[str],
    scenario: str | list[str],
    k: int,
    exclude: lists_lib.Exclude,
) -> list[str]:
    """The lists of some users as lines: who, what is known of them, and items in each scenario."""
    if exclude == lists_lib.USUAL:
        exclude = found.usual_exclude
    columns = {requests.USER: users}
    answers = found.retrieve(columns, scenario, found.want(k, exclude=exclude))
    per_user = len(answers) // len(users)
    lines = []
    for n, user in enumerate(users):
        own = answers[n * per_user : (n + 1) * per_user]
        lines.append(f"user {user} ({own[0].user}), {SAID[exclude]}")
        for answer in own:
            items = "  ".join(map(str, answer.item_ids))
            lines.append(f"  {answer.scenario}: {items}")
    return lines


def _recommend(
    found: retriever_lib.Retriever, frame: pl.DataFrame, first: int, options: dict[str, Any]
) -> pl.DataFrame:
    try:
        lists: pl.DataFrame = found.recommend(frame, **options)
    except ValueError as error:
        last = first + len(frame)
        raise ValueError(f"rows {first + 1:,} to {last:,} of the users: {error}") from None
    return lists


def _open_folder(out: pathlib.Path, asked: dict[str, Any]) -> pathlib.Path:
    """The folder of finished blocks; what was made of other users or by another bundle goes."""
    text = json.dumps(asked, sort_keys=True)
    folder = out.with_name(f"{out.name}.blocks")
    record = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not record.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(text)
    return folder


def _join(
    folder: pathlib.Path, out: pathlib.Path, paths: list[pathlib.Path], none: pl.DataFrame
) -> int:
    """One file of all blocks, `none` where there are none; their folder goes."""
    partial = out.with_name(f"{out.name}.partial")
    if paths:
        pl.scan_parquet(paths).sink_parquet(partial)
    else:
        none.write_parquet(partial)
    os.replace(partial, out)
    shutil.rmtree(folder)
    return int(pl.scan_parquet(out).select(pl.len()).collect().item())
