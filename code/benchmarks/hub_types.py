"""Test which model types of the installed transformers can serve as encoders, using a tiny random network for each.

    python code/benchmarks/hub_types.py [--kind audio vision text] [--types clap pe_audio ...] [--json FILE]

Each type is tested as a user would use it: a folder with its configuration, random weights and its processor is passed
to the encoder of `prepare.py features`. The output is one line per type, with the width of its output or the reason why
it cannot serve. Networks have few layers and small widths if the type allows it. The complete sweep takes about half an
hour on one core.
"""

import json
import logging
import re
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.auto import (
    configuration_auto,
    feature_extraction_auto,
    image_processing_auto,
    modeling_auto,
    tokenization_auto,
)

from cmg.extract import hub
from cmg.utils.errors import InputError, Parser, run

PROCESSORS = {"audio": feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
              "vision": image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
              "text": tokenization_auto.TOKENIZER_MAPPING_NAMES}
LARGEST = 100_000_000               # maximum number of parameters
OPTIONS = {"clap": {"truncation": "rand_trunc"}}         # if the defaults of a processor and its network differ
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "barks"]
# Integers of a configuration, by name -> replacement value; the second table is tried if the first one fails.
LAYERS = {r"(num_)?(n_|encoder_|decoder_|hidden_|text_|audio_|vision_|conformer_)*(layers?|blocks)(_count)?|depth|"
          r"num_(encoder|decoder)_layers|n_layer": 2,
          r"vocab_size|.*_vocab_size": 64, r".*num_(local_)?experts|n_routed_experts": 2,
          r"num_experts_per_tok|top_k": 1}
WIDTHS = {r"hidden_size|d_model|embed_dim|embed_size|n_embd|dim|encoder_hidden_size": 32,
          r"(num_|n_)?(encoder_|decoder_)?(attention_)?heads?|num_key_value_heads|n_head": 2, r"head_dim": 16,
          r"(moe_)?intermediate_size|(encoder_|decoder_)?ffn_dim|d_ff|mlp_dim": 64, **LAYERS}


def shrink(config, table):
    """Set the integers of a configuration and its nested ones from a table; lists of layers are reduced to one each."""
    for name, value in vars(config).copy().items():
        if isinstance(value, transformers.PretrainedConfig):
            shrink(value, table)
        elif type(value) is int:
            new = next((new for pattern, new in table.items() if re.fullmatch(pattern, name)), value)
            setattr(config, name, min(value, new))
        elif name == "depths" and isinstance(value, (list, tuple)):
            setattr(config, name, [1] * len(value))
        elif name == "layer_types" and isinstance(value, list):
            setattr(config, name, value[:2])
    for number, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")):
        if getattr(config, name, None) is not None:
            setattr(config, name, min(number, 2))


def rebuilt(config):
    """A configuration rebuilt from the values of another, so that its class recomputes derived values."""
    values = config.to_diff_dict()
    for name in ("out_features", "out_indices", "_out_features", "_out_indices", "stage_names", "pooler_output_size",
                 "model_type", "transformers_version", "layer_types"):
        values.pop(name, None)
    return type(config)(**values)


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
                                         eos_token="</s>").save_pretrained(folder)


def processor_of(model_type, kind, config):
    """The type's own processor with its defaults, and as many mel bands as the network expects."""
    names = PROCESSORS[kind][model_type]
    names = names.values() if isinstance(names, dict) else names if isinstance(names, tuple) else (names,)
    name = next(name for name in reversed(list(names)) if name)
    options = OPTIONS.get(model_type, {})
    bands = getattr(getattr(config, "audio_config", config), "num_mel_bins", None)
    if name == "WhisperFeatureExtractor" and bands:
        options = {"feature_size": bands}
    return getattr(transformers, name)(**options)


def serve(model_type, kind, table, folder):
    """Width of the vectors of a tiny network of the type."""
    config = configuration_auto.CONFIG_MAPPING[model_type]()
    shrink(config, table)
    with suppress(Exception):           # if the class rejects its own values, keep them
        config = rebuilt(config)
    with torch.device("meta"):
        count = sum(tensor.numel() for tensor in transformers.AutoModel.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:,.0f} million parameters, too large to build")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    if kind == "text":
        save_tokenizer(folder)
    else:
        processor_of(model_type, kind, config).save_pretrained(folder)
    device = torch.device("cpu")
    if kind == "audio":
        encoder = hub.HubSound(folder, device)
        noise = np.random.default_rng(0).integers(-3000, 3000, (16000, 1)).astype(np.int16)
        result = encoder.encode([noise, noise[::-1]], 16000)
    elif kind == "vision":
        encoder = hub.HubPictures(folder, device, "vector")
        frames = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3)).astype(np.uint8)
        result = encoder.encode([encoder.prepare(frame) for frame in frames])
    else:
        result = hub.HubText(folder, device).encode(["a dog", "a dog barks"])[1][1]
    if not np.isfinite(result).all():
        raise ValueError("output is not finite")
    return result.shape[-1]


def attempt(model_type, kind):
    """(width, "") or (None, why it cannot serve)."""
    reasons = []
    for table in (WIDTHS, LAYERS):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return serve(model_type, kind, table, folder), ""
            except InputError as error:
                reasons.insert(0, str(error).replace(folder, model_type))
            except Exception as error:      # noqa: BLE001   a configuration that these sizes do not fit, a package
                reasons.append(f"not built: {type(error).__name__}: {' '.join(str(error).split())[:140]}")
    return None, reasons[0]


def types_of(kind):
    return sorted(PROCESSORS[kind].keys() & modeling_auto.MODEL_MAPPING_NAMES.keys())


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=tuple(PROCESSORS), default=list(PROCESSORS))
    parser.add_argument("--types", nargs="+", default=None, help="model types (default: all of the kind)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    opts = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = {}
    for kind in opts.kind:
        known = types_of(kind)
        for model_type in opts.types or known:
            if model_type not in known:
                raise InputError(f"--types {model_type}: no {kind} type of transformers {transformers.__version__}; "
                                 f"{', '.join(known)[:200]} ...; correct it")
            width, reason = found[f"{kind} {model_type}"] = attempt(model_type, kind)
            print(f"{kind:6} {model_type:32} {width or reason}", flush=True)
        served = [key for key, (width, _) in found.items() if width and key.startswith(kind)]
        print(f"{kind}: {len(served)} of {len(opts.types or known)} types serve", flush=True)
    if opts.json:
        opts.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    run(main)
