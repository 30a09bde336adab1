import pytest

from hetero.errors import ConfigError
from hetero.model.shapes import SHAPES, parse_shape

# What the safetensors of each release add up to, as the model hub shows it (tied weights once).
PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
}


def test_every_shape_has_its_published_number_of_parameters():
    assert {name: shape.num_parameters for name, shape in SHAPES.items()} == PUBLISHED_PARAMETERS


@pytest.mark.parametrize(
    ("text", "name", "quant"),
    [
        ("llama-3.1-8b-q4_k_m", "llama-3.1-8b", "q4_k_m"),
        ("llama-3.1-8b-q4_k", "llama-3.1-8b", "q4_k"),
        ("Qwen3-30B-A3B-Q8_0", "qwen3-30b-a3b", "q8_0"),
        ("qwen2.5-0.5b-bf16", "qwen2.5-0.5b", "bf16"),
        ("mistral-7b", "mistral-7b", "q4_0"),
    ],
)
def test_a_name_is_a_shape_and_a_quant(text, name, quant):
    assert parse_shape(text) == (SHAPES[name], quant)


def test_an_unknown_shape_lists_near_ones():
    with pytest.raises(ConfigError, match=r"'llama-3.1-9b': no such shape, near: llama-3\.1-8b"):
        parse_shape("llama-3.1-9b")
    with pytest.raises(ConfigError, match=r"near: llama-2-13b, .*tinyllama-1\.1b"):
        parse_shape("???")


def test_an_unknown_quant_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown quant 'q3_k', have f16, bf16, q8_0, q4_0"):
        parse_shape("qwen3-8b-q3_k")
