"""What the comparators must be, over tiny real models: laws that tie each to plain tuning or to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consort.config import Config
from consort.federated import baselines
from consort.federated.baselines import Site
from consort.federated.packets import encode_adapter, encode_knowledge
from consort.federated.party import PrivateRows
from consort.models.local import load_model
from consort.training.adapters import (
    SHARED,
    lora_parameters,
    read_adapter,
    read_parameters,
    trainable_part,
    use_adapters,
)
from consort.training.batches import states_of
from consort.training.data import Sample, encode
from consort.training.lessons import Learner, byte_bridge
from consort.training.mutual import co_train, knowledge_of, pool_of
from consort.training.proxy import load_proxy
from tests.tunable_consort import rows, tunable_config

PUBLIC = rows("public")
UNLABELLED = [Sample(row.prompt, None) for row in rows("more", 4)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tunable_config(tmp_path_factory.mktemp("consort"))


def sites(config: Config, *, unlabelled=UNLABELLED) -> list[Site]:
    return [
        Site(device, PrivateRows(rows(device.name), unlabelled), seed=number)
        for number, device in enumerate(config.devices)
    ]


def tuned(config: Config, **changes) -> Config:
    return replace(config, tune=replace(config.tune, **changes))


def frozen(config: Config) -> Config:
    """The same run at learning rate 0: all models stay as they are, so what they say is known beforehand."""
    devices = [replace(device, slm=replace(device.slm, learning_rate=0.0)) for device in config.devices]
    cloud = replace(config.cloud, learning_rate=0.0)
    return replace(
        config, cloud=cloud, devices=tuple(devices), proxy=replace(config.proxy, learning_rate=0.0)
    )


def proxy_dir(config: Config) -> Path:
    return Path(config.proxy.model)


def slm(config: Config, site: Site) -> Learner:
    settings = site.device.slm
    model = load_model(settings.model, runtime=config.runtime, name=site.device.name)
    return Learner(
        model, trainable_part(model, settings, seed=site.seed), settings.learning_rate, settings.max_tokens
    )


def llm(config: Config) -> Learner:
    settings = config.cloud
    model = load_model(settings.model, runtime=config.runtime, name="cloud")
    return Learner(
        model, trainable_part(model, settings, seed=config.seed), settings.learning_rate, settings.max_tokens
    )


def same(first, second):
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


def one_directional(config: Config, site: Site):
    return baselines.one_directional(config, site, proxy_dir=proxy_dir(config))


def fed_lora(config: Config, parties: list[Site], public=()):
    return baselines.fed_lora(config, parties, proxy_dir=proxy_dir(config), public=public)


def fed_mkt(config: Config, parties: list[Site], public=PUBLIC, **options):
    return baselines.fed_mkt(config, parties, public, **{"bridge": byte_bridge()} | options)


# ---- alone


def test_alone_is_plain_tuning_on_the_labelled_rows_for_as_many_steps_as_all_rounds_have(config):
    for site in sites(config):
        learner = slm(config, site)
        by_hand = co_train([learner], [pool_of(site.rows.train)], config.tune, steps=2 * 2, seed=site.seed)
        weights, log = baselines.alone(config, site)
        assert same(weights, read_parameters(learner.parameters))
        assert log == by_hand


def test_alone_does_not_read_the_unlabelled_rows(config):
    for with_more, without in zip(sites(config), sites(config, unlabelled=[]), strict=True):
        assert same(baselines.alone(config, with_more)[0], baselines.alone(config, without)[0])


# ---- one_directional


def test_the_proxy_that_only_teaches_stays_as_it_is_on_disk(config):
    def contents():
        return {file.name: file.read_bytes() for file in proxy_dir(config).iterdir()}

    before, site = contents(), sites(config)[0]
    weights = one_directional(config, site)
    assert contents() == before
    assert not same(weights, baselines.alone(config, site)[0])


def test_without_answers_it_learns_from_labelled_rows_only(config):
    labelled = tuned(config, proxy_answers=0)
    for with_more, without in zip(sites(config), sites(config, unlabelled=[]), strict=True):
        taught = one_directional(labelled, with_more)
        assert same(taught, one_directional(config, without))
        assert not same(taught, one_directional(config, with_more))
        assert not same(taught, baselines.alone(config, with_more)[0])


def test_beside_the_answers_it_still_learns_its_labelled_rows(config):
    site = sites(config)[0]
    other = replace(site, rows=replace(site.rows, train=rows("other")))
    assert not same(one_directional(config, site), one_directional(config, other))


def test_lessons_that_weigh_nothing_leave_the_device_alone(config):
    deaf = tuned(config, proxy_answers=0, slm_kd_weight=0.0)
    for site in sites(config):
        assert same(one_directional(deaf, site), baselines.alone(deaf, site)[0])


# ---- centralised


def test_centralised_tunes_the_llm_and_every_device(config):
    outcome = baselines.centralised(config, sites(config), PUBLIC)
    assert not same(outcome.llm, read_parameters(llm(config).parameters))
    assert outcome.slms.keys() == {"bank", "shop"}
    for site in sites(config):
        assert not same(outcome.slms[site.device.name], read_parameters(slm(config, site).parameters))


def test_without_public_rows_the_llm_tunes_plainly_on_all_private_ones(config):
    learner = llm(config)
    private = [row for site in sites(config) for row in site.rows.train]
    co_train([learner], [pool_of(private)], config.tune, steps=2 * (1 + 1), seed=config.seed)
    outcome = baselines.centralised(config, sites(config), [])
    assert same(outcome.llm, read_parameters(learner.parameters))


def test_an_llm_that_learns_nothing_teaches_like_a_proxy_of_its_weights(config):
    still = replace(config, cloud=replace(config.cloud, learning_rate=0.0))
    outcome = baselines.centralised(still, sites(config), PUBLIC)
    learned = baselines.centralised(config, sites(config), PUBLIC)
    for site in sites(config):
        weights = outcome.slms[site.device.name]
        assert same(weights, baselines.one_directional(config, site, proxy_dir=Path(config.cloud.model)))
        assert not same(weights, learned.slms[site.device.name])


def test_the_llm_reads_the_chat_template_of_the_configuration(config, tmp_path):
    (tmp_path / "template").write_text("{% for m in messages %}user: {{ m.content }}\n{% endfor %}")
    templated = replace(config, cloud=replace(config.cloud, chat_template=str(tmp_path / "template")))
    for arm in (
        lambda config: baselines.centralised(config, sites(config)[:1], PUBLIC),
        lambda config: fed_lora(config, sites(config)[:1], PUBLIC),
        lambda config: fed_mkt(config, sites(config)[:1]),
    ):
        assert not same(arm(templated).llm, arm(config).llm)


# ---- fed_lora and FedCoLLM


def lora_by_hand(config: Config, site: Site):
    """Two rounds of LoRA tuning of the proxy, with nobody else; every adapter on the way."""
    adapters = [None]
    for round_number in range(2):
        proxy = load_proxy(
            proxy_dir(config), config.proxy, config.runtime, shared=adapters[-1], seed=config.seed
        )
        use_adapters(proxy, [SHARED])
        if round_number == 0:
            adapters = [read_adapter(proxy, SHARED)]
        learner = Learner(
            proxy, lora_parameters(proxy, SHARED), config.proxy.learning_rate, config.cloud.max_tokens
        )
        seed, done = site.seed + 1000 * round_number, 2 * round_number
        pools = [pool_of(site.rows.train)]
        co_train([learner], pools, config.tune, steps=2, seed=seed, done=done, total=4)  # one decay
        adapters.append(read_adapter(proxy, SHARED))
    return adapters


def test_averaging_one_site_is_tuning_its_lora_in_place(config):
    for site in sites(config):
        fresh, first, second = lora_by_hand(config, site)
        outcome = fed_lora(config, [site])
        (left,) = outcome.proxies.values()
        assert same(left.tensors, second.tensors)
        assert outcome.llm is None
        sizes = [len(encode_adapter(adapter, bits=8)[0]) for adapter in (fresh, first, second)]
        assert outcome.uplink_bytes == {site.device.name: sizes[1] + sizes[2]}
        assert outcome.downlink_bytes == {site.device.name: sum(sizes)}


def test_two_sites_that_own_the_same_average_to_one_of_them(config):
    bank, shop = sites(config)
    twins = fed_lora(config, [bank, replace(bank, device=shop.device)])
    single = fed_lora(config, [bank])
    assert same(twins.proxies["shop"].tensors, single.proxies["bank"].tensors)
    assert twins.uplink_bytes == dict.fromkeys(("bank", "shop"), single.uplink_bytes["bank"])


def test_all_devices_leave_with_the_same_adapter_and_their_own_models_untouched(config):
    for public in ((), PUBLIC):
        outcome = fed_lora(config, sites(config), public)
        assert outcome.proxies.keys() == {"bank", "shop"}
        assert same(outcome.proxies["bank"].tensors, outcome.proxies["shop"].tensors)
        assert outcome.slms == {}


def test_a_cloud_step_changes_llm_and_adapter_and_none_leaves_both(config):
    fresh = read_parameters(llm(config).parameters)
    plain, idle = (
        fed_lora(config, sites(config)),
        fed_lora(tuned(config, cloud_steps=0), sites(config), PUBLIC),
    )
    assert same(idle.proxies["bank"].tensors, plain.proxies["bank"].tensors)
    assert same(idle.llm, fresh)
    busy = fed_lora(config, sites(config), PUBLIC)
    assert not same(busy.proxies["bank"].tensors, plain.proxies["bank"].tensors)
    assert not same(busy.llm, fresh)


def test_an_llm_deaf_to_the_proxies_tunes_on_the_public_rows_from_round_to_round(config):
    deaf = tuned(config, cloud_kd_weight=0.0)
    learner = llm(config)
    for seed in (500, 1500):
        co_train([learner], [pool_of(PUBLIC)], config.tune, steps=1, seed=seed)
    assert same(fed_lora(deaf, sites(config), PUBLIC).llm, read_parameters(learner.parameters))
    assert not same(fed_lora(config, sites(config), PUBLIC).llm, read_parameters(learner.parameters))


# ---- fed_mkt


def test_knowledge_is_counted_as_the_packets_that_carry_it(config):
    still = frozen(config)
    outcome = fed_mkt(still, sites(still))
    learners = {site.device.name: slm(still, site) for site in sites(still)} | {"cloud": llm(still)}
    sizes = {}
    for name, learner in learners.items():
        taught = knowledge_of(learner, PUBLIC, still.tune)
        texts = {str(number): example.knowledge.rows for number, example in enumerate(taught)}
        sizes[name] = len(encode_knowledge(texts, tokenizer_sha256=learner.model.vocabulary.sha256))
    assert outcome.uplink_bytes == {name: 2 * sizes[name] for name in ("bank", "shop")}
    assert outcome.downlink_bytes == dict.fromkeys(("bank", "shop"), 2 * sizes["cloud"])


def nats_a_byte(learner: Learner, sample: Sample) -> float:
    """Of the answer without its end; no token counts as less likely than 1e-4."""
    model, encoded = learner.model, encode(sample, learner.model, learner.max_tokens)
    ids = np.array([*encoded.prompt_ids, *encoded.answer_ids])
    with torch.no_grad():
        hidden_TD, _ = states_of(model, [ids])
        weight_VD, bias_V = model.head()
        logp_TV = torch.nn.functional.linear(hidden_TD, weight_VD, bias_V).log_softmax(-1)
    asked, answer = len(encoded.prompt_ids), encoded.answer_ids[:-1]
    logp = logp_TV[torch.arange(asked - 1, asked - 1 + len(answer)), torch.tensor(answer)]
    return float(-logp.clamp_min(np.log(1e-4)).sum()) / len(sample.answer.encode())


def test_each_side_learns_exactly_the_rows_where_the_other_predicts_the_answer_better(config):
    # answers of which each of the three untrained models happens to find some the likeliest
    words = ("nine", "400 euro", "grüße", "Köln", "on Sundays", "please", "once", "a machine stopped")
    public = [Sample(f"{number}? ", word) for number, word in enumerate(words)]
    # every row is drawn once a side; at learning rate 0 nobody gets better meanwhile
    still = frozen(tuned(config, rounds=1, cloud_steps=4, mutual_steps=16))
    learners = {site.device.name: slm(still, site) for site in sites(still)} | {"cloud": llm(still)}
    owners = {learner.model.vocabulary.sha256: name for name, learner in learners.items()}
    crossed = set()

    def bridge(teacher, student):
        exact = byte_bridge()(teacher, student)

        def cross(rows, source, target):
            crossed.add((owners[teacher.sha256], owners[student.sha256], teacher.decode(source.ids.tolist())))
            return exact(rows, source, target)

        return cross

    fed_mkt(still, sites(still), public, bridge=bridge)
    expected = set()
    for row in public:
        loss = {name: nats_a_byte(learner, row) for name, learner in learners.items()}
        pairs = [(min(("bank", "shop"), key=loss.get), "cloud"), ("cloud", "bank"), ("cloud", "shop")]
        expected |= {(better, worse, row.answer) for better, worse in pairs if loss[better] < loss[worse]}
    assert crossed == expected
    assert len({(better, worse) for better, worse, _ in expected}) == 4


def test_only_so_many_public_rows_are_exchanged(config):
    short, cut = fed_mkt(config, sites(config), public_rows=4), fed_mkt(config, sites(config), PUBLIC[:4])
    assert same(short.llm, cut.llm)
    assert short.uplink_bytes == cut.uplink_bytes


def test_a_device_learns_from_its_own_rows_and_from_the_llm_as_the_exchange_left_it(config):
    # several steps: Adam's first goes by the gradient's sign alone
    once, parties = tuned(config, rounds=1, mutual_steps=8, cloud_steps=4), sites(config)
    still = replace(once, cloud=replace(config.cloud, learning_rate=0.0))
    others = [replace(site, rows=PrivateRows(rows("other"))) for site in parties]
    usual = fed_mkt(once, parties).slms
    for changed in (fed_mkt(still, parties).slms, fed_mkt(once, others).slms):
        assert not same(usual["bank"], changed["bank"])


def test_mutual_transfer_moves_every_model(config):
    outcome = fed_mkt(config, sites(config))
    assert not same(outcome.llm, read_parameters(llm(config).parameters))
    for site in sites(config):
        assert not same(outcome.slms[site.device.name], read_parameters(slm(config, site).parameters))


# ---- all


ARMS = {
    "alone": lambda config: baselines.alone(config, sites(config)[0])[0],
    "one_directional": lambda config: one_directional(config, sites(config)[0]),
    "centralised": lambda config: baselines.centralised(config, sites(config), PUBLIC).slms["bank"],
    "fed_collm": lambda config: fed_lora(config, sites(config), PUBLIC).proxies["bank"].tensors,
    "fed_mkt": lambda config: fed_mkt(config, sites(config)).slms["bank"],
}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_repeated_gives_the_same_bytes(arm, config):
    assert same(ARMS[arm](config), ARMS[arm](config))
