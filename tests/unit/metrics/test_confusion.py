"""The confusion matrix counts every row once, true classes down, predicted across."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from batchtrain.metrics.confusion import confusion


def test_it_equals_scikit_learns_also_for_classes_that_do_not_occur():
    rng = np.random.default_rng(0)
    probabilities = rng.random((200, 5))
    target = rng.integers(0, 3, 200)
    found = confusion(torch.from_numpy(probabilities), torch.from_numpy(target), 5)
    expected = confusion_matrix(target, probabilities.argmax(1), labels=range(5))
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)


def test_the_matrices_of_blocks_add_up():
    probabilities = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 3
    parts = [confusion(probabilities[a:b], target[a:b], 3) for a, b in ((0, 7), (7, 7), (7, 50))]
    assert torch.equal(sum(parts), confusion(probabilities, target, 3))


def test_of_equal_probabilities_the_first_class_is_predicted():
    found = confusion(torch.full((2, 3), 1 / 3), torch.tensor([0, 2]), 3)
    assert found.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
