"""utils/plotting.py"""

import struct

from utils.plotting import plot_losses
from utils.train_utils import Evaluation


def record(tokens: int, train_loss: float, validate_loss: float) -> Evaluation:
    return Evaluation(1, tokens // 100, tokens, 1.0, 0.001, train_loss, validate_loss)


def test_curve_is_a_png_of_the_expected_size(tmp_path):
    path = tmp_path / "loss.png"
    losses = [(0, 5.0, 5.1), (100, 4.0, 4.4), (200, 3.0, 4.6)]
    plot_losses([record(*values) for values in losses], path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 600)


def test_one_point_is_enough(tmp_path):
    plot_losses([record(0, 5.0, 5.1)], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
