"""Who drafts for whom in `acceptance.py`: the demo's consort, and the one on real data.

On real data the proxy is also taught to draft (`tune.drafter_steps`). Beside it stands the proxy as it was
distilled, given the same lessons: what is the lessons' part, and what co-tuning's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import real_co_tuning
import real_data

from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.federated.baselines import Tuned
from consort.federated.cloud import CloudState
from consort.federated.party import PrivateState
from consort.models import zoo
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel
from consort.training.adapters import DOMAIN, SHARED, lora_parameters, use_adapters, write_parameters
from consort.training.proxy import load_proxy, speak_for_device
from consort.training.tuned import load_tuned
from consort.types import Adapter, Message

BEFORE, AFTER, TAUGHT = "proxy, before", "proxy, co-tuned", "proxy, co-tuned and taught to draft"
OWN = "the device's own proxy, specialised"
SLM_BEFORE, SLM_AFTER = "the device's SLM, before", "the device's SLM, co-tuned"
STEPS = 400  # of learning to draft
CPU = RuntimeConfig(device="cpu")


@dataclass(frozen=True)
class Contender:
    """A drafter, and the domains it drafts in: all, or its own device's."""

    name: str
    lm: LocalLM
    domain: str = ""


@dataclass(frozen=True)
class Trial:
    """One co-tuned consort: its cloud, who drafts for it, and test prompts by domain."""

    cloud: LocalLM
    contenders: Sequence[Contender]
    prompts: Mapping[str, Sequence[tuple[Message, ...]]]


def demo(run_dir: Path, rows: int) -> Trial:
    """The bundled consort as a demo has tuned it."""
    adapters, suite, proxy = run_dir / "adapters", generate_suite(0), f"zoo:{zoo.PROXY}"

    def opened(model: str, adapter: Path | None = None) -> LocalLM:
        return _answering(load_tuned(model, adapter=adapter, runtime=CPU))

    contenders = [Contender(AFTER, opened(proxy, adapters / "proxy")), Contender(BEFORE, opened(proxy))]
    if (taught := adapters / "drafter").exists():  # the demo was run with tune.drafter_steps
        contenders.append(Contender(TAUGHT, opened(proxy, taught)))
    for domain, edge in zip(suite.devices, zoo.EDGES, strict=True):
        contenders.append(Contender(OWN, opened(proxy, run_dir / "proxies" / domain), domain))
        contenders.append(Contender(SLM_AFTER, opened(str(adapters / domain)), domain))
        contenders.append(Contender(SLM_BEFORE, opened(f"zoo:{edge}"), domain))
    prompts = {
        domain: [
            (Message("user", f"{row.instruction}\n{row.input}".strip()),) for row in splits["test"][:rows]
        ]
        for domain, splits in suite.devices.items()
    }
    return Trial(opened(f"zoo:{zoo.CLOUD}", adapters / "cloud"), contenders, prompts)


def real(seed: int, rows: int) -> Trial:
    """Co-tuned as `real_co_tuning.py` does it; a finished run is read from its journal."""
    config, data = real_co_tuning.base_config(seed), real_data.load(seed)
    config = replace(config, tune=replace(config.tune, drafter_steps=STEPS))
    run = real_co_tuning.run_co_plms("co_plms_drafter", config, data)
    cloud, state = run.cloud, run.outcome.cloud
    lessons = cloud.teach_drafter(CloudState(state.llm, cloud.first_broadcast())).payload

    def proxy(shared: Adapter | None, own: PrivateState | None = None) -> LocalLM:
        folder = real_co_tuning.prepare_proxy()
        model = load_proxy(folder, config.proxy, config.runtime, shared=shared, seed=seed)
        if own:
            write_parameters(lora_parameters(model, DOMAIN), own.domain, where="proxy")
            speak_for_device(model, config.proxy)
        else:
            use_adapters(model, [SHARED])
        return _answering(model)

    contenders = [
        Contender(TAUGHT, proxy(cloud.decode(run.outcome.drafter))),
        Contender(AFTER, proxy(cloud.decode(state.broadcast))),
        Contender("proxy, before, taught to draft", proxy(cloud.decode(lessons))),
        Contender(BEFORE, proxy(None)),
    ]
    tuned = Tuned({name: of.slm for name, of in run.states.items() if of})
    for device in config.devices:
        own = proxy(cloud.decode(state.broadcast), run.states[device.name])
        contenders.append(Contender(OWN, own, device.name))
        for name, models in ((SLM_AFTER, tuned), (SLM_BEFORE, Tuned())):
            slm = real_co_tuning.device_model(config, device, models)
            contenders.append(Contender(name, _answering(slm), device.name))
    prompts = {name: [row.prompt for row in of.test[:rows]] for name, of in data.devices.items()}
    return Trial(_answering(cloud.load_llm(state)[0]), contenders, prompts)


def _answering(model: LocalModel) -> LocalLM:
    """A loaded model as it serves."""
    return LocalLM(model, answers=1, sessions=2, context_tokens=min(512, model.context_tokens))
