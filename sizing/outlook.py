"""How fast an option of a comparison is: sizing.forecast asked with what the answer settled."""

from sizing.cards import card
from sizing.compare import CurvePoint, Outlook, Workload
from sizing.forecast import curve, forecast, setup, users
from sizing.question import Answer, Question

_CONCURRENCIES = tuple(2.0**n for n in range(9))


def outlook(question: Question, answer: Answer, workload: Workload) -> Outlook:
    """A `sizing.compare.Forecaster`.

    Raises:
        QuestionError: a figure of the card that its maker does not publish, or a load below one request or token.
    """
    settings, device = answer.settings, question.device
    asked = setup(
        question.model,
        card(device.name),
        device.link,
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
        replicas=settings.data_parallel_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_tokens=answer.kv_cache_tokens,
        kv_cache_dtype=settings.kv_cache_dtype,
    )
    prompt, output = workload.prompt_tokens, workload.output_tokens
    found = forecast(asked, prompt_tokens=prompt, output_tokens=output, concurrency=workload.concurrency)
    served = None
    if workload.bound is not None:
        served = users(
            asked,
            workload.bound,
            prompt_tokens=prompt,
            output_tokens=output,
            think_time_s=workload.think_time_s,
            percentile=workload.percentile,
        )
    points = curve(asked, prompt_tokens=prompt, output_tokens=output, concurrencies=_CONCURRENCIES)
    return Outlook(
        ttft_s=found.speed.ttft_s,
        tpot_s=found.speed.tpot_s,
        output_tokens_s=found.speed.output_tokens_s,
        pace=found.speed.pace,
        users=served,
        limiter=found.limiter,
        note=found.note,
        outside=found.speed.outside,
        curve=tuple(
            CurvePoint(int(one.concurrency), one.speed.ttft_s, one.speed.tpot_s, one.speed.output_tokens_s)
            for one in points
        ),
    )
