"""The decode engine against a bare llama.cpp loop, and against every order of events."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from llama_reference import Reference, random_prompt
from tiny_models import write_tiny_model

from hetero.decode.engine import Admitted, DecodeConfig, DecodeEngine
from hetero.decode.sequence import Job
from hetero.errors import EngineError, PeerError, PlanError
from hetero.kv.layout import kv_layout
from hetero.messages import Failed, Finished, Generated, Joined, Sampling, Token

GREEDY = Sampling(temperature=0, ignore_eos=True)
LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="q8_0"
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf", weight_type="f32")


def new_engine(path, **options):
    defaults = {"num_slots": 4, "context_tokens": 512, "num_threads": 1, "chunk_tokens": 64}
    return DecodeEngine(path, LAYOUT, DecodeConfig(**defaults | options))


@pytest.fixture(params=[False, True], ids=["streams", "unified"])
def engine(request, model_path):
    engine = new_engine(model_path, unified=request.param)
    yield engine
    engine.close()


def local_job(request_id, prompt, max_tokens, **options):
    return Job(
        request_id=request_id,
        num_prompt_tokens=len(prompt),
        max_tokens=max_tokens,
        num_choices=options.pop("num_choices", 1),
        sampling=options.pop("sampling", GREEDY),
        prompt=tuple(prompt),
    )


def wire_job(request_id, num_prompt_tokens, max_tokens, **options):
    job = local_job(request_id, [0] * num_prompt_tokens, max_tokens, **options)
    return replace(job, prompt=None)


def run(engine, events=()):
    """Step until nothing is left to do; all events."""
    events = list(events)
    while engine.has_work:
        events += engine.step()
    return events


def texts(events):
    """(request, choice) -> generated tokens, checked to be consecutive."""
    generated = {}
    for event in events:
        for token in event.tokens if isinstance(event, Generated) else ():
            tokens = generated.setdefault((token.request_id, token.choice), [])
            assert token.index == len(tokens)
            tokens.append(token.token)
    return generated


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def read_elsewhere(path, prompt, num_streams, steps=20):
    """(state blob, greedy tokens) of a prompt, by llama.cpp alone."""
    with Reference(
        path,
        k_type="q8_0",
        v_type="q8_0",
        unified=num_streams == 1,
        num_sequences=num_streams,
        context_tokens=512,
        chunk_tokens=64,
    ) as alone:
        logits = alone.prefill(prompt)
        blob = alone.context.export_sequence(0)
        return blob, alone.greedy(logits, len(prompt), steps)[0]


def streams(engine):
    return engine.context.config.num_streams


def test_a_local_prompt_continues_as_llama_alone_does(engine, model_path):
    prompt = random_prompt(200)
    _, expected = read_elsewhere(model_path, prompt, streams(engine))
    engine.submit(local_job("a", prompt, 20))
    events = run(engine)
    assert texts(events) == {("a", 0): expected}
    assert of(Finished, events) == [Finished(request_id="a", choice=0, reason="length")]
    assert engine.kv_bytes_held == 0


def test_an_arrived_state_continues_as_llama_alone_does(engine, model_path):
    prompt = random_prompt(150)
    blob, expected = read_elsewhere(model_path, prompt, streams(engine))
    engine.submit(wire_job("a", len(prompt), 20))
    [admitted] = engine.step()
    assert isinstance(admitted, Admitted)
    events = engine.join("a", blob, (Token("a", 0, 0, expected[0]),))
    events = run(engine, events)
    assert texts(events) == {("a", 0): expected}
    assert len(of(Joined, events)) == 1


def test_sequences_that_come_and_go_do_not_disturb_each_other(engine, model_path):
    prompts = {f"r{i}": random_prompt(20 + 37 * i, seed=i) for i in range(7)}
    lengths = {name: 5 + 6 * i for i, name in enumerate(prompts)}
    for name, prompt in prompts.items():
        engine.submit(local_job(name, prompt, lengths[name]))
    events = run(engine)
    for name, prompt in prompts.items():
        _, expected = read_elsewhere(model_path, prompt, streams(engine), lengths[name])
        assert texts(events)[name, 0] == expected, name
    assert engine.kv_bytes_held == 0


@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_a_gap_left_by_a_sequence_changes_nothing_for_the_others(engine, model_path, leaving):
    prompts = {f"r{i}": random_prompt(60, seed=i) for i in range(4)}
    for i, (name, prompt) in enumerate(prompts.items()):
        engine.submit(local_job(name, prompt, 12 if i == leaving else 30))
    events = run(engine)
    for i, (name, prompt) in enumerate(prompts.items()):
        _, expected = read_elsewhere(
            model_path, prompt, streams(engine), 12 if i == leaving else 30
        )
        assert texts(events)[name, 0] == expected, name


def test_a_costly_gap_is_closed_by_moving_the_highest_sequence(model_path):
    engine = new_engine(model_path, prefill_share=0.999)
    prompts = [random_prompt(60, seed=i) for i in range(4)]
    for i, prompt in enumerate(prompts):
        engine.submit(local_job(f"r{i}", prompt, 12 if i == 1 else 50))
    events = []
    while not engine._running.num_moves:
        assert engine.has_work
        events += engine.step()
    assert sorted(engine._running.sequences) == [0, 1, 2]
    events += run(engine)
    for i in (0, 2, 3):
        _, expected = read_elsewhere(model_path, prompts[i], 4, 50)
        assert texts(events)[f"r{i}", 0] == expected
    engine.close()


def test_a_prompt_read_in_a_gap_is_left_alone_by_the_running_batch(engine, model_path):
    """Every slot above is taken, so the prompt is read between running sequences."""
    prompts = {name: random_prompt(40, seed=i) for i, name in enumerate("abcd")}
    for name, prompt in prompts.items():
        engine.submit(local_job(name, prompt, 12 if name == "b" else 60))
    late = random_prompt(300, seed=9)
    engine.submit(local_job("late", late, 5))
    events = run(engine)
    assert not of(Failed, events)
    for name in "acd":
        expected = read_elsewhere(model_path, prompts[name], streams(engine), 60)[1]
        assert texts(events)[name, 0][:40] == expected[:40]
    assert texts(events)["late", 0] == read_elsewhere(model_path, late, streams(engine), 5)[1]


def test_one_choice_that_can_not_go_on_fails_its_request_only(engine):
    """The grammar ends, and the bias forbids what it would end with."""
    ended = Sampling(grammar='root ::= "a" "b"', temperature=0, ignore_eos=True)
    engine.submit(local_job("bad", random_prompt(30), 9, num_choices=2, sampling=ended))
    engine.submit(local_job("good", random_prompt(30), 30))
    events = run(engine)
    [failed] = of(Failed, events)
    assert failed.request_id == "bad"
    assert "need a token that continues it" in failed.message
    assert len(texts(events)["good", 0]) == 30
    assert engine.kv_bytes_held == 0


@pytest.mark.parametrize(
    "token",
    [
        Token("a", 0, 0, 10**6),
        Token("a", 0, 0, -7),
        Token("a", 0, 0, 2**40),
        Token("other", 0, 0, 5),
        Token("a", 0, 99, 5),
    ],
)
def test_a_first_token_that_is_none_of_the_jobs_is_the_peers_error(engine, token):
    engine.submit(wire_job("a", 10, 5))
    engine.step()
    with pytest.raises(PeerError, match="need its first token for each of 1 choices, below 512"):
        engine.join("a", np.zeros(8, np.uint8), (token,))
    assert engine.num_active == 0


def test_a_move_that_fails_leaves_the_sequence_where_it_is(model_path, monkeypatch):
    engine = new_engine(model_path, prefill_share=0.999)
    for i in range(4):
        engine.submit(local_job(f"r{i}", random_prompt(60, seed=i), 12 if i == 1 else 50))
    events = []
    while len(engine._running) < 4:
        events += engine.step()
    monkeypatch.setattr(type(engine.context), "export_sequence", lambda *_: np.zeros(64, np.uint8))
    events += run(engine)
    assert not of(Failed, events)
    assert sorted(map(len, texts(events).values())) == [12, 50, 50, 50]
    assert engine._slots.num_unpromised == 4
    engine.close()


def test_choices_share_the_prompt_and_differ_by_their_draws(engine):
    sampling = Sampling(temperature=1.5, seed=7, ignore_eos=True, min_p=0)
    engine.submit(local_job("a", random_prompt(50), 12, num_choices=3, sampling=sampling))
    first = texts(run(engine))
    assert sorted(first) == [("a", 0), ("a", 1), ("a", 2)]
    assert len({tuple(tokens) for tokens in first.values()}) == 3
    engine.submit(local_job("a", random_prompt(50), 12, num_choices=3, sampling=sampling))
    assert texts(run(engine)) == first


def test_a_draw_depends_on_seed_choice_and_position_alone(engine, model_path):
    """Handed over after the first token, a sampled sequence goes on as it would have locally."""
    sampling = Sampling(temperature=0.9, seed=3, ignore_eos=True, presence_penalty=0.5)
    prompt = random_prompt(90)
    engine.submit(local_job("a", prompt, 25, sampling=sampling))
    expected = texts(run(engine))["a", 0]
    blob, _ = read_elsewhere(model_path, prompt, streams(engine))
    engine.submit(wire_job("b", len(prompt), 25, sampling=sampling))
    engine.step()
    events = run(engine, engine.join("b", blob, (Token("b", 0, 0, expected[0]),)))
    assert texts(events)["b", 0] == expected


def test_a_request_that_can_never_fit_is_refused_with_need_and_have(engine):
    with pytest.raises(
        PlanError, match=r"need 513 tokens .*\(500 of the prompt and 13 to generate"
    ):
        engine.submit(wire_job("a", 500, 13))
    with pytest.raises(PlanError, match="need 5 slots, one per choice, have 4"):
        engine.submit(wire_job("a", 10, 5, num_choices=5))


def test_a_grammar_that_does_not_parse_is_refused(engine):
    bad = Sampling(grammar='root ::= "unclosed')
    with pytest.raises(EngineError, match="need valid GBNF"):
        engine.submit(wire_job("a", 10, 5, sampling=bad))


def test_first_tokens_that_are_not_the_jobs_own_fail_it(engine):
    engine.submit(wire_job("a", 10, 5, num_choices=2))
    engine.step()
    with pytest.raises(PeerError, match="need its first token for each of 2 choices"):
        engine.join("a", np.zeros(8, np.uint8), (Token("a", 0, 0, 5),))
    with pytest.raises(EngineError, match="need an admitted job, have none"):
        engine.join("a", np.zeros(8, np.uint8), ())


def test_a_first_token_outside_the_grammar_fails_the_request_not_the_process(engine):
    sampling = Sampling(grammar='root ::= "a"', temperature=0)
    engine.submit(wire_job("a", 10, 5, sampling=sampling))
    engine.step()
    outside = engine.model.vocab.tokenize("b", add_special=False, parse_special=False)[-1]
    with pytest.raises(PeerError, match="need one that the grammar allows"):
        engine.join("a", np.zeros(8, np.uint8), (Token("a", 0, 0, outside),))
    assert not engine.has_work


def test_a_state_llama_refuses_fails_one_request_and_the_rest_goes_on(engine):
    engine.submit(local_job("good", random_prompt(30), 40))
    engine.submit(wire_job("bad", 10, 5))
    events = engine.step()
    events += engine.join("bad", np.zeros(64, np.uint8), (Token("bad", 0, 0, 5),))
    events += run(engine)
    [failed] = of(Failed, events)
    assert failed.request_id == "bad"
    assert "bytes restored" in failed.message
    assert len(texts(events)["good", 0]) == 40
    assert engine.kv_bytes_held == 0


def test_grammar_holds_every_token_to_it(engine):
    sampling = Sampling(grammar="root ::= [a-c]+", temperature=1, seed=1)
    engine.submit(local_job("a", random_prompt(30), 15, sampling=sampling))
    tokens = texts(run(engine))["a", 0]
    assert set(engine.model.vocab.detokenize(tokens)) <= set("abc")


def test_logprobs_are_the_models_own(engine, model_path):
    prompt = random_prompt(40)
    with Reference(
        model_path,
        k_type="q8_0",
        v_type="q8_0",
        unified=streams(engine) == 1,
        num_sequences=streams(engine),
        context_tokens=512,
        chunk_tokens=64,
    ) as alone:
        _, rows = alone.greedy(alone.prefill(prompt), len(prompt), 6)
    sampling = Sampling(temperature=0, ignore_eos=True, top_logprobs=3)
    engine.submit(local_job("a", prompt, 6, sampling=sampling))
    generated = [t for event in of(Generated, run(engine)) for t in event.tokens]
    for token, row in zip(generated, rows, strict=True):
        exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
        assert token.logprob.logprob == pytest.approx(exact[token.token], abs=1e-4)
        assert [t for t, _ in token.logprob.top] == np.argsort(-exact)[:3].tolist()


def test_logit_bias_and_eos_ban_are_obeyed(engine):
    engine.submit(
        local_job("a", random_prompt(30), 8, sampling=Sampling(logit_bias=((42, 100.0),)))
    )
    assert texts(run(engine))["a", 0] == [42] * 8


class AnyOrder(RuleBasedStateMachine):
    """Submit, arrive, cancel and step in any order: nothing leaks, and every job ends."""

    engine = None
    blob = None

    @initialize()
    def fresh(self):
        self.count = 0
        self.admitted = set()
        self.open = {}

    def note(self, events):
        for event in events:
            if isinstance(event, Admitted):
                self.admitted.add(event.job.request_id)
            if isinstance(event, Finished):
                self.open[event.request_id] -= 1
            assert not isinstance(event, Failed), event

    @rule(
        local=st.booleans(),
        num_choices=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        num_prompt_tokens=st.integers(1, 300),
    )
    def submit(self, local, num_choices, max_tokens, num_prompt_tokens):
        name = f"r{self.count}"
        self.count += 1
        make = local_job if local else (lambda n, p, m, **o: wire_job(n, len(p), m, **o))
        prompt = random_prompt(num_prompt_tokens if local else 20)
        self.engine.submit(make(name, prompt, max_tokens, num_choices=num_choices))
        self.open[name] = num_choices

    @rule(data=st.data())
    def arrive(self, data):
        if self.admitted:
            name = data.draw(st.sampled_from(sorted(self.admitted)))
            self.admitted.discard(name)
            tokens = tuple(Token(name, choice, 0, 7) for choice in range(self.open[name]))
            self.note(self.engine.join(name, self.blob, tokens))

    @rule(data=st.data())
    def cancel(self, data):
        if self.open:
            name = data.draw(st.sampled_from(sorted(self.open)))
            self.engine.cancel(name)
            self.admitted.discard(name)
            self.open[name] = 0

    @rule(steps=st.integers(1, 4))
    def step(self, steps):
        for _ in range(steps):
            self.note(self.engine.step())

    @invariant()
    def promises_are_covered(self):
        if self.engine:
            assert 0 <= self.engine._slots.num_promised <= len(self.engine._slots._free)

    def teardown(self):
        for name in self.admitted.copy():
            self.engine.cancel(name)
            self.open[name] = 0
        while self.engine.has_work:
            self.note(self.engine.step())
            for name in self.admitted.copy():
                self.engine.cancel(name)
                self.admitted.discard(name)
                self.open[name] = 0
        assert not any(self.open.values())
        assert self.engine.kv_bytes_held == 0
        assert self.engine.num_active == self.engine.num_queued == 0
        assert self.engine._slots.num_unpromised == 4
        for slot in range(4):
            assert self.engine.context.last_position(slot) is None


@pytest.mark.parametrize("unified", [False, True], ids=["streams", "unified"])
def test_any_order_of_events_leaves_nothing_behind(model_path, unified):
    engine = new_engine(model_path, unified=unified)
    blob, _ = read_elsewhere(model_path, random_prompt(20), 1 if unified else 4)

    class Machine(AnyOrder):
        pass

    Machine.engine, Machine.blob = engine, blob
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    engine.close()
