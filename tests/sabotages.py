"""故意写错的 model/：{模块: [(原来的几行, 改成的, 应说出的)]}，test_verify.py 一个个试。

应猜出的只写一部分，在 verify.py 的话里出现就算；会抛出异常的，写它的消息。
"""

ATTEND = "        x = x + self.dropout(self.attn(self.norm1(x), position, cache))\n"
FEED = "        x = x + self.dropout(self.ff(self.norm2(x)))\n"
STORE_KEYS = "        self.keys[layer, :, :, self.length : end] = keys\n"
STORE_VALUES = "        self.values[layer, :, :, self.length : end] = values\n"

SABOTAGES = {
    "layer_norm": [
        ("unbiased=False", "unbiased=True", "无偏方差"),
        (
            "    mean = x.mean(dim=-1, keepdim=True)\n    variance = x.var(dim=-1, ",
            "    mean = x.mean(dim=-2, keepdim=True)\n    variance = x.var(dim=-2, ",
            "归一化的轴不对",
        ),
        ("EPS = 1e-5", "EPS = 1e-6", "eps 不对"),
        ("EPS = 1e-5", "EPS = 1e-12", "eps 不对"),
        ("torch.sqrt(variance + EPS) * weight", "(torch.sqrt(variance) + EPS) * weight", "eps 的位置不对"),
        ("torch.sqrt(variance + EPS) * weight", "torch.sqrt(variance) * weight", "eps 不对"),
        ("torch.sqrt(variance + EPS) * weight", "(variance + EPS) * weight", "没有开平方"),
        ("(x - mean) / torch", "x / torch", "没有减去均值"),
        ("torch.sqrt(variance + EPS) * weight", "torch.sqrt(variance + EPS)", "没有乘缩放"),
        ("return normalized if bias is None else normalized + bias", "return normalized", "没有加偏置"),
        (
            "F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)",
            "rms_norm_by_definition(x, self.weight) + (0 if self.bias is None else self.bias)",
            "算成了 RMSNorm",
        ),
        (
            "F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)",
            "F.layer_norm(x.detach(), self.weight.shape, self.weight, self.bias, EPS)",
            "detach",
        ),
        ("nn.Parameter(torch.zeros(dim)) if bias else None", "None", "缺偏置"),
        ("x.square().mean(dim=-1, keepdim=True) + EPS", "x.square().sum(dim=-1, keepdim=True) + EPS", "应取平均"),
        (
            "return x / torch.sqrt(x.square()",
            "return (x - x.mean(dim=-1, keepdim=True)) / torch.sqrt(x.square()",
            "多减了均值",
        ),
        (
            "F.rms_norm(x, self.weight.shape, self.weight, EPS)",
            "F.rms_norm(x, self.weight.shape, self.weight, 1e-8)",
            "eps 不对",
        ),
        (
            "F.rms_norm(x, self.weight.shape, self.weight, EPS)",
            "F.layer_norm(x, self.weight.shape, self.weight, None, EPS)",
            "算成了 LayerNorm",
        ),
    ],
    "position": [
        ("self.pos_emb.weight[start : start + x.shape[1]]", "self.pos_emb.weight[: x.shape[1]]", "没有用 start"),
        (
            "self.pos_emb.weight[start : start + x.shape[1]]",
            "self.pos_emb.weight[start + 1 : start + 1 + x.shape[1]]",
            "错了一位",
        ),
        ("return x + self.pos_emb", "return x - self.pos_emb", "减去"),
        ("return x + self.pos_emb.weight[start : start + x.shape[1]]", "return x", "没有加位置嵌入"),
        (
            "self.pos_emb.weight[start : start + x.shape[1]]",
            "self.pos_emb.weight[start : start + x.shape[1]].flip(0)",
            "次序反了",
        ),
        ("self.pos_emb.weight[start : start + x.shape[1]]", "self.pos_emb.weight[start]", "同一个位置"),
        ("nn.Embedding(cfg.context_length, cfg.emb_dim)", "nn.Embedding(cfg.vocab_size, cfg.emb_dim)", "形状不对"),
        (
            "(first * cos - second * sin, first * sin + second * cos)",
            "(first * cos + second * sin, second * cos - first * sin)",
            "方向反了",
        ),
        (
            "torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)",
            "torch.stack((x[..., ::2] * cos - x[..., 1::2] * sin, x[..., ::2] * sin + x[..., 1::2] * cos), dim=-1)"
            ".flatten(-2)",
            "配对错了",
        ),
        ("slice(start, start + x.shape[-2])", "slice(0, x.shape[-2])", "没有用 start"),
        ("slice(start, start + x.shape[-2])", "slice(start + 1, start + 1 + x.shape[-2])", "错了一位"),
        (
            "torch.arange(0, cfg.head_dim, 2) / cfg.head_dim",
            "torch.arange(0, cfg.head_dim // 2) / cfg.head_dim",
            "频率不对",
        ),
        ("(-torch.arange(0", "(torch.arange(0", "漏了负号"),
        ("cfg.rope_base **", "1000.0 **", "底数"),
        (
            "slice(start, start + x.shape[-2])\n"
            "        cos, sin = self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)",
            "slice(start, start + x.shape[1])\n"
            "        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]",
            "位置轴不对",
        ),
        ("slice(start, start + x.shape[-2])", "slice(start, start + x.shape[1])", "形状不对"),
    ],
    "feed_forward": [
        ('F.gelu(x, approximate="tanh")', "F.gelu(x)", "erf"),
        ('F.gelu(x, approximate="tanh")', "x * torch.sigmoid(1.702 * x)", "sigmoid(1.702x)"),
        ("0.5 * x * (1 + torch", "x * (1 + torch", "0.5"),
        ("(1 + torch.tanh", "(torch.tanh", "1 +"),
        ("math.sqrt(2 / math.pi) * (x", "(x", "√(2/π)"),
        ("math.sqrt(2 / math.pi)", "(2 / math.pi)", "没有开平方"),
        ("+ 0.044715 * x**3))", "))", "0.044715x³"),
        ("0.044715 * x", "0.44715 * x", "小数点"),
        ("x**3", "x**2", "x²"),
        ("F.relu(x).square()", "F.relu(x)", "没有平方"),
        ("F.relu(x).square()", "x.square()", "没有 ReLU"),
        (
            "            activation,\n            nn.Linear(cfg.hidden_dim, cfg.emb_dim, bias=cfg.bias),\n",
            "            nn.Identity(),\n            nn.Linear(cfg.hidden_dim, cfg.emb_dim, bias=cfg.bias),\n",
            "没有激活函数",
        ),
        ("return self.layers(x)", "return self.layers[1](self.layers[2](self.layers[0](x)))", "位置不对"),
        (
            "nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=cfg.bias),\n            activation",
            "nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=False),\n            activation",
            "缺偏置",
        ),
        ("F.silu(self.gate(x)) * self.up(x)", "F.silu(self.up(x)) * self.gate(x)", "用反了"),
        ("F.silu(self.gate(x))", "torch.sigmoid(self.gate(x))", "sigmoid"),
        ("F.silu(self.gate(x))", "F.gelu(self.gate(x))", "GeGLU"),
        ("F.silu(self.gate(x)) * self.up(x)", "F.silu(self.gate(x)) + self.up(x)", "相加"),
        ("F.silu(self.gate(x)) * self.up(x)", "F.silu(self.gate(x))", "漏了 up"),
    ],
    "dropout": [
        ("(keep.to(x.dtype) * (LANES / (LANES - dropped)))", "keep.to(x.dtype)", "没有除以保留概率"),
        ("(LANES / (LANES - dropped))", "((LANES - dropped) / LANES)", "写成了乘以"),
        ("(LANES / (LANES - dropped))", "(LANES / dropped)", "除以 p"),
        ("keep = lanes >=", "keep = lanes <", "弄反了"),
        ("return x * (keep.to(x.dtype) * (LANES / (LANES - dropped)))", "return x", "没有丢弃"),
        (
            "return dropout(x, self.drop_rate) if self.training else x",
            "return dropout(x, self.drop_rate)",
            "评估时还在丢",
        ),
        ("if self.training else x", "if not self.training else x", "弄反了"),
        ("return dropout(x, self.drop_rate) if self.training else x", "return x", "训练时没有丢"),
        ("return x * (keep", "return x.detach() * (keep", "梯度不对"),
        ("    bits = torch.empty", "    torch.manual_seed(0)\n    bits = torch.empty", "每次的随机数都一样"),
        (
            "lanes = bits.view(torch.int16)[: x.numel()].view(x.shape)",
            "lanes = bits.view(torch.int16)[::4].repeat_interleave(4)[: x.numel()].view(x.shape)",
            "相邻的数共用",
        ),
        ("(LANES / (LANES - dropped))", "(LANES / (LANES - dropped)) + lanse", "NameError：没有 lanse 这个名字"),
    ],
    "attention": [
        (" / math.sqrt(keys.shape[-1])", "", "没有除以 √head_dim"),
        ("/ math.sqrt(keys.shape[-1])", "/ keys.shape[-1]", "应为 √head_dim"),
        ("/ math.sqrt(keys.shape[-1])", "* math.sqrt(keys.shape[-1])", "应为除以"),
        ("/ math.sqrt(keys.shape[-1])", "/ math.sqrt(keys.shape[-2])", "√seq"),
        (".tril(num_keys - num_queries)", ".tril(num_keys - num_queries + 1)", "看得见下一个"),
        (".tril(num_keys - num_queries)", ".tril(num_keys - num_queries - 1)", "看不见自己"),
        (".tril(num_keys - num_queries)", ".tril()", "没有对齐"),
        ("masked_fill(~mask,", "masked_fill(mask,", "掩码反了"),
        ("scores.masked_fill(~mask, -math.inf).softmax", "scores.softmax", "没有因果掩码"),
        (
            "scores.masked_fill(~mask, -math.inf).softmax(dim=-1, dtype=queries.dtype)",
            "scores.softmax(dim=-1, dtype=queries.dtype) * mask",
            "先 softmax 再清零",
        ),
        ("masked_fill(~mask, -math.inf)", "masked_fill(~mask, 0.0)", "填了 0"),
        ("softmax(dim=-1,", "softmax(dim=-2,", "softmax 的轴不对"),
        ("softmax(dim=-1,", "softmax(dim=1,", "softmax 的轴不对"),
        ("dropout(weights, drop_rate) @ values", "dropout(weights, drop_rate) @ keys", "应为值"),
        (
            "keys[..., :end, :], values[..., :end, :]",
            "keys[..., end - BLOCK : end, :], values[..., end - BLOCK : end, :]",
            "只看了自己那一块",
        ),
        (
            "keys[..., :end, :], values[..., :end, :]",
            "keys[..., : end + 1, :], values[..., : end + 1, :]",
            "多看了一个键",
        ),
        (
            "return self.out_proj(context.transpose(1, 2).flatten(2))",
            "return context.transpose(1, 2).flatten(2)",
            "没有乘 out_proj",
        ),
        ("context.transpose(1, 2).flatten(2)", "context.reshape(x.shape)", "换回 seq 之后"),
        (
            "x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)",
            "x.view(len(x), -1, x.shape[1], self.head_dim)",
            "多头拆分的轴错了",
        ),
        ("self._split_heads(self.W_value(x))", "self._split_heads(self.W_key(x))", "应为值"),
        (
            "queries = position.rotate(self.qk_norm(self._split_heads(self.W_query(x))), start)",
            "queries = self.qk_norm(self._split_heads(self.W_query(x)))",
            "只旋转了键",
        ),
        (
            "self._split_heads(self.W_value(x))",
            "position.rotate(self._split_heads(self.W_value(x)), start)",
            "值也旋转了",
        ),
        ("HeadNorm(cfg.head_dim) if cfg.qk_norm else nn.Identity()", "nn.Identity()", "漏了 qk_norm"),
        ("position, cache.length if cache is not None else 0)", "position, 0)", "从 0 数起"),
        (
            "keys, values = cache.append(self.layer, keys, values)",
            "cache.append(self.layer, keys, values)",
            "没有用缓存里",
        ),
        ("is_causal=is_whole", "is_causal=False", "没有因果掩码"),
        ("enable_gqa=self.is_grouped", "enable_gqa=self.is_grouped, scale=1.0", "没有除以 √head_dim"),
        (
            "self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)",
            "self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=False)",
            "缺偏置",
        ),
        (
            "self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.bias)",
            "self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=False)",
            "缺偏置",
        ),
        ("self.drop_rate if self.training else 0.0", "self.drop_rate", "评估时还在丢"),
    ],
    "kv_cache": [
        ("return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]", "return keys, values", "只返回了新的"),
        (
            "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
            "return self.values[layer, :, :, :end], self.keys[layer, :, :, :end]",
            "次序反了",
        ),
        (
            "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
            "return self.keys[layer], self.values[layer]",
            "整张表",
        ),
        (
            "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
            "return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]",
            "不含新的",
        ),
        ("self.length : end] = values", "self.length : end] = keys", "值存成了键"),
        (
            "    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:\n",
            "    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:\n"
            "        layer = 0\n",
            "没有用 layer",
        ),
        (
            STORE_KEYS + STORE_VALUES,
            "        self.keys[layer, :, :, : keys.shape[2]] = keys\n"
            "        self.values[layer, :, :, : keys.shape[2]] = values\n",
            "总写在开头",
        ),
        (
            STORE_KEYS + STORE_VALUES,
            "        self.keys[layer, :, :, self.length + 1 : end + 1] = keys\n"
            "        self.values[layer, :, :, self.length + 1 : end + 1] = values\n",
            "错了一位",
        ),
        (STORE_VALUES, "", "值没有存进缓存"),
        ("self.length = 0", "self.length = 1", "从 0 开始"),
        ("cfg.num_kv_heads, cfg", "cfg.num_heads, cfg", "应为 num_kv_heads"),
        (
            "self.keys = torch.zeros(shape, device=device, dtype=dtype)",
            "self.keys = torch.zeros(shape, device=device)",
            "键的精度没有照所给的",
        ),
    ],
    "transform_block": [
        ("x = x + self.dropout(self.attn(", "x = (self.dropout)(self.attn(", "残差漏加：注意力"),
        ("x = x + self.dropout(self.ff(", "x = (self.dropout)(self.ff(", "残差漏加：前馈"),
        (
            ATTEND + FEED,
            "        x = self.norm1(x + self.dropout(self.attn(x, position, cache)))\n"
            "        x = self.norm2(x + self.dropout(self.ff(x)))\n",
            "后归一化",
        ),
        (
            ATTEND + FEED,
            "        x = self.norm1(x)\n"
            "        x = x + self.dropout(self.attn(x, position, cache))\n"
            "        x = self.norm2(x)\n"
            "        x = x + self.dropout(self.ff(x))\n",
            "加的是归一化之后的 x",
        ),
        ("self.attn(self.norm1(x)", "self.attn(x", "漏了 norm1"),
        ("self.ff(self.norm2(x))", "self.ff(x)", "漏了 norm2"),
        ("self.ff(self.norm2(x))", "self.ff(self.norm1(x))", "norm1 用了两次"),
        ("self.attn(self.norm1(x)", "self.attn(self.norm2(x)", "norm2 用了两次"),
        (
            ATTEND + FEED,
            FEED + ATTEND,
            "次序反了",
        ),
        (FEED, "", "漏了前馈网络"),
        (ATTEND, "", "漏了注意力"),
        (
            ATTEND + FEED,
            ATTEND.replace("\n", " + self.dropout(self.ff(self.norm2(x)))\n"),
            "最初的 x",
        ),
        ("x = x + self.dropout(self.ff(", "x = x + (self.ff(", "前馈网络之后漏了 dropout"),
        ("        return x\n", "", "return"),
        ("x = x + self.dropout(self.attn(", "x += self.dropout(self.attn(", "原地修改"),
    ],
    "language_model": [
        ("self.position.embed(self.tok_emb(token_ids), start)", "self.tok_emb(token_ids)", "没有加位置嵌入"),
        (
            "self.position.embed(self.tok_emb(token_ids), start)",
            "self.position.embed(self.tok_emb(token_ids), start + 1)",
            "位置嵌入错位",
        ),
        (
            "self.position.embed(self.tok_emb(token_ids), start)",
            "self.position.embed(self.tok_emb(token_ids), 0)",
            "接着缓存时从 0 数起",
        ),
        ("return self.final_norm(x)", "return x", "漏了 final_norm"),
        (
            "for block in self.trf_blocks:\n            x = block",
            "for block in self.trf_blocks[:-1]:\n            x = block",
            "漏了最后一个块",
        ),
        (
            "for block in self.trf_blocks:\n            x = block",
            "for block in self.trf_blocks[::-1]:\n            x = block",
            "次序反了",
        ),
        ("x = block(x, self.position, cache)", "x = self.trf_blocks[0](x, self.position, cache)", "第一个块用了两次"),
        ("x = block(x, self.position, cache)", "x = block(x, self.position)", "缓存没有传给各块"),
        ("            cache.length += token_ids.shape[1]\n", "            pass\n", "length 没有增加"),
        (
            "self.position.embed(self.tok_emb(token_ids), start)",
            "self.position.embed(self.tok_emb(token_ids) * math.sqrt(self.cfg.emb_dim), start)",
            "√emb_dim",
        ),
        ("self.features(token_ids, cache)[:, -1]", "self.features(token_ids, cache)[:, 0]", "第一个位置"),
        ("self.out_head.weight = self.tok_emb.weight", "pass", "权重没有共用"),
        ("cfg.vocab_size, bias=False)", "cfg.vocab_size)", "多了偏置"),
        ("std=INIT_STD / math.sqrt(2 * cfg.num_layers)", "std=INIT_STD", "没有按 1/√(2·num_layers) 缩小"),
        ("math.sqrt(2 * cfg.num_layers)", "math.sqrt(cfg.num_layers)", "漏了 2"),
        ("(block.attn.out_proj, block.ff.out_proj)", "(block.attn.out_proj,)", "前馈网络的也要"),
        ("        self.apply(_init_weights)\n", "", "漏了 self.apply"),
        ("INIT_STD = 0.02 ", "INIT_STD = 0.2 ", "应为 0.02"),
        ("(nn.Linear, nn.Embedding)", "(nn.Linear,)", "位置嵌入的初始化标准差不对"),
        ("        nn.init.zeros_(module.bias)\n", "        pass\n", "偏置没有清零"),
        ("x = self.dropout(self.position", "x = (self.position", "训练时没有丢"),
    ],
    "lora": [
        ("+ self.scale * F.linear", "+ F.linear", "没有乘 alpha / rank"),
        ("config.alpha / config.rank", "config.alpha", "没有除以 rank"),
        ("config.alpha / config.rank", "config.rank / config.alpha", "写倒了"),
        ("config.alpha / config.rank", "config.alpha * config.rank", "应为相除"),
        ("config.alpha / config.rank", "1 / config.rank", "漏了 alpha"),
        ("return F.linear(x, self.weight, self.bias) + self", "return self", "漏了原来的线性层"),
        ("F.linear(x, self.weight, self.bias) + self", "F.linear(x, self.weight) + self", "漏了原来的偏置"),
        ("self.bias) + self.scale", "self.bias) - self.scale", "符号反了"),
        ("self.weight.detach() + self.scale * (", "self.weight.detach() + (", "没有乘 alpha / rank"),
        (
            "self.weight.detach() + self.scale * (self.lora_B @ self.lora_A).detach()",
            "self.weight.detach()",
            "漏了低秩的修正",
        ),
        ("        linear.bias = self.bias\n", "        linear.bias = None\n", "漏了原来的偏置"),
        ("    model.requires_grad_(False)\n", "", "没有冻结"),
        ("nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))", "nn.init.zeros_(self.lora_A)", "A 也从 0 开始"),
        ("torch.zeros(linear.out_features", "torch.randn(linear.out_features", "B 应从 0 开始"),
        ('{"all": ("attn", "ff"), ', '{"all": ("attn",), ', "前馈没有加适配器"),
        ('{"all": ("attn", "ff"), ', '{"all": ("ff",), ', "注意力没有加适配器"),
        (
            '            state[f"{path}.weight"] = module.merged().weight.detach()\n',
            "            pass\n",
            "merged_state_dict 没有把修正加进权重",
        ),
    ],
    "classifier": [
        (
            "nn.Linear(self.cfg.emb_dim, len(labels))",
            "nn.Linear(self.cfg.emb_dim, len(labels), bias=False)",
            "NoneType 没有 zero_ 这个属性",
        ),
        (
            "len(labels))\n"
            "        nn.init.normal_(self.out_head.weight, std=INIT_STD)\n"
            "        nn.init.zeros_(self.out_head.bias)\n",
            "len(labels))\n",
            "头没有初始化",
        ),
        ("        nn.init.normal_(self.out_head.weight, std=INIT_STD)\n", "", "头的初始化标准差"),
        ("        nn.init.zeros_(self.out_head.bias)\n", "", "头的偏置没有清零"),
        (
            '("tok_emb", "position", "trf_blocks", "final_norm")',
            '("position", "trf_blocks", "final_norm")',
            "tok_emb 没有用",
        ),
        (
            '("tok_emb", "position", "trf_blocks", "final_norm")',
            '("tok_emb", "trf_blocks", "final_norm")',
            "position 没有用",
        ),
        (
            '("tok_emb", "position", "trf_blocks", "final_norm")',
            '("tok_emb", "position", "final_norm")',
            "trf_blocks 没有用",
        ),
        (
            '("tok_emb", "position", "trf_blocks", "final_norm")',
            '("tok_emb", "position", "trf_blocks")',
            "final_norm 没有用",
        ),
        ("        classifier.tokenizer_state = model.tokenizer_state\n", "", "分词器没有带过来"),
        ('{**super().get_extra_state(), "labels": self.labels}', "super().get_extra_state()", "标签没有写进"),
        ("        self.out_head = nn.Linear(self.cfg.emb_dim, len(labels))\n", "", "model/classifier.py 第"),
        ("nn.Linear(self.cfg.emb_dim, len(labels))", "nn.Linear(self.cfg.emb_dim, len(label))", "没有 label 这个名字"),
    ],
    "trainable": [
        ("for module in (model.final_norm, model.out_head):", "for module in (model.out_head,):", "漏了 final_norm"),
        ("for module in (model.final_norm, model.out_head):", "for module in (model.final_norm,):", "漏了输出层"),
        ("    model.requires_grad_(False)\n", "", "没有冻结其余"),
        ("    model.trf_blocks[-1].requires_grad_(True)\n", "", "没有解冻"),
        ("model.trf_blocks[-1].requires", "model.trf_blocks.requires", "所有的块"),
        ('    if hasattr(model, "labels"):\n        model.out_head.requires_grad_(True)\n', "", "头没有解冻"),
        ("    add_lora(model, lora)\n", "", "没有加适配器"),
        ("    _head(model, lora)\n", "    model.requires_grad_(False)\n", "漏了头"),
    ],
}
