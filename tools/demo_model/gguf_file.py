"""A trained network to a GGUF file: f16 weights, the vocabulary, the chat template."""

from pathlib import Path

import gguf
import numpy as np

from demo_model.network import DemoNetwork
from demo_model.tasks import MAX_POSITION
from demo_model.vocabulary import BOS, BYTES, CHAT_TEMPLATE, CONTROLS, END, MERGES, TOKENS, WORDS


def write_gguf(network: DemoNetwork, path: Path) -> None:
    shape = network.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("hetero demo")
    writer.add_description("Recalls a value from its two-word key among many in the prompt.")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(MAX_POSITION)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    _add_tokenizer(writer)
    for name, weight in network.state_dict().items():
        # llama.cpp wants norms in f32; it takes the output matrix from the embedding when absent.
        dtype = np.float32 if "norm" in name else np.float16
        writer.add_tensor(name, weight.numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    kinds = (
        [gguf.TokenType.NORMAL] * len(BYTES)
        + [gguf.TokenType.CONTROL] * len(CONTROLS)
        + [gguf.TokenType.USER_DEFINED] * len(WORDS)
    )
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
