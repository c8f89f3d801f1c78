"""Every kernel variant that can be selected compiles for A100 and H100, without spills and within limits."""

from __future__ import annotations

import pytest

from kernels.bench.compile import CARDS, Card, Resources, compile_variant, variants
from kernels.fused import contrastive
from kernels.fused.variant import Variant

pytestmark = pytest.mark.slow  # every variant, twice

CASES = [
    pytest.param(variant, card, id=f"{variant.name} {card.name}")
    for card in CARDS.values()
    for variant in variants(card)
]


@pytest.mark.parametrize(("variant", "card"), CASES)
def test_compiles_without_spills(variant: Variant, card: Card):
    resources = compile_variant(variant, card)
    assert resources.stack == 0, f"spills: {resources}"
    assert resources.shared <= card.shared, f"more shared memory than the card has: {resources}"
    assert resources.occupancy(variant, card) > 0
    products = "InfoNCE" in variant.name or "attention" in variant.name
    assert bool(resources.tensor_cores) == products, f"tensor cores: {resources}"


def test_occupancy_by_hand():
    variant = contrastive.variants()[0]
    resources = Resources(registers=128, stack=0, shared=60 << 10, tensor_cores=1)
    assert variant.warps == 8
    assert resources.occupancy(variant, CARDS[80]) == 16 / 64  # two blocks: registers and shared memory
    assert (
        Resources(registers=128, stack=0, shared=200 << 10, tensor_cores=1).occupancy(variant, CARDS[80]) == 0
    )
