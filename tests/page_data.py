"""从写好的网页里取出数据，像页面的脚本那样。"""

import base64
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def read_data(page: Path) -> dict:
    return json.loads(DATA.search(page.read_text(encoding="utf-8"))[1])


def unpack(packed: dict) -> Tensor:
    name = "float32" if "float32" in packed else "float16"
    array = np.frombuffer(base64.b64decode(packed[name]), dtype={"float32": "<f4", "float16": "<f2"}[name])
    return torch.from_numpy(array.astype("float32")).reshape(packed["shape"])
