"""Names of files and folders."""

import os

import pytest

from rlearly.experiments.plan import folder_name
from rlearly.system.disk import short_name


@pytest.mark.parametrize("letter", ["x", "ö", "实"])
def test_names_of_any_length_are_made_into_files_and_stay_different(tmp_path, letter):
    names = [letter * length for length in (50, 90, 255, 256, 1000)]
    names += [letter * 1000 + "a", letter * 1000 + "b"]
    short = [short_name(name) for name in names]
    for name in short:
        (tmp_path / f".{name}.failure.json.partial").touch()
    assert len(set(short)) == len(names) and short[0] == names[0]
    assert len(list(tmp_path.iterdir())) == len(names)


def test_long_arm_or_env_of_a_sweep_has_a_folder_of_its_own(tmp_path):
    first, second = (folder_name(f"{'a:' * 300}{end}") for end in "12")
    assert first != second and len(os.fsencode(first)) <= 200
    (tmp_path / first).mkdir()
