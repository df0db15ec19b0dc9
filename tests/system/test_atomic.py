"""Files are replaced as a whole, by any number of processes at once."""

import os
import subprocess
import sys
import time

import imageio.v3 as imageio
import numpy as np
import pytest

from rlearly.experiments.report.page import _links
from rlearly.system import atomic
from rlearly.system.atomic import replacing, write
from rlearly.training.video import Video


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    file = tmp_path / "video.mp4"
    with replacing(file) as slow:
        slow.write_text("slow", encoding="utf-8")
        with replacing(file) as quick:
            quick.write_text("quick", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "quick"
    assert file.read_text(encoding="utf-8") == "slow"
    assert list(tmp_path.iterdir()) == [file]


WRITER = """
import sys, pathlib
from rlearly.system.atomic import write
for _ in range(300):
    write(pathlib.Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


def test_reader_sees_whole_files_while_two_processes_write(tmp_path):
    file = tmp_path / "record.json"
    write(file, "a" * 50_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, file, letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(file.read_text(encoding="utf-8"))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 50_000, "b" * 50_000}
    assert list(tmp_path.iterdir()) == [file]


def test_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ne", encoding="utf-8")
        raise KeyboardInterrupt
    assert file.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [file]


def test_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "report.csv"
    link.symlink_to(tmp_path / "elsewhere" / "report.csv")
    write(link, "first")
    write(link, "second")
    assert (
        link.is_symlink()
        and (tmp_path / "elsewhere" / "report.csv").read_text(encoding="utf-8") == "second"
    )


@pytest.mark.parametrize("links", [True, False])
def test_file_that_appears_meanwhile_is_kept_on_request(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "teacher.h5"
    with replacing(file, overwrite=False) as partial:
        partial.write_text("first", encoding="utf-8")
    assert file.read_text(encoding="utf-8") == "first"
    with pytest.raises(FileExistsError), replacing(file, overwrite=False) as partial:
        partial.write_text("second", encoding="utf-8")
    assert file.read_text(encoding="utf-8") == "first" and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_deleted_a_day_later(tmp_path):
    old, running, foreign = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / ".mine.partial"
    with replacing(old) as abandoned, replacing(running) as busy:
        for path in (abandoned, busy, foreign):
            path.write_text("part", encoding="utf-8")
        for path in (abandoned, foreign):
            os.utime(path, (0, time.time() - atomic.ABANDONED_SECONDS - 60))
        write(tmp_path / "c.json", "{}")
        assert not abandoned.exists() and busy.exists() and foreign.exists()
        abandoned.touch()


def test_videos_of_one_name_made_at_once_are_both_playable(tmp_path):
    file = tmp_path / "videos" / "evaluate.mp4"
    with Video(file) as first, Video(file) as second:
        for shade in range(5):
            first.add(np.full((32, 32, 3), 40 * shade, np.uint8))
            second.add(np.full((64, 64, 3), 40 * shade, np.uint8))
        assert [text for text, _ in _links(tmp_path, tmp_path)] == ["directory"]
    assert imageio.imread(file, plugin="pyav").shape == (5, 32, 32, 3)
    assert list(file.parent.iterdir()) == [file]


def test_video_that_cannot_be_begun_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), Video(tmp_path / "a.mp4", frames_per_second="many"):
        pass
    assert not list(tmp_path.iterdir())
