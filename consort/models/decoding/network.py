"""Which network computes a model: the lean one where it is understood and small, else the module itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consort.models.decoding.batch import Network
from consort.models.decoding.families import read_decoder
from consort.models.decoding.lean import LeanNetwork
from consort.models.decoding.memory import arranged
from consort.models.decoding.module import RowNetwork, SlotNetwork, takes_slots

if TYPE_CHECKING:
    from consort.models.local import LocalModel

# Beyond this arithmetic decides, and a second copy of most weights would cost gigabytes.
LEAN_PARAMETERS = 200e6


def open_network(model: LocalModel, *, slots: int, positions: int) -> Network:
    """A network with the weights the model has now: later changes of the module may or may not show."""
    if sum(parameter.numel() for parameter in model.module.parameters()) <= LEAN_PARAMETERS:
        decoder = read_decoder(model.module, positions)
        if decoder is not None:
            return LeanNetwork(arranged(decoder), slots=slots, positions=positions)
    kind = SlotNetwork if takes_slots(model.module) else RowNetwork
    return kind(model, slots=slots, positions=positions)
