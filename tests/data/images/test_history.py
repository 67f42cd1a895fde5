"""Real images get the file history of generated ones: compared with torchvision's and Pillow's own steps."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from usb_rsmatch.data.images.history import read_history, through_history
from usb_rsmatch.errors import UserError


def photographs(count: int, side: int = 32) -> np.ndarray:
    """uint8 [count, side, side, 3] from the two photographs that come with scikit-learn."""
    whole = np.stack([image[:416, :640] for image in load_sample_images().images])
    cells = whole.reshape(2, 416 // side, side, 640 // side, side, 3).swapaxes(2, 3).reshape(-1, side, side, 3)
    return np.ascontiguousarray(cells[:: len(cells) // count][:count])


def test_enlarged_reduced_and_saved_as_torchvision_and_pillow_do() -> None:
    images = photographs(20)
    expected = []
    for image in images:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        large = resize(pixels, [64, 64], InterpolationMode.BICUBIC, antialias=False).clamp(0, 1)
        small = resize(large, [32, 32], InterpolationMode.BILINEAR, antialias=True).clamp(0, 1)
        data = io.BytesIO()
        Image.fromarray((small * 255).round().byte().permute(1, 2, 0).numpy()).save(data, "JPEG", quality=75)
        expected.append(np.asarray(Image.open(data)))
    found = through_history(images, read_history([{"resize": 64}, {"jpeg": 75}]))
    assert np.abs(found.astype(int) - np.stack(expected)).max() <= 1  # rounding before the JPEG may differ
    assert np.abs(found.astype(int) - images).max() > 8


def test_reduced_first_loses_detail_and_grey_stays_grey() -> None:
    images = photographs(8)[..., :1]
    found = through_history(images, read_history([{"resize": 16}]))
    assert found.shape == images.shape and found.dtype == np.uint8
    roughness = [np.abs(np.diff(x.astype(float), axis=2)).mean() for x in (found, images)]
    assert roughness[0] < 0.8 * roughness[1]


def test_no_step_changes_nothing() -> None:
    images = photographs(3)
    assert through_history(images, read_history([])) is images


@pytest.mark.parametrize("steps", [["resize"], [{"resize": 64, "jpeg": 75}], [{"blur": 2}], [{"jpeg": 101}], [{}]])
def test_other_steps_are_refused(steps: list) -> None:
    with pytest.raises(UserError, match="real_history"):
        read_history(steps)
