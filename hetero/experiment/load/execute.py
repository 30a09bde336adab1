"""Carries a plan out, from finding the server to metrics."""

import asyncio
from collections.abc import Callable

import msgspec

from hetero.experiment.load.aiperf import aiperf_export
from hetero.experiment.load.client import Client
from hetero.experiment.load.endpoint import Questions, find_endpoint, parse_url
from hetero.experiment.load.generator import LoadRun, Target, run_load
from hetero.experiment.load.metrics import Metrics, PromptLengths, measure, prompt_lengths
from hetero.experiment.load.overhead import Share
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.prompts import find_prompts
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.slo import parse_slo

Json = dict[str, object]


class LoadOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """All but `records` fits a line. began_s: of CLOCK_MONOTONIC, which the processes of a machine
    share; the records count from there."""

    began_s: float
    records: list[RequestRecord]
    metrics: Metrics
    share: Share
    prompt_kind: str
    prompt_lengths: PromptLengths
    server: str
    model: str | None
    is_length_fixed: bool  # whether an answer must have as many tokens as asked for
    is_partial: bool
    aiperf: Json

    def summary(self) -> Json:
        """Without samples, which the records give again."""
        fields: Json = msgspec.to_builtins(msgspec.structs.replace(self, records=[]))
        fields["records"] = len(self.records)
        fields["scalars"] = self.metrics.scalars
        fields["errors"] = self.metrics.errors
        del fields["metrics"]
        return fields


def execute(
    plan: LoadPlan, done: Callable[[RequestRecord], None] = lambda record: None
) -> LoadOutcome:
    """Blocks until the load is over. Ctrl-C: what is finished counts, and is marked partial.

    Raises: ConfigError, PeerError before anything was sent.
    """
    bounds = parse_slo(plan.slo)
    url = parse_url(plan.url)
    with Questions(url.geturl()) as questions:
        found = find_endpoint(
            questions, url, model=plan.model, route=plan.route, temperature=plan.temperature
        )
        endpoint, prompts = find_prompts(questions, found, plan.endpoint, seed=plan.seed)

    async def run() -> LoadRun:
        client = Client(endpoint, timeout_s=plan.timeout_s)
        try:
            return await run_load(Target(client, endpoint, prompts), plan, done)
        finally:
            await client.close()

    ran = asyncio.run(run())
    concurrency = None if plan.schedule.is_open else plan.concurrency
    metrics = measure(ran.records, bounds, concurrency)
    metrics.scalars["load_cores"] = ran.share.cores
    return LoadOutcome(
        began_s=ran.began_s,
        records=ran.records,
        metrics=metrics,
        share=ran.share,
        prompt_kind=prompts.kind,
        prompt_lengths=prompt_lengths(ran.records),
        server=endpoint.server,
        model=endpoint.model,
        is_length_fixed=endpoint.ignores_eos,
        is_partial=ran.is_partial,
        aiperf=aiperf_export(ran.records, metrics, concurrency, is_partial=ran.is_partial),
    )
