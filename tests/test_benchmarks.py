"""The benchmarks run and say what they should; no time is tested."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import copy, plots
from benchmarks.extremes import Line
from benchmarks.jobs import Job, jobs, p2v, program, spared
from benchmarks.rounds import Row, Times, goals
from p2v.source.device import open_disk

TIMES = Times(1.0, 2.0, 3.0, 0.5, 100.0)


def test_a_run_prints_the_table_and_leaves_figures(
    needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("qemu-img", "mkntfs", "cp", "nbdcopy")
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["copy", "--size", "64M", "--rounds", "1", "--folder", str(tmp_path), "--jobs",
                                      "raw", "--json", str(figures)])
    copy.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("raw  ") for line in lines) == 4 + 5  # -t none until durable only
    rows = json.loads(figures.read_text())["jobs"]
    assert {(row["job"], row["durable"]) for row in rows} == {("raw", False), ("raw", True)}
    assert all(row["spread"][0] <= row["ratio"] * 1.01 and row["ours"]["mib"] > 1 for row in rows)


def test_the_servers_disk_is_a_third_in_use(needs, tmp_path: Path) -> None:
    needs("mkntfs")
    from benchmarks.disks import make_server

    size = 128 << 20
    make_server(tmp_path / "disk", tmp_path / "volume", size)
    disk = open_disk(str(tmp_path / "disk"))
    free = sum(r.length for r in spared(disk))
    disk.close()
    # 2/3 is free and the page file is dropped besides; the rest is NTFS's own
    assert 0.60 * size < free < 0.74 * size
    assert (tmp_path / "disk").stat().st_blocks * 512 > size * 0.4  # what was deleted is there


def test_what_is_wanted_is_asked_of_the_fastest_peer() -> None:
    job = Job("server", p2v("raw"), {name: program("true") for name in ("qemu-img -W", "qemu-img", "cp", "nbdcopy")},
              {"qemu-img": 1.0, "nbdcopy": 1.0, "cp": 0.9})
    assert goals(job, ["nbdcopy", "qemu-img", "cp", "qemu-img -W"]) == {"nbdcopy": 1.0, "cp": 0.9}


def test_every_job_wants_something() -> None:
    for name, job in jobs().items():
        assert goals(job, list(job.peers)), name


def test_met_is_ratio_and_size() -> None:
    row = Row("a", "server", False, "b", 8.0, 8.0, (7.0, 9.0), TIMES, TIMES, 8.0, 0.9)
    assert row.met is False  # 100 MiB against 100 MiB
    assert Row("a", "server", False, "b", 8.0, 8.0, (7.0, 9.0), TIMES, TIMES, 8.0).met is True
    assert Row("a", "server", False, "b", 8.0, 8.0, (7.0, 9.0), TIMES, TIMES).met is None


def test_the_plot_is_an_svg_with_a_bar_for_each_goal() -> None:
    rows = [Row("a < b", "server", durable, "b", 0.5, 0.6, (0.4, 20.0), TIMES, TIMES, 1.0) for durable in (False, True)]
    line = Line("raw", "MiB", ((1.0, 1.0), (2.0, 2.0), (3.0, 3.1)))
    tree = ElementTree.fromstring(plots.draw(rows, [line]))
    assert len(tree.findall("{*}rect")) == 1 + 2
    assert len(tree.findall("{*}circle")) == 3
    assert line.straight > 0.99
