"""Write a checkpoint as a GGUF file that llama.cpp loads: weights as Q8_0, norms as float32."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize
from tokenizers import Tokenizer

from config import Shape
from tokens import CONTROL, END, PAD, PRE_NAME, TAGS, load, vocabulary

HERE = Path(__file__).parent
TEMPLATE = HERE / "chat_template.jinja"
SHIPPED = HERE.parent / "service" / "backchannel" / "engines" / "models" / "house.gguf"

# Torch names to GGUF names; a layer's are prefixed with "layers.N." and "blk.N.".
_LAYER = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Our parameter name as GGUF calls it."""
    stem = name.removesuffix(".weight")
    if stem == "embed":
        return "token_embd.weight"
    if stem == "norm":
        return "output_norm.weight"
    if stem == "head":
        return "output.weight"
    _, layer, part = stem.split(".")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def write(
    path: Path, shape: Shape, weights: dict[str, np.ndarray], tokenizer: Tokenizer, *, exact: bool = False
) -> None:
    """Write the model to `path`, which is replaced as a whole or not at all.

    With `exact` the matrices stay float32: four times the size, to compare with PyTorch.
    """
    part = path.with_suffix(".part")
    out = gguf.GGUFWriter(part, "llama")
    parameters = sum(array.size for array in weights.values())
    out.add_name("Backchannel house model")
    out.add_description(
        f"A tiny model ({parameters / 1e6:.1f}M parameters) trained from scratch on text made by "
        "a program. It knows Backchannel, calls a calculator and a clock, and nothing else."
    )
    out.add_license("Apache-2.0")
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.dim)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.hidden)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.heads)
    out.add_layer_norm_rms_eps(shape.norm_eps)
    out.add_rope_dimension_count(shape.dim // shape.heads)
    out.add_rope_freq_base(shape.rope_base)
    out.add_vocab_size(shape.vocab)
    out.add_file_type(gguf.LlamaFileType.ALL_F32 if exact else gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokens, merges = vocabulary(tokenizer)
    kinds = [
        gguf.TokenType.CONTROL
        if token in CONTROL
        else gguf.TokenType.USER_DEFINED
        if token in TAGS
        else gguf.TokenType.NORMAL
        for token in tokens
    ]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(PRE_NAME)
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    out.add_eos_token_id(end)
    out.add_eot_token_id(end)
    out.add_pad_token_id(pad)
    out.add_bos_token_id(end)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE.read_text())
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, array in weights.items():
        array = np.ascontiguousarray(array, dtype=np.float32)
        if array.ndim == 1 or exact:
            out.add_tensor(gguf_name(name), array)
        else:
            out.add_tensor(gguf_name(name), quantize(array, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    part.replace(path)


def main() -> None:
    """Export the newest (or the named) checkpoint."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=HERE / "run", help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the GGUF goes")
    parser.add_argument("--exact", action="store_true", help="float32, for agree.py")
    args = parser.parse_args()
    state = torch.load(args.run / "checkpoint.pt", weights_only=True, map_location="cpu")
    weights = {name: tensor.numpy() for name, tensor in state["model"].items()}
    write(args.out, Shape(**state["shape"]), weights, load(args.run / "tokenizer.json"), exact=args.exact)
    print(f"{args.out}: step {state['step']}, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
