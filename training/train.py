"""Train the house model: resumable, and exportable at any moment.

    python train.py

The learning rate is constant after a short warm-up and then falls to nothing (`--rate`). Ending
early (SIGTERM saves) costs quality only; a later call goes on from the last checkpoint. What is
exported are the averaged weights.
"""

from __future__ import annotations

import argparse
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from threading import Event

import numpy as np
import torch
import torch.nn.functional as F

import tokens
from config import Shape
from data import Encoder, batches
from dialogue import arithmetic, conversation
from model import House
from optim import Optimizer
from talk import Talk

HERE = Path(__file__).parent
# As the shipped model was trained.
RATE = "0:0.025,39:1,1050:1,1286:0.476,1356:0.429,1765:0.193,1822:0.176,1842:0.35,2063:0.232,2270:0,2276:0.22,2520:0"


def tokenizer_for(run: Path, seed: int) -> Encoder:
    """The run's tokenizer, learned first if it is not there yet."""
    path = run / "tokenizer.json"
    if not path.exists():
        plain = Encoder(tokens.train([""]))
        texts = (plain.text(conversation(f"{seed}/bpe/{n}")) for n in range(6000))
        tokens.train(texts).save(str(path))
    return Encoder(tokens.load(path))


def gradients(
    model: House, learned: int, ids: np.ndarray, mask: np.ndarray
) -> tuple[float, tuple[torch.Tensor, ...]]:
    """The share in the loss and in its gradients of some rows of a batch of `learned` tokens."""
    inputs, learn = torch.from_numpy(ids), torch.from_numpy(mask)[:, 1:]
    if not learn.any():
        return 0.0, ()
    hidden = model(inputs[:, :-1])[learn]
    loss = F.cross_entropy(model.logits(hidden), inputs[:, 1:][learn], reduction="sum") / learned
    return loss.item(), torch.autograd.grad(loss, tuple(model.parameters()))


def corners(text: str) -> tuple[list[float], list[float]]:
    """Steps and shares of the rate from `STEP:SHARE,STEP:SHARE`."""
    pairs = [part.split(":") for part in text.split(",")]
    return [float(step) for step, _ in pairs], [float(share) for _, share in pairs]


Probe = list[tuple[torch.Tensor, torch.Tensor]]


def copying(encoder: Encoder) -> Probe:
    """Sixty held-out sums: tokens, and which of them are digits of a call."""
    probe = []
    for n in range(60):
        talk = Talk(Random(f"probe/{n}"), held=True, tools=["calculator"])
        arithmetic(talk)
        del talk.messages[next(at for at, m in enumerate(talk.messages) if m.get("tool_calls")) + 1 :]
        text = encoder.text(talk).removesuffix("\n")
        at = text.rindex('": "') + 4
        before, call = encoder.ids(text[:at]), encoder.ids(text[at:])
        ids = torch.tensor([before + call])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, len(before) :] = True
        probe.append((ids, mask))
    return probe


@torch.no_grad()
def copied(model: House, probe: Probe) -> float:
    """The share of sums whose expression is right, token by token."""
    right = 0
    for ids, mask in probe:
        best = model.logits(model(ids[:, :-1])).argmax(-1)
        right += bool((best == ids[:, 1:])[mask[:, 1:]].all())
    return right / len(probe)


def main() -> None:
    """Train from the last checkpoint, or from nothing, to the end of `--rate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=HERE / "run", help="folder of the run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rate",
        type=corners,
        default=RATE,
        help="the learning rate's corners, STEP:SHARE,STEP:SHARE..., joined by straight lines; it ends at the last",
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="0: AdamW for everything")
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time too")
    args = parser.parse_args()
    # One thread an operation and the batch split between workers: threads that wait for each other
    # once a step, and not once a matrix, hardly suffer on a busy machine, and the result does not
    # depend on how they are scheduled.
    torch.set_num_threads(1)
    workers = ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,))
    torch.manual_seed(args.seed)
    args.run.mkdir(parents=True, exist_ok=True)
    encoder = tokenizer_for(args.run, args.seed)
    shape = Shape(vocab=encoder.tokenizer.get_vocab_size())
    model = House(shape)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = Optimizer(model, muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    step = seen = 0
    index = (0, 0)
    path = args.run / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["live"])
        average = saved["model"]
        optimizer.load(saved["optimizer"])
        step, index, seen = saved["step"], tuple(saved["index"]), saved["seen"]

    def save() -> None:
        part = path.with_suffix(".part")
        torch.save(
            {
                "model": average,
                "live": model.state_dict(),
                "optimizer": optimizer.state(),
                "shape": asdict(shape),
                "step": step,
                "index": index,
                "seen": seen,
            },
            part,
        )
        part.replace(path)

    probe = copying(encoder)
    began = last = time.monotonic()
    recent = 0
    total = 0.0
    stopping = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    for ids, mask, following in batches(encoder, args.seed, index, args.tokens, shape.context):
        if stopping.is_set() or step >= args.rate[0][-1] or time.monotonic() - began > args.minutes * 60:
            break
        learned = int(mask[:, 1:].sum())
        if not learned:
            continue
        parts = [(ids[n :: args.threads], mask[n :: args.threads]) for n in range(args.threads)]
        results = list(workers.map(partial(gradients, model, learned), *zip(*parts, strict=True)))
        for at, parameter in enumerate(model.parameters()):
            parameter.grad = torch.stack([grads[at] for _, grads in results if grads]).sum(0)
        loss = sum(part for part, _ in results)
        optimizer.step(float(np.interp(step, *args.rate)))
        step, index, seen = step + 1, following, seen + int(ids.size)
        decay = min(0.99, step / (step + 20))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                average[name].lerp_(tensor, 1 - decay)
        recent, total = recent + int(ids.size), total + loss
        if step % 20 == 0:
            now = time.monotonic()
            print(
                f"step {step} loss {total / 20:.4f} seen {seen / 1e6:.2f}M "
                f"{recent / (now - last):.0f} tok/s {(now - began) / 60:.1f} min",
                flush=True,
            )
            last, recent, total = now, 0, 0.0
        if step % 100 == 0:
            print(f"  copying: {copied(model, probe):.0%}", flush=True)
            save()
    save()


if __name__ == "__main__":
    main()
