"""`dsmoe bundle COMMAND`: look at a bundle, check it, compare it, write it in other forms."""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from dsmoe_jax import console

EXAMPLES = """\
examples:
  dsmoe bundle verify runs/shop/bundle
  dsmoe bundle show runs/shop/bundle
  # recall of the run's test queries, through the bundle and through a running service
  dsmoe bundle replay runs/shop/bundle runs/shop
  dsmoe bundle replay runs/shop/bundle runs/shop --url http://127.0.0.1:8000
  # what a new model would change
  dsmoe bundle diff runs/shop/bundle runs/shop-2/bundle --html diff.html
  # one file for onnxruntime; item vectors for a vector store
  dsmoe bundle onnx runs/shop/bundle --out shop.onnx --k 100
  dsmoe bundle push runs/shop/bundle --to lancedb --uri ./lance
  dsmoe bundle push runs/shop/bundle --to qdrant --uri http://localhost:6333 --replace

exit status: 0 done, 1 lists or recall differ, 2 bad input or a damaged bundle, 130 interrupted
"""
STORES = ("lancedb", "qdrant", "milvus", "parquet")


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status."""
    options = parse(argv)
    return console.exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Runs one command.

    Raises:
      ValueError: In one line, on bad input or a damaged bundle.
    """
    return int(options.call(options))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command and its flags."""
    parser = argparse.ArgumentParser(
        prog="dsmoe bundle",
        description="Looks at a serving bundle, checks it, compares it, writes it in other forms.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: Callable[[Any], int], text: str, more: str = "") -> Any:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=more
        )
        command.set_defaults(call=call)
        return command

    for name, call, text in (
        ("verify", _verify, "compare every file with its hash in the manifest"),
        ("show", _show, "tell what a bundle is: method, data, sizes, requests, recall, expiry"),
    ):
        _add_bundle(add(name, call, text))
    diff = add("diff", _diff, "tell what bundle B changes: facts, vocabulary, lists, recall")
    diff.add_argument("before", type=pathlib.Path, metavar="A", help="folder of the older bundle")
    diff.add_argument("after", type=pathlib.Path, metavar="B", help="folder of the newer bundle")
    diff.add_argument("--html", type=pathlib.Path, metavar="FILE", help="write a page, too")
    replay = add(
        "replay",
        _replay,
        "ask a run's test queries of its bundle and compare recall with results.json",
        "Ends with 1 where recall is not equal to the last digit, or with --lose below what may "
        "be lost.",
    )
    _add_bundle(replay)
    replay.add_argument("workdir", type=pathlib.Path, metavar="WORKDIR", help="folder of the run")
    replay.add_argument(
        "--url",
        default="",
        help="ask this service, e.g. http://127.0.0.1:8000; its token: DSMOE_TOKEN",
    )
    replay.add_argument(
        "--lose",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="what an approximate index may lose of recall, e.g. 0.01 (default 0: equal)",
    )
    push = add(
        "push",
        _push,
        "write item vectors and features to a vector store and compare its lists",
        "A vector per scenario, or one where items do not see it; inner product. Keys of hosted "
        "stores: LANCEDB_API_KEY, QDRANT_API_KEY, MILVUS_TOKEN. Ends with 1 where lists differ.",
    )
    _add_bundle(push)
    push.add_argument("--to", required=True, choices=STORES, help="the kind of store")
    push.add_argument("--uri", required=True, help="its folder, file or address")
    push.add_argument("--name", default="items", help="table or collection (default items)")
    push.add_argument("--replace", action="store_true", help="replace what has this name")
    _add_k(push, "length of the lists that are compared")
    graph = add(
        "onnx",
        _onnx,
        "write one ONNX file: raw values and a scenario in, item ids out",
        "For methods whose towers fold into arrays. Ends with 1 where onnxruntime's lists differ.",
    )
    _add_bundle(graph)
    graph.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE", help="the file")
    _add_k(graph, "length of a list")
    return parser.parse_args(argv)


def _add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE", help="folder of the bundle")


def _add_k(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--k", type=int, default=100, help=f"{text} (default 100)")


# Heavy imports happen when a command needs them: `--help` and a misspelt flag answer at once.
def _verify(options: Any) -> int:
    from dsmoe_jax.serving import tools

    print(tools.verify(options.bundle))
    return 0


def _show(options: Any) -> int:
    from dsmoe_jax.serving import tools

    print("\n".join(tools.show(options.bundle)))
    return 0


def _push(options: Any) -> int:
    from dsmoe_jax.serving import tools

    lines, are_equal = tools.push_items(
        options.bundle,
        options.to,
        options.uri,
        options.name,
        k=options.k,
        replace=options.replace,
    )
    return _tell(lines, are_equal, f"{options.to}: expected the exact lists, got others")


def _onnx(options: Any) -> int:
    from dsmoe_jax.serving import tools

    lines, are_equal = tools.write_onnx(options.bundle, options.out, options.k)
    return _tell(lines, are_equal, "onnxruntime: expected the exact lists, got others")


def _tell(lines: list[str], are_equal: bool, otherwise: str) -> int:
    print("\n".join(lines))
    if not are_equal:
        print(f"error: {otherwise}", file=sys.stderr)
    return 0 if are_equal else 1


def _replay(options: Any) -> int:
    from dsmoe_jax.run import replay

    if not 0 <= options.lose < 1:
        raise ValueError(f"--lose: expected a share in [0, 1), got {options.lose}")
    found = replay.replay(options.bundle, options.workdir, options.url)
    print("\n".join(found.lines()))
    is_kept = not found.loses(options.lose) if options.lose else found.is_equal
    return 0 if is_kept else 1


def _diff(options: Any) -> int:
    from dsmoe_jax import runlog
    from dsmoe_jax.run import bundle_diff, diff_page
    from dsmoe_jax.serving import retriever

    before, after = (retriever.Retriever.load(path) for path in (options.before, options.after))
    tables = bundle_diff.compare(before, after)
    names = (str(options.before), str(options.after))
    print(diff_page.to_text(tables, names), end="")
    if options.html:
        runlog.replace_text(options.html, diff_page.to_html(tables, names))
        print(f"\nwrote {options.html}")
    return 0
