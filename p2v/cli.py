"""argv → one public call → text and an exit code. Nothing else lives here.

Only click is imported at the start: `p2v --help` must answer at once.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2v.errors import Cancelled, P2VError, PlanError, Severity

if TYPE_CHECKING:
    from p2v.conversion import Result
    from p2v.model import Plan

PATH = click.Path(readable=False)  # p2v's own answer to what cannot be read says more than click's
Command = TypeVar("Command", bound=Callable[..., Any])
DONE_WITH_LOSSES = 20  # finished, but ranges of a source were unreadable
BROKEN_PIPE = 141  # as if SIGPIPE had ended it, which Python ignores
EVERY = 0.5  # seconds between two lines of progress for other programs


def reported(command: Command) -> Command:
    """Errors of p2v as text (or JSON) and their exit code; no traceback unless --debug."""

    @functools.wraps(command)
    def run(**words: Any) -> None:
        debug, as_json = words.pop("debug"), words["as_json"]
        try:
            command(**words)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has gone: nothing is wrong, and nobody is left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except (KeyboardInterrupt, Cancelled) as error:
            _fail(error if isinstance(error, Cancelled) else Cancelled(
                "stopped", why="you asked for it; sources are untouched, and nothing half-done bears an image's name",
                next="run the same command again to go on"), as_json, debug)
        except P2VError as error:
            _fail(error, as_json, debug)
        except click.ClickException:
            raise
        except Exception as error:  # the last door: the user sees no traceback, and learns what to send
            _fail(_unforeseen(error), as_json, debug)

    return run  # type: ignore[return-value]  # same call signature for click, which reads the options


def _unforeseen(error: Exception) -> P2VError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return P2VError(
        f"p2v did not foresee this: {type(error).__name__}: {error}",
        f"{place.name}, {place.filename.rsplit('/', 1)[-1]} line {place.lineno}",
        "this is a bug in p2v; the source is untouched",
        "run it again with --debug, and report what it prints together with plan.json",
    )


def _fail(error: P2VError, as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if as_json:
        where = error.where
        print(json.dumps({"error": type(error).__name__, "what": error.what, "where": str(where),
                          "why": error.why, "next": error.next, "exit_code": error.exit_code}))
    print(f"p2v: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def common(command: Command) -> Command:
    """--json and --debug, on every command."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
    return click.option("--debug", is_flag=True, help="Show tracebacks.")(command)


def planned(command: Command) -> Command:
    """The options of every command that makes a plan."""
    for option in reversed((
        click.option("--target", default="kvm", show_default=True,
                     help="Where the guest will run: kvm, proxmox, vmware, hyperv, virtualbox or xen."),
        click.option("--drivers", multiple=True, type=PATH, metavar="PATH",
                     help="Driver files that the guest lacks: a folder, ISO, cabinet or diskette image; repeatable."),
        click.option("--source-format", metavar="NAME", help="Format of the disks (else by name: raw, *.vmdk …)."),
    )):
        command = option(command)
    return command


def _legs(_context: Any, _option: Any, given: tuple[str, ...]) -> dict[str, str]:
    """DISK for all mirrors ("" is their name), or MIRROR=DISK for one; a letter may lack its colon."""
    chosen: dict[str, str] = {}
    for text in given:
        mirror, separator, disk = text.partition("=")
        if not separator or os.path.exists(text):
            mirror, disk = "", text
        key = f"{mirror}:" if len(mirror) == 1 else mirror
        if chosen.setdefault(key, disk) != disk:
            raise click.BadParameter(f"{chosen[key]} and {disk} for {key or 'all mirrors'}; name each mirror: C:=DISK")
    return chosen


def outsiders(command: Command) -> Command:
    """--allow-outside, on every command that opens images."""
    return click.option("--allow-outside", "outside", is_flag=True,
                        help="Images may name files (backing files, extents) outside their own folder.")(command)


def legged(command: Command) -> Command:
    """--leg, on every command that reads mirrors."""
    return click.option("--leg", "legs", multiple=True, metavar="[MIRROR=]DISK", callback=_legs,
                        help="Take a mirror's leg on this disk (a path, or disk0 …); of one mirror: C:=DISK, "
                             "NAME=DISK. May be given several times.")(command)


def collapsed(default: str) -> Callable[[Command], Command]:
    """The options of every command that makes plain disks of mirrors and sets. default: its --layout."""
    def options(command: Command) -> Command:
        command = click.option(
            "--compare", is_flag=True,
            help="Compare mirrors' legs first; where they are in step, each helps the other out.")(command)
        return click.option(
            "--layout", default=default, show_default=True, metavar="NAME",
            help="collapse: plain disks out of mirrors and dynamic disks; keep: each disk as it is.")(legged(command))

    return options


class Bar:
    """The library's progress: a tqdm bar a stage on a terminal, a line a stage elsewhere; quiet: JSON lines."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._stage, self._told = "", 0.0
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """progress(stage, done, total), as the library calls it."""
        if self._quiet:
            self._line(stage, done, total)
            return
        if stage != self._stage:
            self.close()
            self._stage = stage
            if not sys.stderr.isatty():
                print(f"p2v: {stage} …", file=sys.stderr, flush=True)
                return
            self._bar = _new_bar(stage, total)
        if self._bar is not None:
            counts = getattr(done, "counts", {})  # of model.Done, while a disk is copied
            said = ((counts.get("free", 0), "skipped"), (counts.get("zero", 0) + counts.get("found_zero", 0), "zero"),
                    (counts.get("bad", 0), "bad"))
            self._bar.set_postfix_str(", ".join(f"{size >> 20 or size}{'M' if size >> 20 else ''} {word}"
                                                for size, word in said if size), refresh=False)
            self._bar.update(done - self._bar.n)

    def _line(self, stage: str, done: int, total: int) -> None:
        """A JSON object a line on stderr: at each stage's beginning and end, and twice a second between."""
        now = time.monotonic()
        if stage != self._stage or done == total or now - self._told >= EVERY:
            self._stage, self._told = stage, now
            line = {"stage": stage, "done": int(done), "total": total, **getattr(done, "counts", {})}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar of the current stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _new_bar(stage: str, total: int) -> Any:
    from tqdm import tqdm

    if stage.startswith(("copy", "verify", "compare")) or "rescue" in stage:  # bytes: rate and time left say something
        return tqdm(total=total, desc=stage, file=sys.stderr, unit="B", unit_scale=True, unit_divisor=1024)
    return tqdm(total=total, desc=stage, file=sys.stderr, bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}]")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2v-engine")
def main() -> None:
    """Turn the disks of a legacy Windows server into a VM that boots.

    The disks are only ever read. `plan` shows what would change and why; `convert` edits the guest on a
    thin overlay, proves the edits, and only then copies once.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order, as Ctrl-C does


@main.command()
@click.argument("disks", nargs=-1, required=True, type=PATH)
@click.option("--source-format", metavar="NAME", help="Format of the disks (else by name: raw, *.vmdk …).")
@click.option("--compare", is_flag=True, help="Read all legs of mirrors, and tell where and in what they differ.")
@legged
@outsiders
@common
@reported
def inspect(disks: tuple[str, ...], source_format: str | None, as_json: bool, **words: Any) -> None:
    """Tell what is on DISKS: volumes, mirrors and their legs, the guest, what is worth knowing."""
    import p2v
    from p2v.planfile import plain
    from p2v.rendering import render_inspection

    bar = Bar(as_json)
    try:
        seen = p2v.inspect(disks, format=source_format, progress=bar, **words)
    finally:
        bar.close()
    print(json.dumps(plain(seen), indent=2) if as_json else render_inspection(seen))


@main.command()
@click.argument("disks", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The folder that will hold the VM.")
@click.option("--format", metavar="NAME", help="Format of the images (else the target's best for the guest).")
@click.option("--all", "copy_all", is_flag=True, help="Copy free space and page files, too.")
@click.option("--force", is_flag=True, help="Take the output folder although it holds another plan's images.")
@click.option("--svg", type=PATH, metavar="FILE", help="Draw how the VM's disks are put together into FILE.")
@collapsed("collapse")
@planned
@outsiders
@common
@reported
def plan(disks: tuple[str, ...], output: str, force: bool, svg: str | None, as_json: bool, **words: Any) -> None:
    """Show what converting DISKS would change and why, and save it as OUTPUT/plan.json."""
    import p2v
    from p2v.folder import claim
    from p2v.planfile import to_json
    from p2v.planning import errors_of
    from p2v.rundir import RunDir

    made = p2v.plan(disks, output=output, **words)
    run = RunDir.of_output(output)
    with run.locked():
        claim(made, run, force=force)
    if svg is not None:
        from p2v.drawing import svg as draw
        from p2v.rundir import save_bytes

        save_bytes(Path(svg), draw(made).encode())
    print(json.dumps(to_json(made), indent=2) if as_json else p2v.render(made))
    if errors_of(made):
        sys.exit(PlanError.exit_code)  # shown and kept, but it cannot be run


@main.command()
@click.argument("disks", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, help="The folder that will hold the VM.")
@click.option("--format", metavar="NAME", help="Format of the images (else the target's best for the guest).")
@click.option("--all", "copy_all", is_flag=True, help="Copy free space and page files, too.")
@click.option("--force", is_flag=True, help="Replace what the output folder holds.")
@click.option("--single-leg", "single", is_flag=True, help="Of a mirror, read the chosen leg alone.")
@click.option("--trust-equal", is_flag=True, help="A mirror's legs are equal: read both at once, each a part.")
@click.option("--rescue-from-stale", "from_stale", is_flag=True,
              help="Fill what the chosen leg cannot give even from a leg that holds older data.")
@collapsed("collapse")
@planned
@outsiders
@common
@reported
def convert(disks: tuple[str, ...], output: str | None, force: bool, single: bool, trust_equal: bool,
            from_stale: bool, as_json: bool, **words: Any) -> None:
    """Convert DISKS into OUTPUT, or go on with the run in the folder DISKS that `p2v plan` has made."""
    import p2v
    from p2v.folder import load_plan

    if output is None:
        if len(disks) != 1 or os.path.isfile(disks[0]):
            raise click.UsageError("name the output folder with -o, or one folder that p2v plan has made")
        made = load_plan(disks[0])
    else:
        made = p2v.plan(disks, output=output, **words)
        if not as_json:
            print(p2v.render(made), "\n")
    bar = Bar(as_json)
    try:
        legs = p2v.LegOptions(single, trust_equal, from_stale)
        result = p2v.convert(made, progress=bar, force=force, legs=legs)
    finally:
        bar.close()
    _tell(result, "converted", as_json)


class Amount(click.ParamType):  # type: ignore[type-arg]  # generic in click's stubs only
    """Bytes, with K, M or G for powers of 1024."""

    name = "BYTES"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        """The number."""
        text = str(value).strip().upper()
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        try:
            number = int(text[:-1] if factor > 1 else text) * factor
        except ValueError:
            number = 0
        if number <= 0:
            self.fail(f"{value!r} is no amount: say 500000, 800K, 20M or 1G", param, context)
        return number


@main.command()
@click.argument("sources", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, type=click.Path(allow_dash=True),
              help="The image; a folder for several disks; a device (--force); - for a pipe; null to measure.")
@click.option("--format", metavar="NAME", help="Format of the image (else by its name, else raw).")
@click.option("--source-format", metavar="NAME", help="Format of the sources (else by name).")
@click.option("--all", "everything", is_flag=True, help="Copy what a filesystem calls free, too.")
@click.option("--resume", is_flag=True, help="Go on with a copy that was cut short.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--since", type=PATH, metavar="MANIFEST",
              help="Write into OUTPUT only what has changed since this manifest (OUTPUT.p2v/manifest.json).")
@click.option("--retries", default=0, type=click.IntRange(0), help="Tries more for each unreadable sector.")
@click.option("--rate", type=Amount(), default=None, help="Read no more than so many bytes a second (20M).")
@click.option("--run", "run_folder", type=PATH, help="Where to keep progress (else OUTPUT.p2v).")
@collapsed("keep")
@outsiders
@common
@reported
def image(sources: tuple[str, ...], output: str, as_json: bool, everything: bool, retries: int, rate: int | None,
          **words: Any) -> None:
    """Copy SOURCES into images as they are: nothing is edited, free space is left out.

    A disk with bad places is rescued as GNU ddrescue does it; the map is kept beside the image. --resume goes on
    with what was cut short, and with --retries tries the bad places of a finished rescue again.
    """
    import p2v

    bar = Bar(as_json)
    try:
        result = p2v.image(sources, output, options=p2v.ImageOptions(everything, rate or 0, retries), progress=bar,
                           **words)
    finally:
        bar.close()
    _tell(result, "copied", as_json, file=sys.stderr if output == "-" else None)


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--run", "run_folder", type=PATH, help="Where to keep the run (else FIRST_IMAGE.p2v).")
@planned
@common
@reported
def adapt(images: tuple[str, ...], run_folder: str | None, as_json: bool, **words: Any) -> None:
    """Make the same changes in IMAGES that exist already, in place, with an undo."""
    import p2v

    bar = Bar(as_json)

    def show(made: Plan) -> None:
        if not as_json and (made.changes or any(one.severity is not Severity.INFO for one in made.findings)):
            bar.close()
            print(p2v.render(made), "\n", flush=True)

    try:
        _, result = p2v.adapt(images, run_folder=run_folder, progress=bar, on_plan=show, **words)
    finally:
        bar.close()
    _tell(result, "adapted", as_json)


@main.command()
@click.argument("folder", type=PATH)
@click.option("--source", is_flag=True, help="Read the sources again, and compare them too.")
@common
@reported
def verify(folder: str, source: bool, as_json: bool) -> None:
    """Check the images of FOLDER: are the changes there, and is the content what was copied."""
    import p2v

    bar = Bar(as_json)
    try:
        result = p2v.verify(folder, source=source, progress=bar)
    finally:
        bar.close()
    _tell(result, "verified", as_json)


@main.command()
@click.argument("folder", type=PATH)
@common
@reported
def undo(folder: str, as_json: bool) -> None:
    """Take the changes back in the images of FOLDER (or of IMAGE.p2v): files byte for byte."""
    import p2v

    bar = Bar(as_json)
    try:
        result = p2v.undo(folder, progress=bar)
    finally:
        bar.close()
    _tell(result, "undone", as_json)


def _tell(result: Result, verb: str, as_json: bool, file: Any = None) -> None:
    from p2v.rendering import render_result, result_json

    print(json.dumps(result_json(result, verb), indent=2) if as_json else render_result(result, verb), file=file)
    if any(report.bad for report in result.reports.values()):
        sys.exit(DONE_WITH_LOSSES)


if __name__ == "__main__":
    main()
