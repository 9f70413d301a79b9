"""utils/streamed_state.py：一个参数一个参数写出的文件，与 torch.save 写的一个字节也不差。"""

import torch

from conftest import tiny_config
from model.language_model import LanguageModel
from utils.model_file import read_model_file, save_model
from utils.streamed_state import save_streamed


def test_streamed_file_is_the_file_torch_writes(tmp_path):
    for changes in ({}, {"tie_weights": False, "position": "rope"}):
        model = LanguageModel(tiny_config(**changes))
        model.tokenizer_state = {"type": "gpt2"}
        save_model(tmp_path / "whole.pth", model)
        save_streamed(tmp_path / "streamed.pth", model.plain_state_dict())
        assert (tmp_path / "streamed.pth").read_bytes() == (tmp_path / "whole.pth").read_bytes()
        read_model_file(tmp_path / "streamed.pth")


def test_padding_of_unequal_shares_is_not_written(tmp_path, monkeypatch):
    """行数不能被进程数整除时，凑齐的矩阵后面还有补齐的几行。"""
    model = LanguageModel(tiny_config())
    model.tokenizer_state = {"type": "gpt2"}
    save_model(tmp_path / "whole.pth", model)
    monkeypatch.setattr("utils.sharded_tensor.whole", lambda tensor: torch.cat((tensor, tensor[:1]))[: len(tensor)])
    save_streamed(tmp_path / "streamed.pth", model.plain_state_dict())
    assert (tmp_path / "streamed.pth").read_bytes() == (tmp_path / "whole.pth").read_bytes()


def test_failure_halfway_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.pth"
    path.write_bytes(b"old")

    class Broken(torch.Tensor):
        def cpu(self):
            raise KeyboardInterrupt

    state = {"a": torch.ones(3), "b": torch.ones(3).as_subclass(Broken)}
    try:
        save_streamed(path, state)
    except KeyboardInterrupt:
        pass
    assert path.read_bytes() == b"old" and [item.name for item in tmp_path.iterdir()] == ["m.pth"]
