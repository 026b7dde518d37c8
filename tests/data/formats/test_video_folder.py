import shutil

import moving
import pytest
from bad_pictures import class_folders, tree_state

from patchform.data.dataset import open_data, open_evaluation, serves
from patchform.data.formats.video_folder import VideoFolder
from patchform.doctor import task_of
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

video_folder = VideoFolder()

TASK = "video_classification"
PLAIN = DataSettings()


def names(listing):
    return [(listing.name(index), item.classes) for index, item in enumerate(listing.items)]


def touch(root, *files):
    """Files of no content: a listing opens none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def test_videos_and_folders_of_frames_are_items(tmp_path):
    touch(tmp_path, "wave/b.MP4", "wave/deep/er/a.mkv", "wave/a.gif", "clap/10/1.jpg", "clap/10/2.jpg", "clap/9/x.png")
    touch(tmp_path, "clap/deep/er/1.jpg", "clap/gifs/1.gif", "clap/gifs/2.gif")
    before = tree_state(tmp_path)
    listing = video_folder.open(tmp_path, PLAIN, None)
    assert listing.videos
    assert listing.classes == ("clap", "wave")
    assert names(listing) == [
        ("clap/10", (0,)),
        ("clap/9", (0,)),
        ("clap/deep/er", (0,)),
        ("clap/gifs/1.gif", (0,)),
        ("clap/gifs/2.gif", (0,)),
        ("wave/a.gif", (1,)),
        ("wave/b.MP4", (1,)),
        ("wave/deep/er/a.mkv", (1,)),
    ]
    assert listing.notes == ()
    assert tree_state(tmp_path) == before


def test_what_is_ignored_is_said(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/cover.jpg", "a/1.txt", "a/more/2.mp4", "a/more/2.jpg", "README", ".git/x", "b/1.webm")
    listing = video_folder.open(tmp_path, PLAIN, None)
    assert [name for name, _ in names(listing)] == ["a/1.mp4", "a/more/2.mp4", "b/1.webm"]
    assert listing.notes == (
        'ignored folders: ".git"',
        'ignored 1 files beside the class folders: "README"',
        "ignored files that are no videos: {'.jpg': 2, '.txt': 1}",
    )


def test_classes_without_a_video_stop(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/1.jpg")
    with pytest.raises(DataError, match='no video of class "b"'):
        video_folder.open(tmp_path, PLAIN, None)
    assert video_folder.open(tmp_path, DataSettings(allow_empty_class=True), None).counts() == (1, 0)
    assert video_folder.open(tmp_path, PLAIN, ("b", "a")).items[0].classes == (1,)
    with pytest.raises(DataError, match="unknown class"):
        video_folder.open(tmp_path, PLAIN, ("b", "c"))
    (tmp_path / "a" / "1.mp4").unlink()
    with pytest.raises(DataError, match=r"no video.*\.mp4"):
        video_folder.open(tmp_path, DataSettings(allow_empty_class=True), None)


def test_pictures_are_not_taken_for_videos(tmp_path):
    flat = class_folders(tmp_path / "flat", {"a": 2, "b": 2})
    deep = touch(tmp_path / "deep", "a/one/1.jpg", "b/one/1.jpg")  # may be either: a person must say
    gifs = touch(tmp_path / "gifs", "a/1.gif", "b/1.gif")
    films = touch(tmp_path / "films", "train/a/1.mp4", "train/b/1.avi", "val/a/1.mp4")
    assert [task_of(place) for place in (flat, deep, gifs)] == ["classification"] * 3
    assert task_of(films) == TASK
    assert len(open_evaluation(deep, PLAIN, ("a", "b"), TASK)) == len(open_evaluation(gifs, PLAIN, ("a", "b"), TASK))
    with pytest.raises(DataError, match="no video of class"):
        open_data(DataSettings(path=str(flat)), seed=0, preprocessing=Preprocessing(frames=2), task=TASK)
    with pytest.raises(DataError, match="no picture of class"):
        open_data(DataSettings(path=str(films)), seed=0, preprocessing=Preprocessing())
    assert serves(deep, TASK)
    assert not serves(deep, TASK, sure=True)


def test_one_folder_is_split_and_parts_are_found(tmp_path):
    touch(tmp_path, *(f"{name}/{number}.mp4" for name in "ab" for number in range(5)))
    splits = open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(frames=2), task=TASK)
    assert splits.train.counts() == (4, 4)
    assert splits.train.videos
    assert splits.validation.videos
    assert any("2 of 10 videos are held out" in note for note in splits.notes)


def test_lists_of_videos(tmp_path):
    touch(tmp_path, "v/1.mp4", "v/2.mp4", "v/3/1.jpg", "p/1.jpg", "g/1.gif")

    def listed(text):
        (tmp_path / "list.csv").write_text(text)
        return tmp_path / "list.csv"

    films = listed("path,label\nv/1.mp4,x\nv/2.mp4,y\nv/3,y\n")
    assert task_of(films) == TASK
    listing = open_evaluation(films, PLAIN, ("x", "y"), TASK)
    assert listing.videos
    assert names(listing) == [("v/1.mp4", (0,)), ("v/2.mp4", (1,)), ("v/3", (1,))]
    assert open_evaluation(listed("video,x,y\nv/3,1,0\n"), PLAIN, ("x", "y"), TASK).videos
    assert task_of(listed("file,video,cat\np/1.jpg,1,0\n")) == "classification"  # a class may be called so
    gifs = listed("path,label\ng/1.gif,x\n")
    assert task_of(gifs) == "classification"
    assert not open_evaluation(gifs, PLAIN, ("x",)).videos
    assert open_evaluation(gifs, PLAIN, ("x",), TASK).videos
    assert task_of(listed("nonsense\n")) == "classification"


def test_a_diagnosis_finds_all_faults(tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("patchform.tasks.video_classification")
    from patchform.doctor import diagnose

    moving.class_folders(tmp_path / "train", {"a": 3, "b": 3})
    moving.class_folders(tmp_path / "val", {"a": 2, "b": 1}, count=12)
    found = diagnose(DataSettings(path=str(tmp_path)))
    assert (found.task, found.fatal, found.hints) == (TASK, 0, 0)
    (tmp_path / "train" / "a" / "bad.mp4").write_bytes(b"<html>")
    shutil.copyfile(tmp_path / "train" / "a" / "000.mp4", tmp_path / "val" / "b" / "twin.mp4")
    found = diagnose(DataSettings(path=str(tmp_path)))
    assert [(kind, number) for kind, number, _ in found.by_kind()] == [("video-bad", 1), ("picture-shared", 1)]
