"""utils/plotting.py"""

import struct

from builders import filled
from matplotlib.image import imread

from utils.plotting import plot_losses
from utils.step_history import StepHistory
from utils.train_utils import Evaluation


def record(tokens: int, train_loss: float, validate_loss: float) -> Evaluation:
    return Evaluation(1, tokens // 100, tokens, 1.0, 0.001, train_loss, validate_loss)


def test_curve_is_a_png_of_the_expected_size(tmp_path):
    path = tmp_path / "loss.png"
    losses = [(0, 5.0, 5.1), (100, 4.0, 4.4), (200, 3.0, 4.6)]
    plot_losses([record(*values) for values in losses], filled(200), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 600)


def test_one_point_is_enough(tmp_path):
    plot_losses([record(0, 5.0, 5.1)], StepHistory(), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def is_blue(pixels):
    """训练的颜色，深浅不论。"""
    return pixels[..., 2] - pixels[..., 0] > 0.05


def test_training_loss_of_every_step_is_drawn_raw_and_smoothed(tmp_path):
    """评估只有首尾两个点；每一步的上下跳动，图里都有，平滑的一条盖在上面。"""
    steps = StepHistory()
    for step in range(1, 401):
        values = {"step": step, "tokens": 10 * step, "seconds": step, "learning_rate": 0.1}
        steps.add(**values, loss=5.0 + (-1) ** step)
    plot_losses([record(0, 5.0, 9.0), record(4000, 5.0, 0.5)], steps, tmp_path / "loss.png")
    pixels = imread(tmp_path / "loss.png")[..., :3]
    inner = is_blue(pixels)[:, 300:700]  # 图例之外的一段
    light, dark = inner.sum(axis=0), (is_blue(pixels) & (pixels.min(axis=-1) < 0.3))[:, 300:700].sum(axis=0)
    assert light.min() > 20  # 每一列都有从 4 到 6 的一竖
    assert 1 <= dark.min() <= dark.max() < 20  # 平滑的只是一条线
