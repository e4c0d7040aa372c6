#!/usr/bin/env python3
"""What torch's GradScaler, AdamW, gradient clip and a linear schedule make of a short run with chosen overflows, in float32.

    python3 test/golden/gradScaler.py engine/starter test/fixtures/engine/gradScaler.json

Needs torch, transformers 5 and peft. test/engine/lossScale.test.ts trains the same batches from the same adapter.
"""
import base64
import json
import math
import sys

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

TOKENS, ROWS = 24, 2
OVERFLOW = 2.0**121
SETTINGS = dict(initial=65536, growthInterval=3, rate=1e-2, warmup=2, totalSteps=12, maxNorm=0.3)
WEIGHTS = [1, OVERFLOW, 1, 1, 1, OVERFLOW, OVERFLOW, 1, 1, 1, 1]


def main(folder, target):
    torch.use_deterministic_algorithms(True)
    with open(f"{folder}/fables.jsonl") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
    batches = [[tokenizer(texts[step * ROWS + row]).input_ids[:TOKENS] for row in range(ROWS)] for step in range(len(WEIGHTS))]
    base = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32, attn_implementation="eager")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            layer, b = int(name.split(".layers.")[1].split(".")[0]), "lora_B" in name
            p.copy_(torch.tensor([0.05 * math.sin(1 + 3 * i + 7 * (2 * layer + b)) for i in range(p.numel())], dtype=torch.float64).reshape(p.shape))
    optimizer = torch.optim.AdamW(trained.values(), lr=SETTINGS["rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, SETTINGS["warmup"], SETTINGS["totalSteps"])
    scaler = torch.amp.GradScaler("cpu", init_scale=SETTINGS["initial"], growth_interval=SETTINGS["growthInterval"])
    out = dict(SETTINGS, weights=WEIGHTS, ids=batches, skipped=[], scales=[], rates=[], losses=[], norms=[])
    for step, weight in enumerate(WEIGHTS):
        optimizer.zero_grad()
        total = 0.0
        for ids in batches[step]:
            row = torch.tensor([ids])
            logits = model(row).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")
            loss = (nll * (weight / (ROWS * (TOKENS - 1)))).sum()
            total += loss.item()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), SETTINGS["maxNorm"]).item()
        out["rates"].append(optimizer.param_groups[0]["lr"])
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped = scaler.get_scale() < before  # as accelerate tells it
        if not skipped:
            schedule.step()
        out["skipped"].append(skipped)
        out["scales"].append(int(scaler.get_scale()))
        out["losses"].append(total)
        out["norms"].append(norm if math.isfinite(norm) else None)
    encode = lambda p: base64.b64encode(p.detach().numpy().tobytes()).decode()  # little-endian float32
    out["adapter"] = {name.removeprefix("base_model.model.").replace(".default", ""): encode(p) for name, p in trained.items()}
    with open(target, "w") as file:
        file.write("{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in out.items()) + "\n}\n")


main(*sys.argv[1:])
