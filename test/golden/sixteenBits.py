#!/usr/bin/env python3
"""Measures what transformers and PEFT are off by when they compute golden cases in bf16 and fp16 instead of float64.

    python3 test/golden/sixteenBits.py FOLDER ...     # folders with cases; writes engine/verify/sixteenBitErrors.json

Cases that are not in the folders keep the figures that they have. The model is in 16 bits, trained parameters have masters in
fp32, losses are taken in fp32. Errors of gradients and of trained parameters are those of all matrices together.

A case is one draw: the error of a loss may be 0 by luck, and rounding flips an expert where two are near a tie, or does not (a
flip in one of ten draws is usual in bf16, with ten times the error). So there are several draws, and the largest counts: the case
itself, and neighbours of it, whose weights are those of the case moved at random by at most one unit in the last place of the
type. Each draw has its own reference in float64. Where a case without routers holds a figure of its own (`bf16_error.*`), that
one counts.
"""
import json
import os
import re
import shutil
import sys
import tempfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantities import Case

DRAWS = 32
CURVES = 8  # of them train; with routers all do
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
TARGET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../engine/verify/sixteenBitErrors.json")
# As in engine/verify/sixteenBits.ts.
GROUPED = re.compile(r"(lora_grad|full_grad|dpo_grad|dropout_grad|curve_final)(_row_norm)?\.")
INPUTS = re.compile(r".*_ids$|attention_mask$|labels$")
# Nothing that activations have a part in.
OTHERS = re.compile(r"bf16_error\.|curve_lr$|nf4_|q8_|adam8_|dequant\.|pissa\.|loftq\.")


def kind_of(name):
    found = GROUPED.match(name)
    return name if found is None else found.group(0)[:-1]


def off_by(ours, reference):
    """‖ours − reference‖ / ‖reference‖ of each kind."""
    sums = {}
    for name, expected in reference.items():
        difference, size = sums.get(kind_of(name), (0.0, 0.0))
        expected = expected.double()
        difference += (ours[name].double() - expected).square().sum().item()
        sums[kind_of(name)] = difference, size + expected.square().sum().item()
    return {kind: (difference / size) ** 0.5 if difference else 0.0 for kind, (difference, size) in sums.items()}


def moved(tensor, dtype, draw):
    """By −1, 0 or 1 in the last place of `dtype`, in fp32; zeros stay."""
    rounded = tensor.to(dtype).contiguous()
    bits = rounded.view(torch.int16)
    steps = torch.randint(-1, 2, bits.shape, generator=draw, dtype=torch.int16)
    neighbours = torch.where(rounded != 0, bits + steps, bits).view(dtype)
    return tensor.float() + (neighbours.float() - rounded.float())


def neighbour(folder, base, target, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    for source, place in ((base, target), (os.path.join(folder, "adapter"), os.path.join(target, "adapter"))):
        others = lambda _, names: [name for name in names if not name.endswith(".json")]
        shutil.copytree(source, place, ignore=others, dirs_exist_ok=True)
        name = next(name for name in os.listdir(source) if name in ("model.safetensors", "adapter_model.safetensors"))
        tensors = {key: moved(value, dtype, draw) for key, value in load_file(os.path.join(source, name)).items()}
        save_file(tensors, os.path.join(place, name), metadata={"format": "pt"})


def dequantised(folder, target):
    """A model with the values that the weights of bitsandbytes' NF4 stand for, in fp32."""
    shutil.copytree(os.path.join(folder, "bf16"), target)
    path = os.path.join(target, "model.safetensors")
    stored, tensors = load_file(os.path.join(folder, "bnb-4bit", "model.safetensors")), load_file(path)
    for name, weight in tensors.items():
        if f"{name}.quant_map" not in stored:
            continue
        maxima = stored[f"{name}.absmax"].float()
        if f"{name}.nested_absmax" in stored:
            state = json.loads(bytes(stored[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
            largest = stored[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[:len(maxima)]
            maxima = stored[f"{name}.nested_quant_map"][stored[f"{name}.absmax"].long()] * largest + state["nested_offset"]
        packed = stored[name].flatten()
        values = stored[f"{name}.quant_map"][torch.stack([packed >> 4, packed & 15], -1).flatten().long()]
        tensors[name] = (values.view(len(maxima), -1) * maxima[:, None]).view(weight.shape).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return target


def computed(folder, base, golden, dtype, rate, curve=True):
    case = Case(folder, {key: value for key, value in golden.items() if INPUTS.match(key)}, dtype, base, rate)
    has = lambda start: any(key.startswith(start) for key in golden) and (curve or start != "curve_")
    out = case.model_quantities() if has("full_grad") or has("token_nll") else {}
    for start, quantities in (("lora_", case.adapter_quantities), ("dropout_", case.dropout_quantities),
                              ("dpo_", case.preference_quantities), ("curve_", case.curve_quantities)):
        if has(start):
            out.update(quantities())
    if has("router_aux_loss") and "router_aux_loss" not in out:
        out["router_aux_loss"] = case.balance_loss()
    return {key: value.detach() for key, value in out.items()}


def measure(folder):
    path = os.path.join(folder, "golden.safetensors")
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        rate = (file.metadata() or {}).get("embedding_learning_rate")
    rate = None if rate is None else float(rate)
    expected = [key for key in golden if not INPUTS.match(key) and not OTHERS.match(key)]
    # Packed cases lack these.
    names = {*expected, "logits", "lora_logits", "curve_final_logits"}
    errors = {label: {} for label in TYPES}
    with tempfile.TemporaryDirectory() as scratch:
        quantised = os.path.isdir(os.path.join(folder, "bf16"))
        base = dequantised(folder, os.path.join(scratch, "base")) if quantised else folder
        routed = any("experts" in key for key in load_file(os.path.join(base, "model.safetensors")))

        def exact(place, model, *options):
            return {key: value for key, value in computed(place, model, golden, torch.float64, rate, *options).items() if key in names}

        def draw(place, model, label, reference, *options):
            for kind, error in off_by(computed(place, model, golden, TYPES[label], rate, *options), reference).items():
                errors[label].setdefault(kind, []).append(error)

        reference = exact(folder, base)
        # This computes what the case holds; references of quantised weights are only good to what rounding did to them.
        known = {key: golden[key] for key in expected}
        worst = max(off_by(reference, known).items(), key=lambda pair: pair[1])
        if not worst[1] <= (2e-2 if quantised else 2e-5):
            raise RuntimeError(f"{worst[0]} differs from the case by {worst[1]}")
        for label, dtype in TYPES.items():
            draw(folder, base, label, reference)
            for seed in range(1, DRAWS):
                place, curve = os.path.join(scratch, label, str(seed)), routed or seed < CURVES
                neighbour(folder, base, place, dtype, seed)
                draw(place, place, label, exact(place, place, curve), curve)
    largest = {label: {kind: max(found) for kind, found in sorted(errors[label].items())} for label in TYPES}
    for kind, found in errors["bf16"].items():
        if f"bf16_error.{kind}" in golden:
            given = golden[f"bf16_error.{kind}"].item()
            print(f"  {kind}: the case says {given:.2g}, measured {found[0]:.2g}, largest {max(found):.2g}", flush=True)
            largest["bf16"][kind] = max(given, largest["bf16"][kind]) if routed else given
    return largest


def write(errors):
    line = lambda found: json.dumps({kind: float(f"{error:.2g}") for kind, error in found.items()})
    rows = lambda found: ",\n".join(f'    "{label}": {line(found[label])}' for label in TYPES)
    cases = ",\n".join(f'  "{name}": {{\n{rows(found)}\n  }}' for name, found in sorted(errors.items()))
    with open(TARGET, "w") as file:
        file.write(f"{{\n{cases}\n}}\n")


def main():
    with open(TARGET) as file:
        errors = json.load(file)
    for parent in sys.argv[1:]:
        for name in sorted(os.listdir(parent)):
            folder = os.path.join(parent, name)
            if os.path.isdir(os.path.join(folder, "adapter")) and os.path.exists(os.path.join(folder, "golden.safetensors")):
                print(name, flush=True)
                errors[name] = measure(folder)
                write(errors)


if __name__ == "__main__":
    main()
