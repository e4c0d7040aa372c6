#!/usr/bin/env python3
"""Makes golden cases: a small model with random weights, a PEFT adapter, and what transformers and PEFT compute on them in float64.

    python3 test/golden/generate.py OUTPUT_FOLDER [CASE ...]

Needs torch, transformers 5 and peft. See README.md beside this file for what a case holds.
"""
import json
import os
import re
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import adapters
from quantities import CURVE, PROMPT, Case, layer_of, opened

VOCABULARY, WIDTH = 96, 32
BASE = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SMALL = dict(vocab_size=256, hidden_size=64, intermediate_size=128)
FACTORS = dict(embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0)


def longrope(original):
    return dict(num_key_value_heads=1, head_dim=16, original_max_position_embeddings=original,
                rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, original_max_position_embeddings=original,
                                     short_factor=[1.0 + 0.1 * i for i in range(6)], long_factor=[1.5 + 0.5 * i for i in range(6)]))


# name: (model_type, changes to BASE, LoRA targets, target_parameters)
CASES = {
    "tiny-llama": ("llama", {}, ALL, []),
    "tiny-gemma": ("gemma", dict(head_dim=16), ALL, []),
    "tiny-gemma2": ("gemma2", dict(head_dim=16, num_hidden_layers=4, sliding_window=8, query_pre_attn_scalar=20, attn_logit_softcapping=5.0,
                                   final_logit_softcapping=3.0), ALL, []),
    "tiny-gemma3": ("gemma3_text", dict(head_dim=16, num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=20, rope_parameters=dict(
        full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0), sliding_attention=dict(rope_type="default", rope_theta=1e4))), ALL, []),
    "tiny-phi3": ("phi3", dict(sliding_window=16), FUSED, []),
    "tiny-phi3-short": ("phi3", longrope(128), FUSED, []),
    "tiny-phi3-long": ("phi3", longrope(16), FUSED, []),
    "tiny-cohere": ("cohere", dict(use_qk_norm=True, logit_scale=0.25), ALL, []),
    "tiny-cohere2": ("cohere2", dict(num_hidden_layers=4, sliding_window=8, logit_scale=0.25), ALL, []),
    "tiny-granite": ("granite", FACTORS, ALL, []),
    "tiny-olmo2": ("olmo2", {}, ALL, []),
    "tiny-olmo3": ("olmo3", dict(num_hidden_layers=4, sliding_window=8), ALL, []),
    "tiny-smollm3": ("smollm3", dict(num_hidden_layers=4), ALL, []),
    "tiny-mixtral": ("mixtral", dict(num_local_experts=6, num_experts_per_tok=3, output_router_logits=True, router_aux_loss_coef=0.1),
                     ["q_proj", "v_proj"], EXPERTS),
    "tiny-mixtral-down": ("mixtral", dict(num_local_experts=4), ["q_proj"], EXPERTS[1:]),
    "tiny-mixtral-stacked": ("mixtral", dict(num_local_experts=4), ["q_proj"], EXPERTS),
    "tiny-qwen3-moe": ("qwen3_moe", dict(head_dim=16, num_hidden_layers=3, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40, mlp_only_layers=[0],
                                         norm_topk_prob=False), ALL, []),
    "tiny-granite-moe": ("granitemoe", dict(num_local_experts=4, num_experts_per_tok=2, **FACTORS), ATTENTION, []),
    "tiny-glm4": ("glm4", dict(head_dim=16, partial_rotary_factor=0.5, attention_bias=True), ATTENTION + FUSED[2:], []),
    "tiny-seed-oss": ("seed_oss", dict(head_dim=16), ALL, []),
    "tiny-ernie": ("ernie4_5", dict(head_dim=16), ALL, []),
    "tiny-starcoder2": ("starcoder2", dict(use_bias=True, sliding_window=None), ATTENTION + ["c_fc", "c_proj"], []),
    "tiny-stablelm": ("stablelm", dict(partial_rotary_factor=0.25, use_qkv_bias=True), ALL, []),
    "olmo": ("olmo", SMALL, ALL, []),
    "phi": ("phi", dict(partial_rotary_factor=0.5, **SMALL), ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], []),
    "gpt-neox": ("gpt_neox", dict(rotary_pct=0.25, **SMALL), ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], []),
    "gpt2": ("gpt2", dict(vocab_size=256, n_embd=64, n_layer=2, n_head=2, n_positions=256), ["c_attn", "c_proj", "c_fc"], []),
    "falcon": ("falcon", dict(new_decoder_architecture=True, num_kv_heads=1, alibi=False, **SMALL),
               ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], []),
    "qwen2-moe": ("qwen2_moe", dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=96, shared_expert_intermediate_size=80, **SMALL), ATTENTION, []),
}

# Options of LoraConfig on models of few numbers: name: (model_type, changes to BASE and SLIM, LoRA targets, options).
SLIM = dict(hidden_size=16, intermediate_size=24)
ADAPTERS = {
    "dora": ("llama", {}, ALL, dict(use_dora=True, use_rslora=True, rank_pattern={"down_proj": 2, "layers.1.self_attn.q_proj": 6},
                                    alpha_pattern={".*mlp.*": 3})),
    "dora-bias": ("qwen2", {}, ["q_proj", "v_proj", "up_proj"], dict(use_dora=True, modules_to_save=["lm_head"], layers_to_transform=[1])),
    "dora-fused": ("phi3", dict(sliding_window=16), FUSED, dict(use_dora=True)),
    "dora-granite": ("granite", FACTORS, r".*\.(o|down|k)_proj", dict(use_dora=True)),
    "dora-nf4": ("llama", {}, ALL, dict(use_dora=True)),
    "lora-options": ("qwen2", dict(num_hidden_layers=3), ATTENTION + ["down_proj"], dict(
        bias="lora_only", rank_pattern={"self_attn.q_proj": 2, r"layers\.2\..*[kv]_proj": 3}, alpha_pattern={"o_proj": 5}, layers_to_transform=[0, 2],
        layers_pattern="layers", exclude_modules=r".*\.0\.mlp.*")),
    "lora-bias": ("gpt_neox", dict(rotary_pct=0.25), "all-linear", dict(bias="all", init_lora_weights=False)),
    "lora-starts": ("llama", dict(num_hidden_layers=1), ["q_proj", "up_proj", "down_proj"], {}),
    "dora-grouped": ("gpt_neox", dict(rotary_pct=0.25), ["query_key_value", "dense_4h_to_h"], dict(use_dora=True)),
}

# Made on request only: the engine does not support these yet.
OTHERS = {
    "tiny-gpt-oss": ("gpt_oss", dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16), ATTENTION, []),
    "tiny-deepseek-v2": ("deepseek_v2", dict(num_key_value_heads=2, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
                                             n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=24, first_k_dense_replace=1,
                                             n_group=1, topk_group=1, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0),
                         ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"], []),
}

def coarse(p):
    """Few distinct numbers, which pack well."""
    with torch.no_grad():
        step = 2.0 ** (p.detach().float().std().log2().round() - 2)
        return torch.round(p / step) * step


def build(kind, changes):
    """A model whose weights are bf16 numbers; norms and biases are not left at 1 and 0."""
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or "norm" in name:
                p.add_(0.1 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.5 if "embed" in name else p.shape[-1] ** -0.5))
    return model.to(torch.bfloat16)


def make(name, folder):
    torch.manual_seed(sum(map(ord, name)))
    options = {}
    if name in ADAPTERS:
        kind, changes, targets, options = ADAPTERS[name]
        changes, parameters = {**SLIM, **changes}, []
    else:
        kind, changes, targets, parameters = {**CASES, **OTHERS}[name]
    # Experts are published one by one; without conversion a file has them stacked, as they are in memory.
    model = build(kind, changes)
    if name in ADAPTERS:
        for n, p in model.named_parameters():
            p.data.copy_(adapters.to_nf4(p) if name.endswith("nf4") and "proj" in n else coarse(p))
    model.save_pretrained(folder, save_original_format="stacked" not in name)
    base = opened(folder, torch.bfloat16)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, target_parameters=parameters, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter_name, p in adapted.named_parameters():
            if "lora_B" in parameter_name:
                p.copy_(0.05 * torch.randn_like(p))
            if "magnitude" in parameter_name:
                p.mul_(1 + 0.1 * torch.randn_like(p))
            if name in ADAPTERS and p.requires_grad:
                p.copy_(coarse(p))
    adapted.save_pretrained(os.path.join(folder, "adapter"))

    ids = torch.randint(3, VOCABULARY, (2, WIDTH))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    ids[1, 25:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :8] = -100
    curve_ids = torch.randint(3, VOCABULARY, (4, 2, WIDTH))
    chosen, rejected = torch.randint(3, VOCABULARY, (2, WIDTH)), torch.randint(3, VOCABULARY, (2, WIDTH))
    rejected[:, :PROMPT] = chosen[:, :PROMPT]
    inputs = dict(input_ids=ids, attention_mask=mask, labels=labels, curve_input_ids=curve_ids, dpo_chosen_ids=chosen, dpo_rejected_ids=rejected)

    case = Case(folder, inputs)
    first, last = 0, case.config.num_hidden_layers - 1
    kept = lambda quantities, *layers: {
        key: value for key, value in quantities.items() if not re.match(r"(lora_grad|dropout_grad|dpo_grad|curve_final)_row_norm\.", key)
        and ("." not in key or key.startswith("full_grad.") or layer_of(key) in layers)}
    out = {**inputs, **kept(case.model_quantities(), last, None), "greedy_ids": case.greedy(), **kept(case.adapter_quantities(), first, last, None)}
    if name in ADAPTERS:
        out.update(kept(case.dropout_quantities(), *range(last + 1)))
    if "starts" in name:
        out.update(adapters.starts(opened(folder, torch.float32), targets, 4, 8))
    out.update({key: value for key, value in kept(case.preference_quantities(), last).items() if "." not in key or targets[0] in key})
    out.update(kept(case.curve_quantities(), last))

    if name in ADAPTERS:  # what the adapter decides
        out = {key: value for key, value in out.items() if not re.match("full_|dpo_|greedy", key)}
        # A bias of keys that no rotation follows has no gradient: Adam makes steps of its rounding errors.
        out.pop("curve_final.gpt_neox.layers.1.attention.query_key_value.bias", None)
    tensors = {key: (value.detach().to(torch.int64 if not value.is_floating_point() else torch.float32)).contiguous() for key, value in out.items()}
    metadata = {"source": f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}; float64 eager CPU",
                "curve": json.dumps(CURVE)}
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata=metadata)


def main():
    target, *names = sys.argv[1:]
    for name in names or [*CASES, *ADAPTERS]:
        folder = os.path.join(target, name)
        os.makedirs(folder, exist_ok=True)
        try:
            make(name, folder)
            print(name, "made")
        except Exception as error:  # one family that this transformers does not have must not stop the others
            print(name, "failed:", type(error).__name__, error)


if __name__ == "__main__":
    main()
