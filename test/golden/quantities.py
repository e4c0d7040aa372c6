"""What transformers and PEFT compute on a case: logits, losses, gradients, a short training, in float64 or in 16 bits."""
import functools
import os
import re

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import adapters

CURVE = dict(rate=5e-3, warmup=2, steps=12, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, max_norm=1.0)
BETA, PROMPT = 0.1, 5
LOSS_SCALE = 2.0 ** 16


def opened(folder, dtype=torch.float64):
    """In `dtype` from the start: a model that was bf16 first keeps what it rounded then (Gemma's factor of the embedding).

    Grouped products of experts exist in float32 and below only; a loop over the experts computes in any type.
    """
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()


def load_adapter(folder, base=None, dtype=torch.float64):
    """The model with its adapter, all in `dtype`; the model comes from `base` where that is another folder."""
    model = peft.PeftModel.from_pretrained(opened(base or folder, dtype), os.path.join(folder, "adapter"), is_trainable=True,
                                           autocast_adapter_dtype=False).eval()
    # What only the model uses stays as it is: frequencies of the rotation are kept in fp32.
    return model.double() if dtype == torch.float64 else model


def token_nll(logits, ids):
    """In fp32 at least, as the losses of transformers are."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]


def row_norm(t):
    return t.norm(dim=-1)


def layer_of(name):
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return None if found is None else int(found.group(1))


def trainable(model):
    for name, p in model.named_parameters():
        if p.requires_grad:
            name = name.replace("base_model.model.", "", 1).replace(".modules_to_save", "").replace(".default", "")
            yield re.sub(r"\.base_layer(?=\.(weight|bias)$)", "", name).replace("magnitude_vector.weight", "magnitude_vector"), p


def gradients(loss, parameters):
    """One for each parameter, in fp32 at least. In fp16 the loss is scaled by the largest power of 2 that overflows nowhere."""
    scale = LOSS_SCALE if any(p.dtype == torch.float16 for p in parameters) else 1.0
    while True:
        found = torch.autograd.grad(loss * scale, parameters, retain_graph=True)
        if scale == 1 or all(torch.isfinite(g).all() for g in found):
            return [g.to(torch.promote_types(g.dtype, torch.float32)) / scale for g in found]
        scale /= 2


class Case:
    """Inputs of a case (`input_ids`, `labels`, …: see README.md) and the model that is in `folder`, or in `base`."""

    def __init__(self, folder, inputs, dtype=torch.float64, base=None, embedding_rate=None):
        self.folder, self.inputs, self.dtype = folder, inputs, dtype
        self.base, self.embedding_rate = base or folder, embedding_rate
        self.ids, self.mask, self.labels = inputs["input_ids"], inputs.get("attention_mask"), inputs["labels"]
        self.config = AutoConfig.from_pretrained(self.base)
        self.balance = bool(getattr(self.config, "output_router_logits", False))
        self.factor = getattr(self.config, "router_aux_loss_coef", 0.0) if self.balance else 0.0

    def plain(self):
        return opened(self.base, self.dtype)

    def adapted(self):
        return load_adapter(self.folder, self.base, self.dtype)

    @functools.cached_property
    def still(self):
        """The adapted model, for what does not change it."""
        return self.adapted()

    def forward(self, model, tokens, attention=None):
        result = model(input_ids=tokens, attention_mask=attention)
        return result.logits, (result.aux_loss if self.balance else None)

    def loss(self, model):
        """Logits and losses (0 where not labelled), their mean over labelled tokens, the balance loss, and what is trained on:
        with the routers' balance loss where the config asks for it."""
        logits, aux = self.forward(model, self.ids, self.mask)
        scored = self.labels[:, 1:] != -100
        nll = token_nll(logits, self.ids) * scored
        loss = nll.sum() / scored.sum()
        visible = logits if self.mask is None else logits * self.mask[..., None]
        return visible, nll, loss, aux, self.whole(loss, aux)

    def whole(self, loss, aux):
        return loss if aux is None else loss + self.factor * aux

    def model_quantities(self):
        """Of the model without its adapter, all parameters trained."""
        model = self.plain()
        out = {}
        out["logits"], out["token_nll"], out["loss"], _, trained = self.loss(model)
        names, parameters = zip(*model.named_parameters())
        squares = 0.0
        for name, p, grad in zip(names, parameters, gradients(trained, parameters)):
            squares += (grad ** 2).sum()
            out[f"full_grad.{name}" if p.ndim == 1 else f"full_grad_row_norm.{name}"] = grad if p.ndim == 1 else row_norm(grad)
        out["full_grad_norm"] = squares.sqrt()
        return out

    def greedy(self, prompt=8):
        model = self.plain()
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            return model.generate(self.ids[:1, :prompt], attention_mask=torch.ones(1, prompt, dtype=torch.int64),
                                  max_new_tokens=self.ids.shape[1] - prompt, do_sample=False)[0]

    def parameter_gradients(self, prefix, model, loss):
        names, parameters = zip(*trainable(model))
        found = dict(zip(names, gradients(loss, parameters)))
        return {**{f"{prefix}.{name}": grad for name, grad in found.items()},
                **{f"{prefix}_row_norm.{name}": row_norm(grad) for name, grad in found.items() if grad.ndim > 1}}

    def adapter_quantities(self):
        model = self.still
        logits, _, loss, aux, trained = self.loss(model)
        return {"lora_logits": logits, "lora_loss": loss, **({} if aux is None else {"router_aux_loss": aux}),
                **self.parameter_gradients("lora_grad", model, trained)}

    def balance_loss(self):
        """Of the routers, where the config does not ask for it."""
        with torch.no_grad():
            return self.still(input_ids=self.ids, attention_mask=self.mask, output_router_logits=True).aux_loss

    def dropout_quantities(self):
        model = adapters.with_dropout(self.adapted())
        _, _, loss, _, _ = self.loss(model)
        return {"dropout_loss": loss, **self.parameter_gradients("dropout_grad", model, loss)}

    def preference_quantities(self):
        model = self.still
        chosen, rejected = self.inputs["dpo_chosen_ids"], self.inputs["dpo_rejected_ids"]
        logp = lambda tokens: -token_nll(self.forward(model, tokens)[0], tokens)[:, PROMPT - 1:].sum(-1)
        with torch.no_grad(), model.disable_adapter():
            reference = logp(chosen), logp(rejected)
        policy = logp(chosen), logp(rejected)
        loss = -torch.nn.functional.logsigmoid(BETA * ((policy[0] - policy[1]) - (reference[0] - reference[1]))).mean()
        return {"dpo_policy_chosen_logps": policy[0], "dpo_policy_rejected_logps": policy[1], "dpo_ref_chosen_logps": reference[0],
                "dpo_ref_rejected_logps": reference[1], "dpo_loss": loss, **self.parameter_gradients("dpo_grad", model, loss)}

    def curve_quantities(self):
        """In 16 bits the model computes with copies of parameters that are kept, and updated, in fp32."""
        model = self.adapted()
        used = dict(trainable(model))
        kept = used if self.dtype == torch.float64 else dict(trainable(load_adapter(self.folder, self.base, torch.float32)))
        # As transformers: biases do not decay. Embeddings and heads that are saved whole may have a rate of their own.
        groups = {}
        for name, p in kept.items():
            rate = self.embedding_rate if self.embedding_rate is not None and "lora_" not in name else CURVE["rate"]
            groups.setdefault((rate, 0.0 if name.endswith("bias") else CURVE["weight_decay"]), []).append(p)
        optimizer = torch.optim.AdamW([dict(params=params, rate=rate, weight_decay=decay) for (rate, decay), params in groups.items()],
                                      lr=CURVE["rate"], betas=CURVE["betas"], eps=CURVE["eps"])
        losses, norms, rates = [], [], []
        for step in range(CURVE["steps"]):
            warmup, steps = CURVE["warmup"], CURVE["steps"]
            share = step / warmup if step < warmup else (steps - step) / (steps - warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * share
            tokens = self.inputs["curve_input_ids"][step % 4]
            logits, aux = self.forward(model, tokens)
            loss = token_nll(logits, tokens).mean()
            for p, grad in zip(kept.values(), gradients(self.whole(loss, aux), list(used.values()))):
                p.grad = grad
            norms.append(torch.nn.utils.clip_grad_norm_(kept.values(), CURVE["max_norm"]).item())
            optimizer.step()
            with torch.no_grad():
                for name, p in used.items():
                    p.copy_(kept[name])
            losses.append(loss.item())
            rates.append(CURVE["rate"] * share)
        out = dict(curve_loss=torch.tensor(losses), curve_grad_norm=torch.tensor(norms), curve_lr=torch.tensor(rates))
        for name, p in kept.items():
            out[f"curve_final.{name}"] = p.detach().clone()
            if p.ndim > 1:
                out[f"curve_final_row_norm.{name}"] = row_norm(p.detach())
        with torch.no_grad():
            out["curve_final_logits"] = self.forward(model, self.ids[:1])[0]
            out["merged_logits"] = self.forward(model.merge_and_unload(), self.ids[:1])[0]
        return out
