"""The demo model's file, its words, and the recall questions it was trained to answer.

A prompt is a list of lines "amber fox lisbon": a two-word key and its value, in random order, and
then the question "amber fox ?". The answer repeats the key before the value: the first token of
an answer is drawn where the prompt was read, so what only the KV cache knows must come later.

As plain text, a list and then a line's key goes on with the value and the lines that followed it.
`tools/train_demo_model.py` makes the file from the same words. Nothing here loads it.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from hetero.errors import ConfigError

DEMO_MODEL_PATH = Path(__file__).with_name("demo.gguf")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Each word is one token, matched literally wherever it occurs: no word may lie inside another.
ADJECTIVES = _words(
    """
    amber ancient bitter bold brave bright calm clever cosmic crimson curious dapper distant
    dusty eager elegant faded fancy fearless fierce fluffy foggy frozen gentle giant gilded
    golden graceful happy hidden hollow humble jolly kind lazy lively lonely loyal lucky mellow
    mighty misty modest noble patient placid polite proud purple quiet rapid rustic scarlet
    shiny silent silver sleepy smooth snowy sturdy swift tender velvet wild
    """
)
NOUNS = _words(
    """
    anchor anvil apple arrow badger basket beacon beaver bottle bridge bucket button camel
    candle castle cello compass copper dolphin donkey eagle engine falcon feather ferry flute
    fox garden hammer harbor heron kettle kitten ladder lantern lemon magnet marble meadow
    mirror mountain needle orchid otter paddle parrot pebble pencil piano pillow planet pumpkin
    rabbit river saddle sailor salmon spider teapot thistle tiger turtle violin walnut
    """
)
CITIES = _words(
    """
    accra adelaide aleppo algiers amman amsterdam ankara antwerp athens auckland austin baghdad
    baku bangkok barcelona basel beirut belgrade bergen berlin bogota boston bristol brussels
    bucharest budapest cairo calgary caracas casablanca chennai chicago cologne colombo
    copenhagen cordoba dakar dallas damascus delhi denver detroit dhaka doha dresden dubai
    dublin durban edinburgh florence frankfurt geneva genoa glasgow granada hamburg hanoi harare
    havana helsinki houston istanbul jakarta johannesburg kampala karachi kigali kingston
    kinshasa krakow kyoto lagos leipzig lima lisbon ljubljana london luanda lusaka madrid malaga
    managua manila marseille medellin melbourne memphis miami milan minsk montreal moscow mumbai
    munich nairobi naples nagoya osaka oslo ottawa palermo paris perth phoenix porto prague
    quito reykjavik riga salzburg santiago sarajevo seattle seoul seville shanghai sofia
    stockholm sydney taipei tallinn tehran tokyo toronto tunis turin valencia vienna
    """
)

NUM_KEYS = len(ADJECTIVES) * len(NOUNS)


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """One question about a list of pairs, and what the model answers."""

    content: str  # the user's message
    key: str
    value: str
    answer: str  # the assistant's message: the key, then the value


def recall_prompt(num_pairs: int, seed: int, *, question: int | None = None) -> RecallTask:
    """A list of `num_pairs` pairs with distinct keys, and a question about one of them.

    question: the line asked about, from 0; without it the seed chooses. The same seed gives the
    same list whatever the question.
    """
    if not 1 <= num_pairs <= NUM_KEYS:
        raise ConfigError(f"recall prompt: need 1 to {NUM_KEYS} pairs, have {num_pairs}")
    draw = random.Random(seed)
    keys = [
        f"{ADJECTIVES[key // len(NOUNS)]} {NOUNS[key % len(NOUNS)]}"
        for key in draw.sample(range(NUM_KEYS), num_pairs)
    ]
    values = draw.choices(CITIES, k=num_pairs)
    asked = draw.randrange(num_pairs) if question is None else question
    if not 0 <= asked < num_pairs:
        raise ConfigError(f"recall prompt: need a question from 0 to {num_pairs - 1}, have {asked}")
    lines = [f"{key} {value}\n" for key, value in zip(keys, values, strict=True)]
    key, value = keys[asked], values[asked]
    return RecallTask(
        content=f"{''.join(lines)}{key} ?", key=key, value=value, answer=f"{key} {value}"
    )
