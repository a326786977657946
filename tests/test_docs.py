"""What the documents say is what the code has: commands, formats, targets, exit codes, packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

import p2v.errors
from p2v.cli import BROKEN_PIPE, DONE_WITH_LOSSES, main
from p2v.formats import FORMATS, STREAMS
from p2v.source.images import INPUTS
from p2v.target import TARGETS
from p2v.volume import DISSOLVED, READERS
from p2v.volume.fakeraid import FORMATS as FAKERAID

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_format_and_target_is_in_the_readme() -> None:
    for name in (*FORMATS, *TARGETS):
        assert f"`{name}`" in README, f"{name} is missing in README"


def test_every_input_and_every_stream_is_in_the_readme() -> None:
    table = README.split("| image that is read ")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z0-9]+)`", table)) == set(INPUTS)
    pipes = next(line for line in README.splitlines() if line.startswith("| `-` |"))
    assert set(re.findall(r"(?:--format |`)([a-z][a-z-]*)`", pipes)) == set(STREAMS)


def test_every_command_is_in_the_readme() -> None:
    for command in main.commands:
        assert f"p2v {command}" in README


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_option_is_in_the_readme_and_has_a_help(command: str) -> None:
    for option in main.commands[command].params:
        if isinstance(option, click.Option):
            assert option.help, f"p2v {command} {option.opts[0]} has no help"
            spellings = "|".join(map(re.escape, option.opts))
            assert re.search(rf"(?<![\w-])({spellings})(?![\w-])", README), f"p2v {command}: {option.opts} is missing"


def test_every_option_in_the_readme_is_one_of_ours() -> None:
    ours = {word for command in main.commands.values() for option in command.params for word in option.opts}
    said = {word for line in README.splitlines() for span in re.findall(r"`([^`]+)`", line)
            if span.startswith(("p2v ", "--")) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert said <= {*ours, "--help"}


def test_a_command_in_the_readme_takes_the_options_that_stand_beside_it() -> None:
    spans = [*re.findall(r"`([^`]+)`", README), *re.findall(r"^    \$ (.+)", README, re.MULTILINE)]
    for command, words in re.findall(r"^p2v (\w+)(.*)", "\n".join(spans), re.MULTILINE):
        takes = {word for option in main.commands[command].params for word in option.opts}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)) <= {*takes, "--help"}, f"p2v {command}{words}"


def test_every_volume_reader_is_in_the_readmes_table() -> None:
    table = README.split("| | layouts | in the VM |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z]+)`", re.sub(r"shown by `inspect`", "", table))) == {r.NAME for r in READERS}
    plain = {name for line in table.splitlines() if line.endswith("| plain |") for name in re.findall(r"`(\w+)`", line)}
    managers = {"ft": "ftdisk", "imsm": "firmware", "ddf": "firmware"}  # volumes are named by manager
    assert plain == {managers.get(name, name) for name in DISSOLVED}


def test_the_makers_that_are_only_recognised_are_in_the_readme() -> None:
    section = README.split("## Mirrors and dynamic disks")[1].split("\n## ")[0].lower()
    for form in FAKERAID:
        assert form.maker.split()[0].lower() in section, f"{form.maker} is missing in README"


def test_every_module_is_in_the_contributors_guide() -> None:
    for path in (ROOT / "p2v").glob("*.py"):
        named = f"`{path.name}`" in GUIDE or f"`p2v/{path.name}`" in GUIDE
        assert named or path.name == "__init__.py", f"{path.name} is missing in CONTRIBUTING.md"
    for path in re.findall(r"`([a-z]+\.py)`", GUIDE.split("## Where things are")[1].split("\n## ")[0]):
        assert (ROOT / "p2v" / path).is_file(), f"CONTRIBUTING.md names {path}, which is not there"


def test_the_exit_codes_are_the_codes_of_the_errors() -> None:
    said = {int(code) for code in re.findall(r"^\| (\d{1,3}) \|", README, re.MULTILINE)}
    classes = [cls for cls in vars(p2v.errors).values() if isinstance(cls, type)
               and issubclass(cls, p2v.errors.P2VError)]
    assert said == {0, 2, DONE_WITH_LOSSES, BROKEN_PIPE} | {cls.exit_code for cls in classes}


def test_the_readmes_apt_line_is_the_run_part_of_the_package_list() -> None:
    listed, section = set(), ""
    for line in (ROOT / "packages.txt").read_text().splitlines():
        section = line.split("]")[0].strip("# [") if line.startswith("# [") else section
        if not line.startswith("#") and line.split("#")[0].strip() and section == "run":
            listed.add(line.split("#")[0].strip())
    line = re.search(r"apt-get install --no-install-recommends (.*?)\n    pipx", README, re.DOTALL)
    assert line and set(line.group(1).replace("\\", " ").split()) - {"pipx"} == listed


def test_no_word_of_the_machine_it_was_made_on() -> None:
    words = re.compile(r"/(?:wo" r"rk|ro" r"ot)/|farm" r"-|\.lib" r"rary")
    for path in ROOT.rglob("*"):
        if path.suffix in {".py", ".md", ".toml", ".txt"} and ".venv" not in path.parts and path.is_file():
            assert not words.search(path.read_text()), f"{path.relative_to(ROOT)} names the machine"


def test_the_packages_section_headers_are_read() -> None:
    text = (ROOT / "packages.txt").read_text()
    assert "# [run]" in text and "# [test]" in text


def test_what_is_debians_binding_is_not_asked_of_pip() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bindings = set(re.findall(r"^python3-(?:lib)?(\w+)", (ROOT / "packages.txt").read_text(), re.MULTILINE)) - {"venv"}
    assert bindings >= {"guestfs", "nbd", "hivex", "parted"}
    assert not [name for name in asked if any(binding in name for binding in bindings)]
