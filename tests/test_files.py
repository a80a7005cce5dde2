"""Files are written whole, and never in the place of what is no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from robustbench_ln.errors import ResourceError
from robustbench_ln.files import write_bytes


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.json"
    for content in (b"first", b"second"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("exists", [False, True])
def test_a_symbolic_link_stays_one_and_its_target_is_written(exists: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "target.json", tmp_path / "link.json"
    if exists:
        write_bytes(target, b"old")
    link.symlink_to("there/target.json")
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link.json"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    pipe, folder, loop, link = (tmp_path / name for name in ("pipe", "folder", "loop", "link"))
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to("loop")
    link.symlink_to("pipe")
    for path, found in ((pipe, "a pipe"), (link, "a pipe"), (folder, "a directory"), (loop, "a symbolic link")):
        with pytest.raises(ResourceError, match=f"cannot write .*{path.name}\nfound: {found}") as caught:
            write_bytes(path, b"new")
        assert "another path" in caught.value.hint
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == sorted((pipe, folder, loop, link))
