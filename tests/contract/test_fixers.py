"""Every fixer keeps its contract on every generation: true befores, nothing twice, applied and undone."""

from __future__ import annotations

import pytest

from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS
from p2v.testing import check_fixer


def test_names_differ():
    assert len({fixer.NAME for fixer in FIXERS}) == len(FIXERS)


@pytest.mark.parametrize("fixer", FIXERS, ids=lambda fixer: fixer.NAME)
@pytest.mark.parametrize("generation", ["xp_guest", "nt4_guest", "w2000_guest", "w2003_guest"])
def test_contract(fixer, generation, request, piix_target):
    check_fixer(fixer, request.getfixturevalue(generation), piix_target)


@pytest.mark.parametrize("generation", ["xp_guest", "nt4_guest"])
def test_all_fixers_together_close_the_boot(generation, request, piix_target):
    from p2v import changes
    from p2v.errors import Finding

    guest = request.getfixturevalue(generation)
    wishes = [wish for fixer in FIXERS for wish in fixer.plan(guest, piix_target)]
    wanted = changes.merge(wish for wish in wishes if not isinstance(wish, Finding))
    assert boot_closure(guest, piix_target)
    guest.apply(wanted)
    after = guest.again()
    assert boot_closure(after, piix_target) == ()
    assert not changes.pending(wanted, after)
    after.apply(changes.inverses(wanted))
    assert boot_closure(guest.again(), piix_target) == boot_closure(guest, piix_target)
