"""Train the demo model, write hetero/model/demo.gguf, and print how well llama.cpp recalls with it.

`--evaluate-only` judges the file that is there. Training took 11 minutes on two cores that others
used as well; the evaluation takes about three. The same seed, threads and torch build give the
same weights.
"""

import argparse
import logging
from pathlib import Path

import torch
from demo_model.evaluation import Recall, evaluate
from demo_model.gguf_file import write_gguf
from demo_model.network import Shape
from demo_model.training import CURRICULUM, train

from hetero.kv.types import KV_TYPES
from hetero.model.demo import DEMO_MODEL_PATH

MIXED_TYPES = [("f16", "q8_0"), ("q8_0", "f16"), ("q8_0", "q4_0"), ("q5_1", "q4_0")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DEMO_MODEL_PATH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--lists", type=int, default=4)
    parser.add_argument("--questions", type=int, default=128, help="questions about each list")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments.evaluate_only:
        torch.set_num_threads(arguments.threads)
        write_gguf(train(arguments.seed, Shape(), CURRICULUM), arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    equal_types = [(name, name) for name in KV_TYPES]
    print("pairs  K/V            recall  margin: least value  median   KL mean     worst questions")
    for num_pairs, types in (
        (512, equal_types + MIXED_TYPES),
        (600, [("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0")]),
        (1200, [("f16", "f16")]),
    ):
        for row in evaluate(
            arguments.output,
            num_pairs,
            types,
            num_lists=arguments.lists,
            questions_per_list=arguments.questions,
            num_threads=arguments.threads,
        ):
            print(_line(row))


def _line(row: Recall) -> str:
    return (
        f"{row.num_pairs:5}  {row.k_type + '/' + row.v_type:13} {row.recall:7.2%}"
        f" {row.margin_worst:14.2f} {row.value_margin_worst:6.2f} {row.value_margin_median:7.2f}"
        f" {row.kl_mean:9.2e} {row.kl_worst:9.2e} {row.num_questions:10}"
    )


if __name__ == "__main__":
    main()
