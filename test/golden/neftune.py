#!/usr/bin/env python3
"""Writes the largest noise that transformers' NEFTune lets into the first layer, for models that treat their embedding differently.

    python3 test/golden/neftune.py test/fixtures/peft/neftune.json
"""
import json
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.neftune import activate_neftune

ALPHA, ROWS, WIDTH = 5.0, 16, 32
SMALL = dict(vocab_size=32, hidden_size=64, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
             max_position_embeddings=64)
MODELS = {"llama": {}, "gemma": {}, "gemma2": {}, "gemma3_text": {}, "granite": dict(embedding_multiplier=3.0)}


def main():
    torch.manual_seed(1)
    found = []
    for kind, changes in MODELS.items():
        config = AutoConfig.for_model(kind, **{**SMALL, **changes})
        model = AutoModelForCausalLM.from_config(config).train()
        model.get_input_embeddings().weight.data.zero_()
        activate_neftune(model, ALPHA)
        seen = []
        model.model.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
        model(input_ids=torch.ones(ROWS, WIDTH, dtype=torch.long))
        values = {key: value for key, value in config.to_dict().items() if key in (*SMALL, *changes, "model_type", "residual_multiplier", "logits_scaling",
                                                                                    "attention_multiplier", "query_pre_attn_scalar", "sliding_window")}
        values["architectures"] = [type(model).__name__]
        found.append(dict(config=values, alpha=ALPHA, tokens=WIDTH, largest=seen[0].abs().max().item(), square=seen[0].pow(2).mean().item()))
    with open(sys.argv[1], "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in found) + "\n]\n")


if __name__ == "__main__":
    main()
