"""kv-quality: scores against hand-worked cases, reading against a fresh context, types in order."""

import os
from pathlib import Path

import numpy as np
import pytest

from hetero.errors import ConfigError, EngineError, ModelError
from hetero.experiment.kv_quality.bench import KVQuality
from hetero.experiment.kv_quality.needles import needle_passages
from hetero.experiment.kv_quality.passages import (
    QUESTIONS_PER_LIST,
    Text,
    draws,
    recall_passages,
)
from hetero.experiment.kv_quality.reading import (
    CHUNK_TOKENS,
    branch_logits,
    open_context,
    read_context,
)
from hetero.experiment.kv_quality.reference import write_reference
from hetero.experiment.kv_quality.scoring import score
from hetero.experiment.recipe.recipe import Model as RecipeModel
from hetero.experiment.recipe.recipe import Quality, QualitySettings
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.shapes import Shape
from hetero.model.synth import MIN_VOCAB_SIZE, write_synthetic

SMALL = {"prompts": 1, "prompt_tokens": 400}
TEXT = "\n".join(f"amber fox {word} and the gilded needle of vienna" for word in range(300))


def say_nothing(line):
    pass


def recipe(**fields):
    fields = {"model": RecipeModel(demo=True)} | fields
    return Quality(name="kv", question="What does it cost?", figures={}, **fields)


@pytest.fixture(scope="module")
def bench():
    with KVQuality(recipe(), DEMO_MODEL_PATH, num_threads=1) as bench:
        yield bench


@pytest.fixture(scope="module")
def model():
    with Model(DEMO_MODEL_PATH) as model:
        yield model


def logits_of(*shares):
    return np.log(np.array(shares, np.float32))


def test_scores_are_those_worked_by_hand():
    # D(p || q) = 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2) = 1/4 ln 2 in the first row; in the second
    # both are the same up to a shift, which is no difference.
    p, q = logits_of([2, 1, 1], [5, 2, 1]), logits_of([1, 2, 1], [5, 2, 1]) + np.float32(3)
    found = score(p, q, [0, 0])
    assert found.kld == pytest.approx([np.log(2) / 4, 0], abs=1e-7)
    assert found.has_same_top.tolist() == [False, True]
    assert found.top_tokens.tolist() == [1, 0]
    assert found.nll == pytest.approx([np.log(4), np.log(8 / 5)], abs=1e-6)
    assert found.reference_nll == pytest.approx([np.log(2), np.log(8 / 5)], abs=1e-6)
    assert found.margin == pytest.approx([np.log(1 / 2), np.log(5 / 2)], abs=1e-6)


def test_logits_far_apart_neither_overflow_nor_vanish():
    p, q = np.array([[1000, 0]], np.float32), np.array([[0, 1000]], np.float32)
    assert score(p, q, [0]).kld == pytest.approx([1000])
    assert score(p, p, [1]).nll == pytest.approx([1000])


def test_many_rows_score_as_each_alone():
    p, q = np.random.default_rng(0).standard_normal((2, 70, 40), np.float32)
    right = list(range(40)) + list(range(30))
    together = score(p, q, right)
    alone = [score(p[row : row + 1], q[row : row + 1], right[row : row + 1]) for row in range(70)]
    assert together.kld == pytest.approx([one.kld[0] for one in alone], rel=1e-12)
    assert together.nll == pytest.approx([one.nll[0] for one in alone], rel=1e-12)


def test_a_prompt_is_a_chat_over_a_list_and_no_longer_than_asked(model):
    (passage,) = recall_passages(model, 1, 1024, draws(0, 0))
    assert len(passage.branches) == QUESTIONS_PER_LIST
    content = model.vocab.detokenize(passage.context)
    assert passage.context[0] == model.vocab.bos_token
    for branch in passage.branches:
        assert 1020 < len(passage.context) + branch.num_together <= 1024
        *line, end = branch.right_tokens
        assert f"{model.vocab.detokenize(line)}\n" in content
        assert end == model.vocab.eos_token
    again, other = (recall_passages(model, 1, 1024, draws(0, turn))[0] for turn in (0, 1))
    assert again == passage
    assert other.context != passage.context


def test_questions_behind_one_list_give_what_each_gives_in_a_fresh_cache(model):
    """Bit for bit, though the ones before have been there and gone."""
    (passage,) = recall_passages(model, 1, 600, draws(3, 0))
    q8_0 = kv_type("q8_0").ggml_id
    with open_context(
        model, [passage], k_ggml_type=q8_0, v_ggml_type=q8_0, num_threads=1
    ) as context:
        read_context(context, passage)
        found = [
            np.concatenate([rows.copy() for rows in branch_logits(context, passage, branch)])
            for branch in passage.branches[:3]
        ]
    config = ContextConfig(
        num_sequences=1,
        tokens_per_sequence=passage.num_tokens,
        unified=False,
        k_ggml_type=q8_0,
        v_ggml_type=q8_0,
        num_threads=1,
        batch_tokens=CHUNK_TOKENS,
    )
    branch = passage.branches[2]
    question, answer = branch.tokens[: branch.num_together], branch.tokens[branch.num_together :]
    with Context(model, config) as fresh:
        alone, position = [], 0
        chunks = [
            passage.context[first : first + CHUNK_TOKENS]
            for first in range(0, len(passage.context), CHUNK_TOKENS)
        ]
        for tokens in [*chunks, question, *([token] for token in answer[:-1])]:
            batch = Batch(CHUNK_TOKENS)
            batch.set_prompt(tokens, position, 0, want_last=True)
            fresh.decode(batch)
            position += len(tokens)
            alone.append(fresh.logits(1)[0].copy())
    np.testing.assert_array_equal(found[2], np.stack(alone[len(chunks) :]))


def test_an_unquantized_cache_differs_from_itself_by_nothing(bench):
    found = bench.measure(QualitySettings(k="f16", v="f16", **SMALL), 0, say_nothing)
    assert set(found.samples["kld"]) == {0.0}
    assert found.scalars["same_top"] == 1
    assert found.scalars["compared_positions"] == len(found.samples["kld"]) == 16
    assert found.scalars["kv_bytes_per_token"] == 1536


def test_fewer_bits_move_answers_further(bench):
    kld = {}
    for name in ("q8_0", "q4_0"):
        found = bench.measure(QualitySettings(k=name, v=name, **SMALL), 0, say_nothing)
        kld[name] = np.mean(found.samples["kld"])
        assert found.scalars["k_rotation"] == found.scalars["v_rotation"] == 64
    # Twenty times and more when the model was made (results/demo_model/recall.txt).
    assert 0 < 5 * kld["q8_0"] < kld["q4_0"] < 0.1
    assert found.scalars["kv_bytes_per_token"] == 432


def test_the_demo_model_recalls_and_every_question_is_on_record(bench):
    found = bench.measure(QualitySettings(k="q8_0", v="q4_0", **SMALL), 1, say_nothing)
    assert found.scalars["recall_share"] == 1
    assert found.samples["recall"] == [1.0] * 16
    assert min(found.samples["margin"]) > 1
    assert len(found.records) == 16
    for record in found.records:
        assert record["recall"]
        assert record["need"] == record["have"]
        assert len(record["need"].split()) == 3


def test_an_answer_that_is_wrong_is_counted(bench, monkeypatch):
    """Against tokens that no answer has, and which the model so cannot say."""
    from hetero.experiment.kv_quality import passages

    def other_values(*arguments, **keywords):
        task = recall(*arguments, **keywords)
        wrong = "tokyo" if task.value != "tokyo" else "oslo"
        return type(task)(
            content=task.content, key=task.key, value=wrong, answer=f"{task.key} {wrong}"
        )

    recall = passages.recall_prompt
    monkeypatch.setattr(passages, "recall_prompt", other_values)
    found = bench.measure(QualitySettings(**SMALL), 7, say_nothing)
    assert found.scalars["recall_share"] == 0
    assert max(found.samples["margin"]) < 0
    assert found.records[0]["have"] != found.records[0]["need"]


def test_arms_of_a_repetition_meet_the_same_prompts_and_another_repetition_others(bench):
    settings = QualitySettings(k="q4_0", v="q8_0", **SMALL)
    first, again = (bench.measure(settings, 0, say_nothing) for _ in range(2))
    other = bench.measure(settings, 1, say_nothing)
    assert first == again
    assert first.records[0]["prompt"] != other.records[0]["prompt"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"k": "q3_0"}, "KV type 'q3_0': need one of f16, bf16, q8_0"),
        ({"v": "f8"}, "KV type 'f8'"),
        ({"prompt_tokens": 10}, "prompt_tokens: need 11 or more, have 10"),
        ({"prompt_tokens": 9000}, "prompt_tokens: need at most 8192, the model's context"),
    ],
)
def test_settings_that_cannot_be_are_named(bench, settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        bench.measure(QualitySettings(**settings), 0, say_nothing)


def test_texts_are_scored_on_the_second_half_of_each_window(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    settings = {"prompts": 2, "prompt_tokens": 601}
    with KVQuality(recipe(texts=[str(path)]), DEMO_MODEL_PATH, num_threads=1) as bench:
        same = bench.measure(QualitySettings(**settings), 0, say_nothing)
        rough = bench.measure(QualitySettings(k="q4_0", v="q4_0", **settings), 0, say_nothing)
    assert set(same.samples["kld"]) == {0.0}
    assert same.scalars["perplexity_ratio"] == 1
    # 301 tokens in the second half; the last is followed by none.
    assert rough.scalars["compared_positions"] == len(rough.samples["kld"]) == 2 * 300
    assert rough.scalars["perplexity_ratio"] != 1
    assert rough.scalars["perplexity"] == pytest.approx(
        np.exp(np.mean([record["nll_mean"] for record in rough.records[-2:]]))
    )
    assert [record["prompt"].split(",")[0] for record in rough.records[-2:]] == ["text.txt"] * 2
    # The demo model is asked all the same.
    assert len(rough.samples["recall"]) == 32


def test_texts_too_short_or_unreadable_are_named(tmp_path):
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("a few words")
    latin.write_bytes("naïve".encode("latin-1"))
    with (
        KVQuality(recipe(texts=[str(short)]), DEMO_MODEL_PATH) as bench,
        pytest.raises(ConfigError, match="need 2 windows of 400 tokens, have 0"),
    ):
        bench.measure(QualitySettings(prompts=2, prompt_tokens=400), 0, say_nothing)
    with pytest.raises(ConfigError, match=r"latin\.txt: need UTF-8"):
        KVQuality(recipe(texts=[str(latin)]), DEMO_MODEL_PATH)
    with pytest.raises(ConfigError, match=r"none\.txt: can't read it: no such file"):
        KVQuality(recipe(texts=[str(tmp_path / "none.txt")]), DEMO_MODEL_PATH)


def test_codes_lie_in_the_text_and_questions_end_where_their_code_begins(model):
    tokens = model.vocab.tokenize(TEXT, add_special=False, parse_special=False)
    passages = needle_passages(model.vocab, [Text(name="t", tokens=tokens)], 6, 1200, draws(0, 0))
    assert [len(passage.branches) for passage in passages] == [4, 2]
    for passage in passages:
        content = model.vocab.detokenize(passage.context)
        assert passage.num_tokens <= 1200
        assert passage.context[0] == model.vocab.bos_token
        for branch in passage.branches:
            *_, question, answer = model.vocab.detokenize(branch.tokens).split("\n")
            code = model.vocab.detokenize(branch.right_tokens)
            assert len(code) == 6
            assert code.isdigit()
            assert f"\n{answer.removeprefix('Answer: ')}.\n" in content
            assert answer.endswith(code)
            assert question.split("the ")[-1].rstrip("?") in answer
    with pytest.raises(ConfigError, match="or more to hide 4 codes in text, have 300"):
        needle_passages(model.vocab, [Text(name="t", tokens=tokens)], 6, 300, draws(0, 0))
    with pytest.raises(ConfigError, match=r"texts: need one of \d+ tokens, have 100"):
        needle_passages(model.vocab, [Text(name="t", tokens=[9] * 100)], 6, 1200, draws(0, 0))


def synthetic(path, head_dim):
    shape = Shape(
        name="tiny",
        architecture="llama",
        num_layers=1,
        hidden_size=64,
        num_heads=2,
        num_kv_heads=2,
        head_dim=head_dim,
        ffn_size=64,
        vocab_size=MIN_VOCAB_SIZE,
        context_length=512,
        norm_eps=1e-5,
        rope_base=10_000.0,
        tied_embeddings=True,
    )
    return write_synthetic(shape, "f16", path)


def test_another_model_is_asked_for_codes_in_its_texts(tmp_path):
    path = synthetic(tmp_path / "tiny.gguf", 32)
    other = RecipeModel(file=str(path))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    with KVQuality(recipe(model=other, texts=[str(text)]), path) as bench:
        found = bench.measure(
            QualitySettings(k="q4_0", v="q4_0", prompts=1, prompt_tokens=512), 0, say_nothing
        )
    assert found.per_request == {"kld": [255]}
    assert found.scalars["compared_positions"] == len(found.samples["kld"]) == 255
    assert max(found.samples["kld"]) > 0
    assert found.samples["recall"] == [0]  # of random weights
    assert found.scalars["k_rotation"] == 0  # of heads of 32 none is rotated


def test_a_head_that_no_block_divides_is_named(tmp_path):
    path, text = synthetic(tmp_path / "tiny.gguf", 48), tmp_path / "text.txt"
    text.write_text(TEXT)
    with (
        KVQuality(recipe(model=RecipeModel(file=str(path)), texts=[str(text)]), path) as bench,
        pytest.raises(ModelError, match="V cache of type q8_0: need a head_dim divisible"),
    ):
        bench.measure(QualitySettings(v="q8_0", **SMALL), 0, say_nothing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_with_what_was_needed(model):
    passages = recall_passages(model, 1, 400, draws(0, 0))
    with pytest.raises(EngineError, match=r"need 0 MB for the logits .*: no space left on device"):
        write_reference(model, passages, 1, Path("/dev/full"))


def test_nothing_is_left_on_disk(bench):
    with KVQuality(recipe(), DEMO_MODEL_PATH, num_threads=1) as other:
        folder = Path(other._folder.name)
        other.measure(QualitySettings(**SMALL), 0, say_nothing)
        assert list(folder.iterdir())
    assert not folder.exists()
