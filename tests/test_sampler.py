"""Splits and the sampler."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixmatch.data.dataset import DataSettings
from mixmatch.data.sampler import Sampler, balanced_stream, shuffled_stream, step_seed
from mixmatch.data.split import allocate_labels, hold_out_test, read_split
from mixmatch.errors import UserError
from tests.factories import data_of_labels, make_toy_trainer, split_of, toy_data

CLASSES = ["a", "b", "c"]
LABELS = np.array([0, 1, 2] * 40 + [-1] * 30)


TOY = data_of_labels(LABELS, CLASSES)


def split(seed=1, num_labeled=30, num_validation=15, labeled_as_unlabeled=True, data=TOY):
    return split_of(data, seed, num_labeled, num_validation, labeled_as_unlabeled)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_split_is_balanced_and_disjoint(seed, labeled, validation, labeled_as_unlabeled):
    result = split(seed, 3 * labeled, 3 * validation, labeled_as_unlabeled)
    assert np.bincount(LABELS[result.labeled]).tolist() == [labeled] * 3
    assert np.bincount(LABELS[result.validation], minlength=3).tolist() == [validation] * 3
    assert not set(result.validation) & (set(result.labeled) | set(result.unlabeled))
    everything = set(result.labeled) | set(result.unlabeled) | set(result.validation)
    assert everything == set(range(len(LABELS)))
    assert (set(result.labeled) <= set(result.unlabeled)) is labeled_as_unlabeled


def test_split_is_the_same_for_good():
    # Literal figures: a change of library or machine that moved them would make published splits unrepeatable.
    assert split(seed=1, num_labeled=9, num_validation=0).labeled == [21, 26, 43, 48, 55, 78, 103, 107, 119]
    assert shuffled_stream(7, 5, 16, 3, 1).tolist() == [3, 4, 6, 2, 4, 3, 0, 5, 1, 3, 4]
    assert balanced_stream(np.array([0, 0, 0, 1, 2]), 4, 12, 3).tolist() == [2, 3, 4, 3, 0, 0, 4, 3]
    assert step_seed(1, 1000) == 17902160265332861389


def test_fewer_labels_are_among_more_and_validation_stays():
    small, large = split(num_labeled=9), split(num_labeled=60)
    assert set(small.labeled) < set(large.labeled)
    assert small.validation == large.validation
    assert split(seed=2).labeled != split(seed=1).labeled


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.integers(0, 400))
def test_labels_dealt_by_share_follow_the_shares(counts, count):
    dealt, shares = allocate_labels(np.array(counts), count), np.array(counts) / sum(counts)
    assert dealt.sum() == count
    if count >= len(counts):
        assert dealt.min() >= 1
    assert (
        (allocate_labels(np.array(counts), count + 1) - dealt).sum()
        == (allocate_labels(np.array(counts), count + 1) != dealt).sum()
        == 1
    )
    largest = int(np.argmax(counts))
    # No class is more than a label ahead of the largest one's pace; none lags by more than what it takes to catch up.
    # Where a pace is whole, such as 39.0, it is level with the largest one, and either may be next.
    pace = dealt[largest] * shares / shares[largest]
    assert (dealt <= np.floor(pace * (1 + 1e-9)) + 1).all() and (dealt >= np.floor(pace * (1 - 1e-9)) - 1).all()


def test_labels_dealt_by_share_as_the_authors_do():
    # SVHN's training images of each digit; figures that the loop in the authors' scripts/create_split.py gives.
    svhn = np.array([4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659])
    assert allocate_labels(svhn, 250).tolist() == [17, 47, 36, 29, 25, 24, 20, 19, 17, 16]
    assert allocate_labels(np.ones(3), 7).tolist() == [3, 2, 2]


@given(st.integers(0, 1000), st.integers(4, 60), st.integers(0, 20))
def test_a_split_by_share_is_disjoint_and_nested(seed, labeled, validation):
    labels = np.repeat([0, 1, 2, -1], [90, 40, 30, 9])
    data = data_of_labels(labels, CLASSES, by_share=True)
    result = split(seed, labeled, validation, data=data)
    assert np.bincount(labels[result.labeled]).tolist() == allocate_labels(np.array([90, 40, 30]), labeled).tolist()
    assert (
        np.bincount(labels[result.validation], minlength=3).tolist()
        == allocate_labels(np.array([90, 40, 30]), validation).tolist()
    )
    assert not set(result.validation) & (set(result.labeled) | set(result.unlabeled))
    more = split(seed, labeled + 10, validation, data=data)
    assert set(result.labeled) < set(more.labeled) and result.validation == more.validation


def test_a_split_by_share_that_cannot_be_had():
    data = data_of_labels(np.repeat([0, 1, 2], [20, 10, 3]), CLASSES, by_share=True)
    with pytest.raises(UserError, match="at least one for each of the 3 classes, got 2"):
        split(num_labeled=2, data=data)
    for settings in ({"num_labeled": 10**12}, {"num_labeled": 5, "num_validation": 10**12}):
        with pytest.raises(UserError, match="toy has 33 images of known class, got 1000000000000"):
            split(**{"num_validation": 0, **settings}, data=data)
    with pytest.raises(UserError, match="class 'a' has 20 images, 1 of them for validation, but needs 20 for training"):
        split(num_labeled=33, num_validation=3, data=data)


def test_the_labeled_images_of_a_seed_are_those_of_the_authors():
    labels = np.random.default_rng(0).choice(3, 200, p=[0.5, 0.3, 0.2])
    for seed, count, by_share in ((1, 60, False), (3, 9, False), (5, 40, True)):
        # The lines of their scripts/create_split.py, which need no seed of their own: numpy's global state.
        members = [np.flatnonzero(labels == number) for number in range(3)]
        np.random.seed(seed)
        for number in range(3):
            np.random.shuffle(members[number])
        allocated = allocate_labels(np.bincount(labels), count) if by_share else [count // 3] * 3
        expected = np.concatenate([part[:number] for part, number in zip(members, allocated, strict=True)])
        data = data_of_labels(labels, CLASSES, by_share=by_share, authors_split=True)
        for num_validation in (0, 30):
            assert split(seed, count, num_validation, False, data).labeled == sorted(expected.tolist())
    # Literal figures, from these lines by numpy 2.
    data = data_of_labels(np.repeat(np.arange(3), 5000), CLASSES, authors_split=True)
    assert split(1, 3, 0, False, data).labeled == [2764, 5473, 11633]


def test_a_class_without_labels():
    with pytest.raises(UserError, match="class 'b' has no labeled image; label some, or remove the class"):
        split(num_labeled="all", num_validation=0, data=data_of_labels(np.array([0, 0, 2, -1]), CLASSES))


def test_folds_are_the_labeled_images_of_their_seeds():
    folds = [[0, 1, 2, 3, 4, 5], [9, 10, 11, 12, 13, 14]]
    data = data_of_labels(LABELS, CLASSES, folds=folds)
    for seed in (1, 2, 3):
        result = split(seed, 6, 30, False, data)
        assert result.labeled == folds[seed % 2]
        assert not set(result.labeled) & set(result.validation) and len(result.validation) == 30
        assert set(result.unlabeled) == set(range(150)) - set(result.labeled) - set(result.validation)
    assert split(1, 9, 0, False, data) == split(1, 9, 0, False, TOY)  # of other sizes, none


def test_all_labels_of_unequal_classes():
    labels = np.array([0] * 10 + [1] * 4 + [2] * 2 + [-1] * 5)
    result = split(num_labeled="all", num_validation=3, data=data_of_labels(labels, CLASSES))
    assert np.bincount(labels[result.labeled]).tolist() == [9, 3, 1]
    assert set(np.flatnonzero(labels < 0)) <= set(result.unlabeled)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"num_labeled": 31},
            "must be divisible by the 3 classes of toy, got 31; the nearest are 30 and 33",
        ),
        ({"num_labeled": 2}, "got 2; the nearest is 3"),
        ({"num_labeled": 121}, "got 121; the nearest is 120"),
        ({"num_validation": 1}, "data.num_validation: must be divisible"),
        ({"num_labeled": 120}, "class 'a' has 40 images, 5 of them for validation, but needs 40 for training"),
        ({"num_validation": 120}, "class 'a' has 40 images, 40 of them for validation, but needs 10 for training"),
    ],
)
def test_counts_that_cannot_be_had(arguments, message):
    with pytest.raises(UserError, match=message):
        split(**arguments)


def test_split_file_comes_back(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(split().to_json())
    assert read_split(path, TOY) == split()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fingerprint": "g"}, "other images"),
        ({"labeled": []}, "there must be labeled ones"),
        ({"labeled": [0, 0]}, "unique"),
        ({"labeled": [150]}, "from 0 to 149"),
        ({"labeled": [-1]}, "from 0 to 149"),
        ({"labeled": [149]}, "known class"),
        ({"labeled": ["x"]}, "not a split file"),
        ({"labeled": [0], "validation": [0], "unlabeled": []}, "are labeled or unlabeled too"),
    ],
)
def test_split_file_that_does_not_fit(tmp_path, change, message):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(json.loads(split().to_json()) | change))
    with pytest.raises(UserError, match=message):
        read_split(path, TOY)


def test_split_file_missing_or_no_json(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_split(tmp_path / "none.json", TOY)
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(UserError, match="not a split file"):
        read_split(tmp_path / "text.json", TOY)


@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_stream_is_the_same_however_it_is_cut(count, start, first, second):
    whole = shuffled_stream(count, start, start + first + second, 7, 0)
    parts = [
        shuffled_stream(count, start, start + first, 7, 0),
        shuffled_stream(count, start + first, start + first + second, 7, 0),
    ]
    assert whole.tolist() == np.concatenate(parts).tolist()


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 200), st.integers(0, 100), st.integers(0, 100)
)
def test_balanced_batches_have_each_class_and_each_image_of_a_class_equally_often(labels, start, first, second):
    labels = np.array(labels)
    whole = balanced_stream(labels, 0, start + first + second, 7)
    parts = [
        balanced_stream(labels, start, start + first, 7),
        balanced_stream(labels, start + first, start + first + second, 7),
    ]
    assert whole[start:].tolist() == np.concatenate(parts).tolist()
    present = sorted({*labels.tolist()})
    for begin in range(0, len(whole) - len(present) + 1, len(present)):
        assert sorted(labels[whole[begin : begin + len(present)]]) == present
    for label in present:
        counts = np.bincount(whole[labels[whole] == label], minlength=len(labels))[labels == label]
        assert counts.max() - counts.min() <= 1


def test_balanced_batches_follow_new_pseudo_labels_and_are_shared_by_processes():
    trainer = make_toy_trainer(train={"balanced_sampling": True, "batch_size": 6})
    dataset = trainer.dataset
    dataset.set_pseudo_labels(torch.tensor([10, 13, 16, 19, 22]), torch.ones(5, dtype=torch.int64))
    for step in (0, 1, 300):
        x_labels = trainer.sampler.batch(dataset, step, 6, 6).x_labels
        assert x_labels.bincount().tolist() == [2, 2, 2]
    unbalanced = Sampler(1).batch(dataset, 5, 6, 6)
    balanced = Sampler(1, balanced=True).batch(dataset, 5, 6, 6)
    assert torch.equal(balanced.u_index, unbalanced.u_index) and not torch.equal(balanced.x_index, unbalanced.x_index)
    halves = [Sampler(1, rank, 2, balanced=True).batch(dataset, 5, 6, 6).x_index for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), balanced.x_index)
    sampler = Sampler(1, balanced=True)
    sampler.batch(dataset, 5, 6, 6)
    dataset.set_pseudo_labels(torch.tensor([10, 13, 16, 19, 22]), torch.zeros(5, dtype=torch.int64))
    renewed, fresh = (each.batch(dataset, 5, 6, 6) for each in (sampler, Sampler(1, balanced=True)))
    assert torch.equal(renewed.x_index, fresh.x_index) and renewed.x_labels.bincount().tolist() == [2, 2, 2]


def test_every_image_is_drawn_equally_often_without_dropping_any():
    # 250 images in batches of 64: no batch is short, and each pass holds every image once.
    drawn = shuffled_stream(250, 0, 64 * 1000, 1, 0)
    counts = np.bincount(drawn, minlength=250)
    assert counts.sum() == 64000 and counts.min() == counts.max() == 256
    for start in range(0, 2500, 250):
        assert sorted(drawn[start : start + 250]) == list(range(250))
    assert drawn[:250].tolist() != drawn[250:500].tolist()


def test_seeds_and_steps_differ():
    assert len({step_seed(seed, step) for seed in range(10) for step in range(1000)}) == 10000


def with_test(num_test, labels=LABELS, **more):
    """A data set whose images hold their own index, after ``hold_out_test``."""
    data = data_of_labels(labels, CLASSES, **more)
    data.images[:] = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return hold_out_test(data, DataSettings(num_test=num_test))


@given(st.lists(st.integers(2, 40), min_size=3, max_size=3), st.floats(0.01, 0.6), st.integers(0, 9))
def test_a_share_of_each_class_becomes_the_test_set(sizes, share, unlabeled):
    labels = np.repeat([0, 1, 2, -1], [*sizes, unlabeled])
    data = with_test(share, labels, files=[f"{i}.png" for i in range(len(labels))])
    test, kept = data.test_images.flatten().tolist(), data.images.flatten().tolist()
    assert sorted(test + kept) == list(range(len(labels)))
    assert labels[test].tolist() == data.test_labels.tolist() and labels[kept].tolist() == data.labels.tolist()
    assert data.test_files == [f"{i}.png" for i in test] and data.files == [f"{i}.png" for i in kept]
    counts = np.bincount(data.test_labels, minlength=3)
    assert all(n == max(1, round(share * size)) < size for n, size in zip(counts.tolist(), sizes, strict=True))


def test_the_test_set_is_the_same_for_good_and_not_a_matter_of_the_seed():
    data = with_test(9)
    assert data.test_images.flatten().tolist() == [9, 13, 23, 42, 56, 67, 74, 76, 93]
    assert split(seed=1, data=data).labeled != split(seed=2, data=data).labeled
    assert split(data=data).test_files is None and with_test(0).test_images is None


def test_groups_are_never_in_the_test_and_the_training_set():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, -1, -1])
    groups = ["a", "a", "", "", "b", "b", "c", "", "d", "d", "d", "e", "a", ""]
    data = with_test(3, labels, groups=groups)
    test = data.test_images.flatten().tolist()
    tested = {groups[i] for i in test} - {""}
    assert not tested & set(data.groups) and np.bincount(labels[test]).min() >= 1
    assert (12 in data.images.flatten().tolist()) == ("a" not in tested)  # its class is unknown: never tested on


@pytest.mark.parametrize(
    "num_test, groups, message",
    [
        (4, None, "must be divisible by the 3 classes"),
        (120, None, "class 'a' has 40 labeled images, 40 would be for testing; lower"),
        (0.99, None, "class 'a' has 40 labeled images, 40 would be for testing; lower"),
        (3, ["x"] * 150, "class 'a' has 40 labeled images, 40 would be for testing, as groups are not divided; lower"),
    ],
)
def test_test_sets_that_cannot_be_had(num_test, groups, message):
    with pytest.raises(UserError, match=f"data.num_test: {message}"):
        with_test(num_test, groups=groups)


def test_a_test_set_is_not_sampled_where_there_is_one():
    with pytest.raises(UserError, match=r"data\.num_test: toy has 40 test images already; set it to 0"):
        hold_out_test(toy_data(), DataSettings(num_test=0.2))
    with pytest.raises(UserError, match=r"data\.num_test: the data set has validation images of its own"):
        hold_out_test(data_of_labels([0, 0, 1, 1], ["a", "b"], validation=[0]), DataSettings(num_test=0.5))
