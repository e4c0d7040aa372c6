#!/usr/bin/env python3
"""Writes which modules PEFT adapts, with rank and scale, and the groups of its LoRA+ optimizer, for many options of LoraConfig.

    python3 test/golden/targets.py test/fixtures/peft/targets.json
"""
import json
import sys

import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=64)
MODELS = {
    "llama": ("llama", SMALL),
    "qwen2": ("qwen2", SMALL),
    "phi3": ("phi3", dict(SMALL, pad_token_id=0)),
    "gpt2": ("gpt2", dict(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=64)),
    "gpt_neox": ("gpt_neox", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
}
CASES = [
    ("llama", dict(target_modules=["q_proj", "v_proj"])),
    ("llama", dict(target_modules="all-linear")),
    ("gpt2", dict(target_modules="all-linear")),
    ("gpt_neox", dict(target_modules="all-linear")),
    ("phi3", dict(target_modules="all-linear", exclude_modules=["o_proj"])),
    ("llama", dict(target_modules=r".*\.(q|up)_proj")),
    ("llama", dict(target_modules=r"model\.layers\.[02]\..*_proj")),
    ("llama", dict(target_modules=["self_attn.q_proj", "model.layers.1.mlp.up_proj"], layers_to_transform=[0, 2])),
    ("llama", dict(target_modules=["down_proj", "o_proj"], layers_to_transform=1)),
    ("gpt2", dict(target_modules=["c_attn", "mlp.c_proj"], layers_to_transform=[2], layers_pattern="h")),
    ("gpt2", dict(target_modules=["c_fc"], layers_to_transform=[0, 1], layers_pattern=["layers", "h"])),
    ("llama", dict(target_modules=["q_proj", "k_proj", "mlp.down_proj"], exclude_modules=["layers.0.self_attn.q_proj", "down_proj"])),
    ("llama", dict(target_modules="all-linear", exclude_modules=r".*\.layers\.(0|1)\..*|.*self_attn.*")),
    ("llama", dict(target_modules=["q_proj", "k_proj", "up_proj"], rank_pattern={"q_proj": 2, r"layers\.1\..*": 6},
                   alpha_pattern={"self_attn.k_proj": 3, r".*\.2\..*": 10})),
    ("llama", dict(target_modules=["q_proj", "down_proj"], use_rslora=True, rank_pattern={"^model.layers.0.mlp.down_proj": 8, "proj": 1})),
    ("qwen2", dict(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], bias="lora_only", use_dora=True, modules_to_save=["lm_head"])),
    ("gpt_neox", dict(target_modules=["dense"], bias="all")),
]
RATIO, RATE, DECAY = 16.0, 1e-3, 0.1


def file_name(name):
    """As the tensor is called in an adapter file, or in the base model."""
    name = name.replace("base_model.model.", "", 1).replace(".modules_to_save", "").replace(".default", "").replace(".base_layer", "")
    return name.replace("magnitude_vector.weight", "magnitude_vector")


def main():
    found = []
    for model_name, options in CASES:
        kind, changes = MODELS[model_name]
        config = AutoConfig.for_model(kind, **changes)
        model = AutoModelForCausalLM.from_config(config)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
        modules = {name.replace("base_model.model.", "", 1): [module.r["default"], round(module.scaling["default"], 9)]
                   for name, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
        names = {id(p): file_name(n) for n, p in adapted.named_parameters()}
        optimizer = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY)
        # Only what is not as A and B always are: [rate as a multiple, decays].
        groups = {names[id(p)]: [round(group["lr"] / RATE), group["weight_decay"] > 0] for group in optimizer.param_groups for p in group["params"]}
        ordinary = all(value == ([16, True] if "lora_B" in name else [1, True]) for name, value in groups.items() if "lora_A" in name or "lora_B" in name)
        assert ordinary
        special = {name: value for name, value in groups.items() if "lora_A" not in name and "lora_B" not in name}
        values = {key: value for key, value in config.to_dict().items() if key in (*changes, "model_type", "tie_word_embeddings", "n_inner")}
        values["architectures"] = [type(model).__name__]
        found.append(dict(config=values, options=options, modules=modules, loraplus=special))
    with open(sys.argv[1], "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in found) + "\n]\n")


if __name__ == "__main__":
    main()
