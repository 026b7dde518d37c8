import os
import pickle
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_pictures import class_folders
from torch.utils.data import Dataset

from patchform.data.dataset import open_evaluation
from patchform.data.listing import Item, Listing, Objects
from patchform.data.loader import (
    TrainingBatches,
    aspects,
    balance,
    derive,
    evaluation_loader,
    input_sizes,
    order,
    training_loader,
)
from patchform.data.pictures import LabelledPictures
from patchform.data.transforms import evaluation_transform, training_transform
from patchform.distributed import Rank
from patchform.errors import DataError, ResourceError, UsageError
from patchform.records import Label, Preprocessing, Sample
from patchform.settings import AugmentationSettings, DataSettings

TINY = Preprocessing(size=(16, 16), crop_share=1.0)


def test_orders_are_permutations_of_their_own():
    first = order(1000, seed=0, epoch=0)
    assert first.sort().values.equal(torch.arange(1000))
    assert first.equal(order(1000, seed=0, epoch=0))
    others = [order(1000, seed=0, epoch=1), order(1000, seed=1, epoch=0), torch.arange(1000)]
    assert all((first == other).float().mean() < 0.02 for other in others)


def test_derived_seeds_are_stable():
    assert derive(0, "order", 0) == derive(0, "order", 0) < 2**63
    assert len({derive(*parts) for parts in [(1, 23), (12, 3), (123,), ("1", "2", 3), (3, 2, 1)]}) == 5


def test_balanced_draws_take_classes_equally_often(tmp_path):
    class_folders(tmp_path, {"a": 90, "b": 9, "c": 1}, size=(1, 1))
    listing = open_evaluation(tmp_path, DataSettings(), ("a", "b", "none", "c"))
    drawn = torch.cat([order(100, seed=0, epoch=epoch, weights=balance(listing)) for epoch in range(60)])
    classes = torch.tensor([item.classes[0] for item in listing.items])[drawn]
    shares = classes.bincount(minlength=4) / len(classes)
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]), atol=0.025, rtol=0)
    never = order(50, seed=0, epoch=0, weights=torch.tensor([0.0, 1.0, 0.0]).repeat(17)[:50])
    assert (never % 3 == 1).all()


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 4), (7, 3), (16, 4), (17, 16), (23, 32)])
def test_each_id_comes_once_an_epoch_and_short_batches_stay(count, size):
    steps = -(-count // size)
    batches = list(TrainingBatches(count, size, 0, 0, 3 * steps))
    assert len(batches) == 3 * steps
    for epoch in range(3):
        keys = [key for batch in batches[epoch * steps : (epoch + 1) * steps] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(count))
    assert {len(batch) for batch in batches} <= {size, count % size}


def test_any_step_can_be_the_first():
    whole = list(TrainingBatches(23, 4, 5, 0, 20))
    for start in range(21):
        rest = TrainingBatches(23, 4, 5, start, 20)
        assert list(rest) == whole[start:]
        assert len(rest) == 20 - start
    assert list(TrainingBatches(23, 4, 6, 0, 20)) != whole


@pytest.mark.parametrize(("count", "size", "number"), [(23, 4, 2), (9, 4, 4), (64, 7, 3)])
def test_processes_share_each_batch(count, size, number):
    steps = 2 * -(-count // size)
    alone = list(TrainingBatches(count, size, 5, 0, steps))
    orders = [TrainingBatches(count, size, 5, 0, steps, share=Rank(rank, number)) for rank in range(number)]
    borrowed = 0
    for step, parts in enumerate(zip(*orders, strict=True)):
        assert orders[0].size(step) == len(alone[step])
        own = [part for part, order in zip(parts, orders, strict=True) if not order.borrowed(step)]
        assert sorted(key for part in own for key in part) == sorted(alone[step])
        assert max(map(len, own)) - min(map(len, own)) <= 1
        for part, mine in zip(parts, orders, strict=True):
            if mine.borrowed(step):
                borrowed += 1
                assert part == alone[step][:1]
    assert borrowed == 2 * max(0, number - count % size)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 3), (16, 4), (40, 4), (101, 8), (23, 32)])
def test_batches_of_pictures_that_lie_alike(count, size):
    groups = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.3
    steps = -(-count // size)
    whole = list(TrainingBatches(count, size, 5, 0, 3 * steps, groups=groups))
    assert len(whole) == 3 * steps
    for epoch in range(3):
        batches = whole[epoch * steps : (epoch + 1) * steps]
        assert sorted(index for batch in batches for _, index in batch) == list(range(count))
        assert {len(batch) for batch in batches[:-1]} <= {size}
        mixed = [len({bool(groups[index]) for _, index in batch}) > 1 for batch in batches]
        assert sum(mixed) <= 1
        assert not any(mixed[:-2])  # only what is left of both at the end
    for start in range(3 * steps + 1):
        assert list(TrainingBatches(count, size, 5, start, 3 * steps, groups=groups)) == whole[start:]
    if count > 32:
        assert list(TrainingBatches(count, size, 6, 0, 3 * steps, groups=groups)) != whole
        assert whole[:steps] != [[(0, index) for _, index in batch] for batch in whole[steps : 2 * steps]]
        plain = list(TrainingBatches(count, size, 5, 0, steps))  # control
        assert sum(len({bool(groups[index]) for _, index in batch}) > 1 for batch in plain) > steps / 3


def test_groups_come_mixed_and_go_with_balanced_draws():
    groups = torch.arange(64) < 32
    kinds = [bool(groups[batch[0][1]]) for batch in TrainingBatches(64, 4, 0, 0, 16, groups=groups)]
    assert sum(kinds) == 8
    assert sum(first != second for first, second in pairwise(kinds)) > 3  # not one group after the other
    weights = torch.ones(64, dtype=torch.float64)
    drawn = [index for batch in TrainingBatches(64, 4, 0, 0, 16, weights, groups) for _, index in batch]
    assert sorted(drawn) == order(64, seed=0, epoch=0, weights=weights).sort().values.tolist()


def listed(*sizes):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    items = [Item(Path(f"{index}.png"), (), objects=Objects(*nothing, size)) for index, size in enumerate(sizes)]
    return Listing(classes=("a",), items=tuple(items), root=Path())


def test_aspects_are_known_from_the_listing():
    assert aspects(listed((4, 3), (3, 4), (3, 3))).tolist() == [True, False, False]
    assert aspects(listed((3, 4), (3, 9))) is None
    assert aspects(listed((4, 3))) is None
    assert aspects(Listing(classes=("a",), items=(Item(Path("a.png"), (0,)),), root=Path())) is None


@pytest.fixture
def listing(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 5}, size=(16, 20))
    return open_evaluation(tmp_path, DataSettings(), ("a", "b"))


def digest(batch):
    return batch.images, [target.classes.tolist() for target in batch.targets], batch.names, batch.sizes


def equal(first, second):
    return first.images.equal(second.images) and digest(first)[1:] == digest(second)[1:]


def test_workers_give_the_same_bits_and_resume_anywhere(listing):
    settings = AugmentationSettings(policy="rand_augment", erasing=0.5)
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def run(start, workers):
        pictures = LabelledPictures(listing, training_transform(TINY, settings), TINY, seed=9)
        return list(training_loader(pictures, TrainingBatches(11, 4, 9, start, 9), workers))

    whole = run(0, 0)
    assert len(whole) == 9
    for start, workers in ((0, 1), (0, 2), (4, 0), (4, 2), (5, 1)):
        again = run(start, workers)
        assert all(map(equal, again, whole[start:]))
        assert len(again) == 9 - start
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_everything_once_in_order(listing, workers):
    pictures = LabelledPictures(listing, evaluation_transform(TINY), TINY)
    loader = evaluation_loader(pictures, 4, workers)
    assert len(loader) == 3
    state = torch.get_rng_state()
    for _ in range(2):  # workers persist
        assert [name for batch in loader for name in batch.names] == [listing.name(index) for index in range(11)]
    assert torch.get_rng_state().equal(state)


class Numbered(Dataset):
    """Samples that are their own number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        return Sample(torch.zeros(3, 2, 2), Label(torch.tensor([key[1]])), str(key[1]), (2, 2))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_evaluation_of_several_sizes_sees_each_by_itself(batch_size):
    sizes = [(4, 6), (6, 4), (4, 6), (9, 9), (4, 6), (6, 4)]
    batches = [[int(name) for name in batch.names] for batch in evaluation_loader(Numbered(6), batch_size, sizes=sizes)]
    assert [index for batch in batches for index in batch] == [
        3,
        0,
        2,
        4,
        1,
        5,
    ]  # the largest first, else as they came, for any size of batches
    assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)
    assert all(len(batch) <= batch_size for batch in batches)
    plain = [batch.names for batch in evaluation_loader(Numbered(6), batch_size)]
    assert [int(name) for names in plain for name in names] == list(range(6))  # control


def test_sizes_at_which_a_model_sees_pictures_are_known_from_the_listing():
    pictures = listed((100, 50), (50, 100), (20, 10))
    assert input_sizes(pictures, Preprocessing(size=(40, 40), resize="squash")) == [(40, 40)] * 3
    assert input_sizes(pictures, Preprocessing(size=(40, 40), resize="fit")) == [(40, 20), (20, 40), (40, 20)]
    assert input_sizes(pictures, Preprocessing(size=(40, 40), resize="native")) == [(100, 50), (50, 100), (20, 10)]
    assert input_sizes(pictures, Preprocessing(size=(40, 40), resize="crop")) is None
    unknown = replace(pictures, items=(*pictures.items, Item(Path("a.png"), ())))
    assert input_sizes(unknown, Preprocessing(size=(40, 40), resize="fit")) is None


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, key):
        if key[1] == 2:
            self.error()
        return Sample(torch.zeros(3, 2, 2), Label(torch.tensor([0])), "", (2, 2))


def no_data():
    raise DataError("cut short", where="a.jpg", remedy="mend it")


def bug():
    raise RuntimeError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_bugs_stay_bugs(workers):
    with pytest.raises(RuntimeError, match="a bug"):
        list(evaluation_loader(Failing(bug), 4, workers))


def kill_worker():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_faults_arrive_as_they_were_raised(workers):
    loaded = iter(evaluation_loader(Failing(no_data), 1, workers))
    next(loaded)
    next(loaded)
    with pytest.raises(DataError) as caught:
        next(loaded)
    assert (caught.value.what, caught.value.where, caught.value.remedy) == ("cut short", "a.jpg", "mend it")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's own, at its clean-up
def test_a_killed_worker_is_a_matter_of_resources():
    with pytest.raises(ResourceError, match="workers"):
        list(evaluation_loader(Failing(kill_worker), 1, 1))


@pytest.mark.parametrize("kind", [DataError, UsageError, ResourceError])
def test_errors_survive_the_way_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what", where="there", remedy="do")))
    assert type(error) is kind
    assert (error.what, error.where, error.remedy, str(error)) == ("what", "there", "do", "what in there; do")
