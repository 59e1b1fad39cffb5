"""Check that PyTorch and llama.cpp compute the same model: log-probabilities on the same weights.

The weights are read back from the GGUF, so that what is compared is the computation. llama.cpp
rounds activations too where weights are Q8_0, so a file made by ``export.py --exact`` agrees to
about 0.001 and the shipped one to a few hundredths. Exits with status 1 beyond --limit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import gguf
import torch
from gguf.quants import dequantize

import tokens
from config import Shape
from data import Encoder
from dialogue import conversation
from evaluate import wire
from export import HERE, SHIPPED, gguf_name
from model import House
from peer import Peer


def house(path: Path) -> House:
    """The network with the weights of a GGUF."""
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    model = House(Shape())
    state = {}
    for name, size in Shape().sizes().items():
        tensor = stored[gguf_name(name)]
        array = dequantize(tensor.data, tensor.tensor_type)
        state[name] = torch.from_numpy(array.copy()).reshape(size)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def main() -> None:
    """Compare on the answers of some conversations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--tokenizer", type=Path, default=HERE / "run" / "tokenizer.json")
    parser.add_argument("--limit", type=float, default=0.15)
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, peer = house(args.model), Peer(args.model)
    encoder = Encoder(tokens.load(args.tokenizer))
    worst, total, compared = 0.0, 0.0, 0
    for n in range(args.count):
        talk = conversation(f"agree/{n}", exchanges=Random(n).randint(1, 6))
        while talk.messages[-1]["role"] != "user":
            talk.messages.pop()
        # llama.cpp gives no log-probabilities for streams with tools.
        talk.tools.clear()
        chunks = peer.stream(wire(talk.messages), logprobs=True, max_tokens=24)
        prompt = encoder.text(talk) + f"{tokens.START}assistant\n"
        ids = encoder.ids(prompt)
        for chunk in chunks:
            for choice in chunk.get("choices", []):
                for entry in (choice.get("logprobs") or {}).get("content") or []:
                    hidden = model(torch.tensor([ids]))[0, -1]
                    ours = torch.log_softmax(model.logits(hidden), -1)[entry["id"]].item()
                    difference = abs(ours - entry["logprob"])
                    worst, total = max(worst, difference), total + difference
                    compared += 1
                    ids.append(entry["id"])
    print(f"{compared} tokens; log-probabilities differ by {total / compared:.5f} in the mean, {worst:.4f} at most")
    raise SystemExit(worst > args.limit or compared == 0)


if __name__ == "__main__":
    main()
