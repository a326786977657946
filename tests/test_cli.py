"""The front door: words in, text or JSON out, an exit code for each family of errors, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import p2v.errors
from fixtures.servers import Server
from p2v import cli
from p2v.cli import main


def run(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["inspect", "plan", "convert", "adapt", "verify", "undo"])
def test_every_command_has_help_json_and_debug(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and "--json" in out and "--debug" in out


def test_inspect_tells_the_guest_and_what_to_type_next(xp_server: Server) -> None:
    code, out, err = run("inspect", *xp_server.disks)
    assert (code, err) == (0, "")
    assert "Windows XP Service Pack 3" in out and "mraid35x" in out and "next: p2v plan" in out


def test_inspect_as_json(xp_server: Server) -> None:
    _, out, _ = run("inspect", *xp_server.disks, "--json")
    seen = json.loads(out)
    assert seen["facts"]["version"] == [5, 1] and seen["volumes"][0]["filesystem"] == "ntfs"


def test_plan_is_shown_and_kept(xp_server: Server, tmp_path: Path) -> None:
    code, out, _ = run("plan", *xp_server.disks, "-o", tmp_path / "web01")
    assert code == 0 and "intelide" in out and "change(s) planned" in out
    assert json.loads((tmp_path / "web01" / "plan.json").read_text())["target"] == "kvm"
    code, out, _ = run("plan", *xp_server.disks, "-o", tmp_path / "web01", "--json")
    assert code == 0 and json.loads(out)["format_version"] == 1


@pytest.mark.parametrize("words", [
    ("inspect", "/nowhere"), ("plan", "/nowhere", "-o", "out"), ("convert", "/nowhere"), ("verify", "/nowhere"),
    ("undo", "/nowhere"), ("adapt", "/nowhere"), ("plan", "/dev/null", "-o", "out"),
])
def test_errors_have_an_exit_code_four_answers_and_no_traceback(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code in {cls.exit_code for cls in vars(p2v.errors).values() if isinstance(cls, type) and
                    issubclass(cls, p2v.errors.P2VError)} - {1}, err
    assert out == "" and err.startswith("p2v: ") and "next:" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_an_error_as_json(tmp_path: Path) -> None:
    code, out, _ = run("inspect", tmp_path / "nothing", "--json")
    error = json.loads(out)
    assert error["exit_code"] == code and error["what"] and error["next"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    _, _, err = run("inspect", tmp_path / "nothing", "--debug")
    assert "Traceback" in err and "next:" in err


def test_an_unforeseen_error_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object, **more: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(p2v, "inspect", broken)
    code, _, err = run("inspect", "x")
    assert code == 1 and "ZeroDivisionError: seven" in err and "report" in err and "Traceback" not in err


def test_ctrl_c_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*words: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(p2v, "verify", stopped)
    code, _, err = run("verify", "x")
    assert code == p2v.errors.Cancelled.exit_code and "run the same command again" in err


def test_convert_wants_an_output_or_one_folder() -> None:
    code, _, err = run("convert", "a", "b")
    assert code == 2 and "-o" in err


def test_two_legs_for_one_word_are_refused(tmp_path: Path) -> None:
    """The last one would win in silence; --leg disk0 --leg disk2 may mean two mirrors."""
    disk = tmp_path / "disk.img"
    disk.touch()
    for words in (["--leg", "disk0", "--leg", "disk1"], ["--leg", "C=disk0", "--leg", "C:=disk1"]):
        result = CliRunner().invoke(main, ["inspect", str(disk), *words])
        assert result.exit_code == 2 and "C:=DISK" in result.output


def test_every_error_class_has_its_own_exit_code() -> None:
    classes = [cls for cls in vars(p2v.errors).values() if isinstance(cls, type)
               and issubclass(cls, p2v.errors.P2VError)]
    codes = [cls.exit_code for cls in classes]
    assert len(set(codes)) == len(codes) and cli.DONE_WITH_LOSSES not in codes


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "p2v.cli", "--version"], capture_output=True, text=True, check=True)
    assert p2v.__version__ in done.stdout


def test_a_disk_that_may_not_be_read_gets_our_answer(xp_server: Server, tmp_path: Path) -> None:
    """click would only say that the path is not readable."""
    for option in main.commands["inspect"].params:
        if option.name == "disks":
            assert option.type.readable is False


def test_one_disk_named_twice(xp_server: Server, tmp_path: Path) -> None:
    link = tmp_path / "again.img"
    link.symlink_to(xp_server.disks[0])
    for words in ((xp_server.disks[0], xp_server.disks[0]), (xp_server.disks[0], link)):
        code, _, err = run("plan", *words, "-o", tmp_path / "out")
        assert code == 15 and "named twice" in err
    assert not (tmp_path / "out").exists()


def test_a_file_where_a_runs_folder_is_wanted(xp_server: Server) -> None:
    code, _, err = run("convert", xp_server.disks[0])
    assert code == 2 and "-o" in err
    for command in ("verify", "undo"):
        code, _, err = run(command, xp_server.disks[0])
        assert code == 15 and f"{xp_server.disks[0]}.p2v" in err
    assert not Path(f"{xp_server.disks[0]}.p2v").exists()


def test_answers_of_several_lines_stay_below_their_label(tmp_path: Path) -> None:
    from p2v.errors import GuestError

    assert str(GuestError("what", "x", "one\ntwo", "next")).split("\n")[2:4] == ["  why:   one", "         two"]


def test_files_outside_an_images_folder_are_read_only_when_allowed(tmp_path, needs):
    needs("qemu-img")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "vm").mkdir()
    base, image = tmp_path / "elsewhere" / "base.raw", tmp_path / "vm" / "disk.qcow2"
    base.write_bytes(bytes(1 << 20))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image], check=True)
    for words in (["inspect", str(image)], ["image", str(image), "-o", "null"]):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 12 and "outside its folder" in refused.stderr
        assert CliRunner().invoke(main, [*words, "--allow-outside"]).exit_code == 0
    for command in ("plan", "convert"):
        words = [command, str(image), "-o", str(tmp_path / "out")]
        assert "outside its folder" in CliRunner().invoke(main, words).stderr
        allowed = CliRunner().invoke(main, [*words, "--allow-outside"]).stderr
        assert allowed and "outside its folder" not in allowed, "it is read, and holds no Windows"
