"""utils/plotting.py"""

import struct

from utils.plotting import plot_losses


def test_curve_is_a_png_of_the_expected_size(tmp_path):
    path = tmp_path / "loss.png"
    plot_losses([0, 100, 200], [5.0, 4.0, 3.0], [5.1, 4.4, 4.6], path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 600)


def test_one_point_is_enough(tmp_path):
    plot_losses([0], [5.0], [5.1], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
