"""模型文件的外壳：不载入 torch 就能做的检查。"""

import zipfile
from pathlib import Path

from utils.errors import UserError
from utils.files import check_input_file

NOT_A_MODEL = "已损坏或不是模型文件"


def check_archive(path: Path) -> None:
    """torch.save 写的是不压缩的 zip：校验每一项，并拒绝解开后比文件还大的；有任何不对都抛出 UserError。"""
    check_input_file(path, "模型文件", "请先运行 pretrain.py，或用 --model_path 指出它在哪里。")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not is_plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(path, NOT_A_MODEL)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise UserError(path, NOT_A_MODEL, "重新训练，或换回完好的备份。") from None
    if damaged:
        raise UserError(path, f"校验失败，{damaged} 已损坏", "重新训练，或换回完好的备份。")
