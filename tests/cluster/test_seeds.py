"""Seeds: one for each purpose and place, the same in every run."""

from __future__ import annotations

from cluster.seeds import Purpose, Seeds, Ticket


def test_no_two_places_share_a_seed():
    seen: set[int] = set()
    count = 0
    for run in range(3):
        seeds = Seeds(run)
        for round_ in range(40):
            for slot in range(16):
                for attempt in range(2):
                    ticket = Ticket(round_, slot, attempt)
                    made = [seeds.query(ticket), *seeds.answers(ticket, 8)]
                    made += seeds.verdicts(ticket, 8)
                    seen.update(made)
                    count += len(made)
    assert len(seen) == count == 3 * 40 * 16 * 2 * 17


def test_digits_do_not_run_into_each_other():
    seeds = Seeds(1)
    assert seeds.derive(Purpose.QUERY, 1, 23) != seeds.derive(Purpose.QUERY, 12, 3)
    assert Seeds(1).derive(Purpose.DRAW, 23) != Seeds(12).derive(Purpose.DRAW, 3)


def test_seeds_fit_in_63_bits_and_use_them():
    made = [Seeds(0).derive(Purpose.ANSWER, place) for place in range(1000)]
    assert all(0 <= seed < 2**63 for seed in made)
    assert max(made) > 2**62


def test_seeds_are_the_same_in_every_process_and_version():
    # A changed value here changes every game that was ever recorded.
    assert Seeds(7).query(Ticket(3, 1, 0)) == 5477614180429003667


def test_tickets_stand_in_group_ids():
    ticket = Ticket(123, 45, 6)
    assert ticket.group_id == "000123-0045-006"
    assert Ticket.parse(ticket.group_id) == ticket
    big = Ticket(10**7, 10**5, 10**4)
    assert Ticket.parse(big.group_id) == big
