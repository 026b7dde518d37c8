"""Answers along a video, told from the grey of its frames: frame n has the grey n."""

import json

import pytest
import torch
from PIL import Image
from reference import randomise

from patchform.data.encoded import RATE
from patchform.data.videos import open_video
from patchform.errors import DataError, FolderError, UsageError
from patchform.inference import MultiView
from patchform.model import build_model, save
from patchform.prediction import Predictor, load, write
from patchform.records import Label, Preprocessing
from patchform.timeline import Along, moments

COUNT, FRAMES = 60, 4
NAMES = ("down", "left", "up")


def preprocessing(**others):
    return Preprocessing(size=(32, 32), resize="squash", frames=FRAMES, **others)


def a_model(**others):
    torch.manual_seed(0)
    usual = {"backbone": "vivit/nano", "head": "linear", "classes": NAMES}
    model = build_model("video_classification", **usual, preprocessing=preprocessing(**others)).eval()
    randomise(model)
    return model


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films") / "film"
    folder.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (40, 36), (number,) * 3).save(folder / f"{number}.png")
    return folder


def says_what_it_sees(model, batch):
    return [Label(clip[:, 0, 0, 0].long()) for clip in batch.images]


def seen(film, along, **others):
    return list(moments(a_model(**others), film, along, infer=says_what_it_sees))


def test_moments_lie_one_after_the_other_and_look_at_their_own_frames(film):
    found = seen(film, Along(every=8 / RATE, span=8 / RATE))
    assert (found[0].start, found[-1].end) == (0, pytest.approx(COUNT / RATE))
    assert [one.end for one in found[:-1]] == [one.start for one in found[1:]]
    assert len(found) == COUNT // 8
    for number, one in enumerate(found):  # the middles of 4 equal parts of 8 frames
        assert one.target.classes.tolist() == [8 * number + 1 + 2 * part for part in range(FRAMES)]
        assert one.start == pytest.approx(8 * number / RATE)


def test_clips_may_overlap_or_leave_gaps(film):
    close = seen(film, Along(every=2 / RATE, span=8 / RATE))
    assert [one.target.classes[0].item() for one in close] == list(range(1, COUNT - 7 + 1, 2))
    assert [one.start for one in close[1:4]] == pytest.approx([(5 + 2 * n) / RATE for n in range(3)])
    apart = seen(film, Along(every=20 / RATE, span=4 / RATE))
    assert [one.target.classes.tolist() for one in apart] == [[start + n for n in range(4)] for start in (0, 20, 40)]


def test_clips_closer_than_frames_do_not_fall_behind(film):
    found = seen(film, Along(every=0.25 / RATE, span=4 / RATE))
    assert 4 * (COUNT - 4) + 1 <= len(found) <= 4 * (COUNT + 0.5 - 4) + 1  # an end counts from half a frame before on
    for one in found[1:-1]:
        middle = (one.start + one.end) / 2 * RATE
        assert abs(sum(one.target.classes.tolist()) / FRAMES + 0.5 - middle) <= 1
    assert found[-1].target.classes.tolist() == [COUNT - 4, COUNT - 3, COUNT - 2, COUNT - 1]


def test_dense_sampling_knows_its_span_and_uniform_does_not(film):
    found = seen(film, Along(every=1.0), sampling="dense", frame_step=3)
    assert found[0].target.classes.tolist() == [0, 3, 6, 9]
    with pytest.raises(UsageError, match="how many seconds"):
        seen(film, Along(every=1.0))


def test_a_video_shorter_than_a_clip_gets_one_answer(film):
    (one,) = seen(film, Along(every=1.0, span=100.0))
    assert (one.start, one.end) == (0, pytest.approx(COUNT / RATE))
    assert one.target.classes.tolist() == [7, 22, 37, 52]


@pytest.mark.parametrize("wrong", [{"every": 0.0}, {"every": 1.0, "span": -1.0}, {"every": float("nan")}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UsageError, match="above 0"):
        Along(**wrong)


def test_predictions_of_videos_are_those_of_their_frames(film, tmp_path):
    predictor = Predictor(a_model(), device="cpu")
    (from_disk,) = predictor.predict(film, keep_images=True)
    pixels = open_video(film).frames(range(COUNT))
    (from_memory,) = predictor.predict([pixels])
    torch.testing.assert_close(from_disk.target.scores, from_memory.target.scores)
    assert from_disk.image[:, 0, 0, 0].tolist() == [7, 22, 37, 52]
    assert predictor.draw(from_disk).width >= 4 * 40
    (bad,) = predictor.predict([pixels[0]])
    assert "no video" in bad.error
    with pytest.raises(DataError, match="no video"):
        list(predictor.predict(tmp_path))


def test_several_views_of_a_video_are_averaged(film):
    model = a_model()
    (one,) = Predictor(model, device="cpu", infer=MultiView(clips=3, crops=1)).predict(film, keep_images=True)
    assert len(one.image) == 3 * FRAMES
    alone = Predictor(model, device="cpu").predict(
        [one.image[part * FRAMES : (part + 1) * FRAMES] for part in range(3)]
    )
    torch.testing.assert_close(one.target.scores, torch.stack([each.target.scores for each in alone]).mean(0))
    with pytest.raises(UsageError, match="crops"):
        Predictor(model, device="cpu", infer=MultiView(clips=1, crops=3))


def test_lines_and_videos_are_written(film, tmp_path):
    pytest.importorskip("av")
    save(a_model(), tmp_path / "run")
    predictor, out = load(tmp_path / "run", device="cpu"), tmp_path / "out"
    along = Along(every=8 / RATE, span=8 / RATE)
    assert write(predictor, film, out=out, along=along) == (1, 0)
    (line,) = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    assert line["label"] in NAMES
    assert len(line["moments"]) == COUNT // 8
    assert {"start", "end", "label", "score"} <= set(line["moments"][0])
    video = open_video(out / "film.mp4")
    assert len(video) == COUNT
    assert (out / "film.png").is_file()
    with pytest.raises(FolderError, match="exists"):
        write(predictor, film, out=out, along=along)
    assert write(predictor, film, out=out, along=along, overwrite=True) == (1, 0)


def test_a_model_of_pictures_says_nothing_along_a_video(film):
    usual = {"backbone": "vit/nano", "head": "linear", "classes": NAMES}
    predictor = Predictor(build_model("classification", **usual), device="cpu")
    with pytest.raises(UsageError, match="model of pictures"):
        predictor.along(film, Along(every=1.0))
    with pytest.raises(UsageError, match="model of pictures"):
        write(predictor, film, along=Along(every=1.0))


def test_nothing_is_written_where_the_span_is_not_known(film, tmp_path):
    with pytest.raises(UsageError, match="how many seconds"):
        write(Predictor(a_model(), device="cpu"), film, out=tmp_path / "out", along=Along(every=1.0))
    assert not (tmp_path / "out").exists()
