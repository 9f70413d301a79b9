"""model/transform_block.py：与 torch.nn 的先归一化 Transformer 层逐数比较。"""

import torch
from torch import nn

from conftest import tiny_config
from model.attention import causal_mask
from model.layer_norm import EPS
from model.position import LearnedPosition
from model.transform_block import TransformBlock


def test_equals_torch_encoder_layer_in_outputs_and_gradients():
    cfg = tiny_config()
    ours = TransformBlock(cfg, layer=0)
    theirs = nn.TransformerEncoderLayer(
        cfg.emb_dim,
        cfg.num_heads,
        cfg.hidden_dim,
        dropout=0.0,
        activation=nn.GELU(approximate="tanh"),
        layer_norm_eps=EPS,
        batch_first=True,
        norm_first=True,
    )
    attn = ours.attn
    parts = (attn.W_query, attn.W_key, attn.W_value)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    pairs = [
        (attn.out_proj, theirs.self_attn.out_proj),
        (ours.norm1, theirs.norm1),
        (ours.norm2, theirs.norm2),
        (ours.ff.layers[0], theirs.linear1),
        (ours.ff.layers[2], theirs.linear2),
    ]
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
    x = torch.randn(2, 7, cfg.emb_dim)
    out = ours(x, LearnedPosition(cfg))
    expected = theirs(x, src_mask=~causal_mask(7, 7))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for source, target in pairs:
        torch.testing.assert_close(source.weight.grad, target.weight.grad, atol=1e-4, rtol=1e-4)
