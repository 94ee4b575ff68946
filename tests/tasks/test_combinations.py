"""Methods compose: whatever `params.yaml` accepts trains, and what makes no sense is refused with a reason."""

import itertools

import numpy as np
import pytest

from tasks import params
from tasks.params import ParamsRefused
from tests.tasks.train.runs import federation, run

ALGORITHMS = [
    {"name": "fedavg", "server": {"name": "adam", "lr": 0.01}},
    {"name": "fedavg", "momentum": 0.5},
    {"name": "fedprox"},
    {"name": "scaffold"},
    {"name": "fedspeed"},
    {"name": "fedper"},
    {"name": "fedcac"},
    {"name": "hyperfl", "steps": 2, "head_steps": 1},
    {"name": "one_byte"},
]
UPLINKS = [
    [],
    [{"name": "clip", "norm": 1.0}, {"name": "dgc"}],
    [{"name": "topk", "density": 0.1}, {"name": "quantize"}],
    [{"name": "randomk", "density": 0.2}],
    [{"name": "sign"}],
    [{"name": "log_byte"}],
]
PRIVACY = [{"name": "none"}, {"name": "gaussian"}, {"name": "adaptive"}, {"name": "local"}]
SCHEDULES = [
    {"name": "sync"},
    {"name": "fedfix"},
    {"name": "fedasync"},
    {"name": "fedbuff", "size": 2},
    {"name": "fedcompass", "max_steps": 4, "min_steps": 2},
]
TOPOLOGIES = [{"name": "server"}, {"name": "gossip", "graph": {"name": "ring"}}]
MODELS = [
    {"name": "mlp", "hidden": [6]},
    {"name": "cnn", "width": 2},
    {"name": "vit", "patch": 4, "width": 8, "heads": 2, "blocks": 1, "adapter": {"name": "bias"}},
    {"name": "vit", "patch": 4, "width": 8, "heads": 2, "blocks": 1, "adapter": {"name": "lora", "rank": 1}},
    {"name": "hyper", "body": {"name": "mlp", "hidden": [6]}, "embedding": 3, "hidden": 4},
]
SLOTS = {
    "algorithm": ALGORITHMS,
    "uplink": UPLINKS,
    "privacy": PRIVACY,
    "schedule": SCHEDULES,
    "topology": TOPOLOGIES,
    "model": MODELS,
}
CLIENTS = 6


def document(choice: dict) -> dict:
    """`params.yaml` with one entry of every slot; with privacy clients count alike, as it must be."""
    train = {name: value for name, value in choice.items() if name != "model"}
    algorithm = dict(train["algorithm"])
    if choice["privacy"]["name"] != "none" and algorithm["name"] != "one_byte":
        algorithm["weighting"] = "uniform"
    everybody = choice["topology"]["name"] == "gossip" or choice["schedule"]["name"] in ("fedfix", "fedcompass")
    return {
        "partition": {"clients": CLIENTS},
        "model": choice["model"],
        "train": {**train, "algorithm": algorithm, "rounds": 2, "cohort": CLIENTS if everybody else 3},
        "attack": {"suite": []},
    }


def accepted(choice: dict) -> params.Params | None:
    """The parameters, or None where they are refused; a refusal names fields of the file and says more than no."""
    try:
        return params.build(document(choice))
    except ParamsRefused as refused:
        for problem in refused.problems:
            field, _, reason = problem.partition(": ")
            assert field.startswith(("train.", "model.", "aggregate.")) and len(reason) > 15, problem
        return None


def sample(count: int, seed: int) -> list[dict]:
    """Accepted combinations drawn at random, every entry of every slot in at least one of them where it can be."""
    rng, found = np.random.default_rng(seed), []
    wanted = [(slot, i) for slot, entries in SLOTS.items() for i in range(len(entries))]
    rng.shuffle(wanted)
    for slot, i in itertools.islice(itertools.cycle(wanted), 4 * count):
        choice = {name: entries[int(rng.integers(len(entries)))] for name, entries in SLOTS.items()}
        choice[slot] = SLOTS[slot][int(i)]
        if len(found) < count and accepted(choice):
            found.append(choice)
    return found


def label(choice: dict) -> str:
    links = "+".join(link["name"] for link in choice["uplink"]) or "plain"
    adapter = choice["model"].get("adapter", {}).get("name", "")
    return "-".join(
        [*(choice[s]["name"] for s in ("algorithm", "privacy", "schedule", "topology", "model")), adapter, links]
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("federation") / "partition", (3, 5, 8, 2, 6, 9), (1, 8, 8), 10)


@pytest.mark.parametrize("choice", sample(24, seed=11), ids=label)
def test_what_is_accepted_trains_for_two_rounds(data, choice):
    settings = accepted(choice)
    finished = run(data, settings.train, 2, model=settings.model, recorded=(1, 2))
    assert finished.rounds == 2
    assert finished.ledger.bytes_up > 0
    assert all(bool(value.isfinite().all()) for value in finished.model.values())


NAMED = {
    "DGC under FedBuff with clipping": {
        "uplink": [{"name": "clip", "norm": 1.0}, {"name": "dgc"}],
        "schedule": {"name": "fedbuff", "size": 2},
        "privacy": {"name": "gaussian"},
    },
    "HyperFL behind a codec": {
        "algorithm": {"name": "hyperfl", "steps": 2, "head_steps": 1},
        "model": MODELS[-1],
        "uplink": [{"name": "topk", "density": 0.1}],
    },
    "one number a machine behind codecs that forget": {
        "algorithm": {"name": "one_byte", "directions": 4},
        "uplink": [{"name": "topk", "k": 2, "error_feedback": False}, {"name": "quantize"}],
    },
    "SCAFFOLD behind gradient dropping": {
        "algorithm": {"name": "scaffold"},
        "uplink": [{"name": "dgc", "momentum": 0.0}],
    },
    "FedPer with a server that adapts": {"algorithm": {"name": "fedper", "server": {"name": "lamb"}}},
    "gossip over quantised links": {"topology": TOPOLOGIES[1], "uplink": [{"name": "quantize"}]},
    "adapters under FedCompass": {"model": MODELS[2], "schedule": SCHEDULES[4]},
}


@pytest.mark.parametrize("name", NAMED)
def test_combinations_that_people_ask_for_train(data, name):
    plain = {slot: entries[0] for slot, entries in SLOTS.items()} | {"algorithm": {"name": "fedavg"}}
    settings = params.build(document(plain | NAMED[name]))
    finished = run(data, settings.train, 2, model=settings.model)
    assert finished.rounds == 2 and finished.ledger.bytes_up > 0


def test_most_pairs_of_methods_go_together():
    """Refusals are exceptions: of all pairs of entries of two slots, beside plain ones, well over half are accepted."""
    plain = {slot: entries[0] for slot, entries in SLOTS.items()} | {"algorithm": {"name": "fedavg"}}
    pairs = [plain | {a: x, b: y} for a, b in itertools.combinations(SLOTS, 2) for x in SLOTS[a] for y in SLOTS[b]]
    share = sum(accepted(pair) is not None for pair in pairs) / len(pairs)
    assert share > 0.6
