import ctypes

import llama_cpp
import pytest

from hetero.errors import ConfigError
from hetero.model import chat
from hetero.model.chat import render_chat
from hetero.model.synth import CHAT_TEMPLATE

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}\n"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}\n{{ '<|assistant|>\n' }}{% endif %}\n"
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who <are> \u00e9\u4e16\nyou?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Bye"},
]


def render(template, messages=MESSAGES, **options):
    return render_chat(template, messages, bos="<s>", eos="<|endoftext|>", **options)


def render_by_llama_cpp(template, messages, add_generation_prompt):
    """llama.cpp recognizes well-known templates by their words and formats them in C++."""
    array = (llama_cpp.llama_chat_message * len(messages))(
        *((message["role"].encode(), message["content"].encode()) for message in messages)
    )
    buffer = ctypes.create_string_buffer(10_000)
    length = llama_cpp.llama_chat_apply_template(
        template.encode(), array, len(messages), add_generation_prompt, buffer, len(buffer)
    )
    assert length > 0
    return buffer.raw[:length].decode()


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA3, PHI3])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_agrees_with_llama_cpp(template, add_generation_prompt):
    ours = render(template, add_generation_prompt=add_generation_prompt)
    theirs = render_by_llama_cpp(template, MESSAGES, add_generation_prompt)
    assert ours == theirs


def test_blocks_leave_no_blank_lines():
    template = (
        "{% for m in messages %}\n    {% if true %}\n"
        "{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    )
    assert render(template, MESSAGES[2:]) == "A model.\nBye\n"


def test_bos_eos_and_extras_are_variables():
    template = "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ tools }}"
    assert render(template, enable_thinking=False) == "<s><|endoftext|>FalseNone"


def test_tojson_is_plain_json_as_in_transformers():
    value = {"b": "<\u00e9>", "a": [1, None]}
    assert render("{{ x | tojson }}", x=value) == '{"b": "<\u00e9>", "a": [1, null]}'
    assert render("{{ x | tojson(indent=1, sort_keys=true) }}", x={"b": 1, "a": 2}) == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_strftime_now_and_loop_controls_and_generation_blocks_exist():
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert (
        render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "012"
    )
    assert render("a{% generation %}{{ messages[3].content }}{% endgeneration %}b") == "aByeb"


def test_the_templates_own_refusal_is_the_error():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ConfigError, match=r"^chat template: roles must alternate$"):
        render(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat template: Expected"),
        ("{{ messages[9].content.strip() }}", "chat template: .*has no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate list"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "chat template: "),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loops"),
        ("{{ 'ab' * 999999999 }}", "something huge"),
        ("{{ 9 ** 9 ** 9 }}", "something huge"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
    ],
)
def test_a_hostile_or_broken_template_is_a_config_error(template, message):
    with pytest.raises(ConfigError, match=message):
        render(template)


def test_output_is_bounded(monkeypatch):
    monkeypatch.setattr(chat, "MAX_PROMPT_CHARS", 1000)
    template = "{% for i in range(n) %}0123456789{% endfor %}"
    assert len(render(template, n=100)) == 1000
    with pytest.raises(ConfigError, match="more than 1000 characters"):
        render(template, n=101)


def test_each_rendering_has_its_own_loop_budget():
    template = "{% for i in range(60000) %}{% endfor %}ok"
    assert [render(template), render(template)] == ["ok", "ok"]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


def test_a_message_without_content_is_empty():
    assert render("[{{ messages[0].content }}]", [{"role": "assistant"}]) == "[]"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "x"}, r"messages\[0\]: need a role, have None"),
        ({"role": 7, "content": "x"}, r"messages\[0\]: need a role, have 7"),
        ({"role": "user", "content": 5}, "need text or a list of text parts, have int"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "content part of type 'image_url' is not served, need text",
        ),
        ({"role": "user", "content": ["plain"]}, "content part of type 'str' is not served"),
        ({"role": "user", "content": [{"type": "text"}]}, "text part without text"),
    ],
)
def test_wrong_messages_are_named(message, error):
    with pytest.raises(ConfigError, match=error):
        render(CHAT_TEMPLATE, [message])
