"""Body centres of outlined vertebrae that nobody measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cspine.inference.centres import body_centres
from cspine.volume import Volume


@pytest.mark.parametrize("angle", [0.0, 25.0])
def test_body_centres_of_true_masks(angle: float) -> None:
    turn = Rotation.from_euler("z", angle, degrees=True).as_matrix()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-50, -50, -40)
    z, y, x = np.indices((80, 120, 100))
    local = (np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]) @ turn
    body = (np.hypot(local[..., 0], local[..., 1]) < 9) & (np.abs(local[..., 2]) < 7)
    ring = np.abs(np.hypot(local[..., 0] * 1.2, local[..., 1] - 17) - 11) < 2.5
    process = (np.abs(local[..., 0]) < 3) & (local[..., 1] > 26) & (local[..., 1] < 45)
    mask = body | ((ring | process) & (np.abs(local[..., 2] + 2) < 5))
    centres = body_centres(Volume(np.where(mask, np.uint8(5), np.uint8(0)), affine), range(1, 9))
    assert set(centres) == {5}
    np.testing.assert_allclose(centres[5], (0, 0, 0), atol=2.5 if angle else 0.5)


def test_crumbs_are_no_vertebrae() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[8:12, 8:12, 8:12] = 3
    assert body_centres(Volume(mask, np.eye(4)), range(1, 8)) == {}
    assert set(body_centres(Volume(mask, np.diag([4.0, 4.0, 4.0, 1.0])), range(1, 8))) == {3}
    assert body_centres(Volume(mask, np.diag([4.0, 4.0, 4.0, 1.0])), (4, 9)) == {}
