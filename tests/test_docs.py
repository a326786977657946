"""What the documents say is what the code has: commands, formats, targets, exit codes, packages."""

from __future__ import annotations

import re
from pathlib import Path

import p2v.errors
from p2v.cli import BROKEN_PIPE, DONE_WITH_LOSSES, main
from p2v.formats import FORMATS, STREAMS
from p2v.source.images import INPUTS
from p2v.target import TARGETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
