from __future__ import annotations

import os
from pathlib import Path

from ai_task_orchestra.removal import remove_tree


def test_a_tree_is_removed_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root / "a" / "b", root / "empty"):
        folder.mkdir(parents=True)
    for path in (outside / "kept", root / "file", root / "a" / "b" / "file"):
        path.write_text("x")
    (root / "a" / "link").symlink_to(outside)
    (root / "a" / "broken").symlink_to("nowhere")
    os.mkfifo(root / "a" / "pipe")
    remove_tree(root)

    assert not root.exists()
    assert (outside / "kept").exists()


def test_a_folder_that_is_a_link_itself_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "kept").touch()
    (tmp_path / "link").symlink_to("real")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "missing")

    assert (tmp_path / "real" / "kept").exists()


def test_folders_deeper_than_a_path_can_be_long_are_removed(tmp_path: Path) -> None:
    root, depth = tmp_path / "root", 3000
    root.mkdir()
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(root)
        for _ in range(depth):
            Path("folder").mkdir()
            os.chdir("folder")
        Path("file").touch()
    finally:
        os.chdir(before)
        os.close(before)
    remove_tree(root)

    assert not root.exists()


def test_folders_closed_to_their_owner_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in (root / "a" / "b" / "c", root / "d"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    for folder in (root / "a" / "b" / "c", root / "a" / "b", root / "d", root):
        folder.chmod(0)
    remove_tree(root)

    assert not root.exists()
